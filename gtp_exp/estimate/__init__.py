"""What a command would compute, before anything starts: jobs, distinct stages, passes, tokens, disk, time.

    gtp-exp -m experiment=NAME --estimate

jobs.py composes the jobs on Hydra's side. The rest runs in a process of its own, as a worker does, because
the classes that the YAML names import torch: parts.py builds every job and reads the models and the data that
are on this machine, with placeholders for those that are not; walk.py goes through the pipeline's own stages
with a cache that only looks; runs.py and rates.py ask finished runs how long such stages took; table.py
writes it down. Nothing is downloaded, written or started.
"""
