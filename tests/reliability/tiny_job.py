"""A job to disturb: every stage of the pipeline, in seconds, and what must not change of its result."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file

from gtp_exp.__main__ import conf_dir
from gtp_exp.files import checksums
from gtp_exp.records.record import State, write_record
from gtp_exp.worker import _begin, assemble

JOB = (
    "model=tiny",
    "model.precision=fp32",
    "dataset.rows=80",
    "gradients.engine=hooks",  # the fastest one chooses its kernel by the clock, and moves rounding
    "gradients.token_budget=256",
    "gradients.sketch.dim=256",
    "gradients.shard_rows=8",
    "selector=gtp",
    "budget=10pct",
    "train.epochs=8",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "benchmark.skills=[antonym]",
    "benchmark.generation_skills=[]",
    "benchmark.target_rows=6",
    "benchmark.test_rows=16",
    "tracking=none",
    "launch=cpu",
    "launch.threads=1",
)
# A resumed optimizer restores fp32 numbers from fp32 files; what is left is the order of sums.
RESUME_PRECISION = 1e-6


def command(folder: Path, processes: int) -> list[str]:
    where = [f"outputs={folder}", f"hydra.run.dir={folder}/runs/run", f"launch.num_processes={processes}"]
    return [sys.executable, "-m", "gtp_exp", *JOB, *where]


def run_here(folder: Path, *overrides: str) -> Outcome:
    """The same job in this process, which spares the start-up."""
    from gtp_exp.experiment import run

    directory = folder / "runs" / "run"
    directory.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        composed = compose("config", [*JOB, f"outputs={folder}", *overrides])
    config: Any = OmegaConf.to_container(composed, resolve=True)
    names = dict.fromkeys(("selector", "budget", "benchmark", "dataset", "model", "gradients", "train"), "-")
    job = {"name": "run", "group": "run", "names": names, "overrides": overrides}
    record = run(assemble(config), _begin(config, job), directory, job)
    write_record(replace(record, state=State.COMPLETE), directory)
    return Outcome(folder)


@dataclass(frozen=True)
class Outcome:
    """What a job has left in its outputs folder."""

    folder: Path

    @cached_property
    def record(self) -> Mapping[str, Any]:
        return json.loads((self.folder / "runs" / "run" / "results.json").read_text())

    def entry(self, stage: str) -> Path:
        """The cache entry of a stage, by the name that results.json gives it."""
        kind = "evaluation" if stage.startswith("evaluation") else stage.split(":")[0]
        return self.folder / "cache" / kind / self.record["stages"][stage]["key"]

    @cached_property
    def entries(self) -> dict[str, Path]:
        return {stage: self.entry(stage) for stage in self.record["stages"]}


def differences(expected: Outcome, found: Outcome) -> Iterator[str]:
    """In what a result is not the expected one; checked to the bit but for the adapter and its metrics."""
    if found.record["state"] != "complete":
        yield f"the state is {found.record['state']}: {found.record['error']}"
        return
    for stage in ("gradients: pool", "gradients: target", "selection"):
        left, right = (_tensors(outcome.entry(stage)) for outcome in (expected, found))
        if left != right:
            differ = sorted(name for name in left | right if left.get(name) != right.get(name))
            yield f"{stage}: tensors differ in {differ}"
    if without_timings(expected.record["selection"]) != without_timings(found.record["selection"]):
        yield "the reported selection differs"
    if (distance := adapter_distance(expected, found)) > RESUME_PRECISION:
        yield f"the tuned adapter is off by {distance:.2g}"
    for group in ("metrics", "untuned"):
        for task, values in expected.record[group].items():
            for name, value in values.items():
                other = found.record[group][task][name]
                if value != other and not _close(value, other):
                    yield f"{group}.{task}.{name} is {other}, not {value}"
    if parts := [str(p.relative_to(found.folder)) for p in found.folder.rglob("*.part")]:
        yield f"left over: {parts}"


def without_timings(value: Any) -> Any:
    """A JSON value but for what was measured by the clock: seconds, and the kernel chosen by them."""
    if isinstance(value, dict):
        timed = {k for k in value if "seconds" in k} | {"kernel", "checksum"}
        return {k: without_timings(v) for k, v in value.items() if k not in timed}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def adapter_distance(expected: Outcome, found: Outcome) -> float:
    """Largest difference of two weights of the tuned adapters."""
    a, b = (
        load_file(outcome.entry("finetune") / "model" / "adapter_model.safetensors")
        for outcome in (expected, found)
    )
    if a.keys() != b.keys():
        return math.inf
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _tensors(entry: Path) -> dict[str, str]:
    return {name: digest for name, digest in checksums(entry).items() if name.endswith(".safetensors")}


def _close(a: float | str, b: float | str) -> bool:
    return not isinstance(a, str) and not isinstance(b, str) and math.isclose(a, b, rel_tol=RESUME_PRECISION)
