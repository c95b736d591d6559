"""What each process of a test runs: tasks that have fewer documents than there are processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from toy import CHOICE

from gtp_exp.data.benchmark import EvalTask
from gtp_exp.distributed import connect
from gtp_exp.evaluation.tasks import evaluate
from gtp_exp.model.loading import ModelConfig, prepare

QUESTIONS = ["Is 2 even?", "Is it even? " * 98, "Is it even? " * 99]


def main(config: ModelConfig, folder: Path) -> None:
    """Write the metrics of every task as this process finds them with the other."""
    torch.set_num_threads(1)
    processes = connect(2, torch.device("cpu"))
    loaded, found = prepare(config, folder, torch.device("cpu")).load(), {}
    for name, task in tasks().items():
        directory = folder / f"{name}-{processes.rank}"
        directory.mkdir()
        found[name] = evaluate(
            task, loaded, held_out=(), batch_size=4, directory=directory, processes=processes
        )
    (folder / f"{processes.rank}.json").write_text(json.dumps(found))
    processes.barrier()
    os._exit(0)  # as the worker ends: an interpreter that shuts down may find gloo's threads at work


def tasks() -> dict[str, EvalTask]:
    """Return tasks of one document, and of one that is left of three."""
    rows = tuple({"question": q, "choices": ["yes", "no"], "gold": 0} for q in QUESTIONS)
    return {name: EvalTask(name, "acc,none", CHOICE, rows[:n]) for name, n in (("single", 1), ("left", 3))}
