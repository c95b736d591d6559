"""Selects from a store under a limit of memory: `python under_a_limit.py STORE TARGET LIMIT RESULT`.

TARGET: the target rows per checkpoint, a safetensors file. LIMIT: in bytes, of what may be allocated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from problems import gtp
from safetensors.torch import load_file

from gtp_benchmarks.performance.measuring import release_free_memory
from gtp_benchmarks.performance.memory_limit import MappedStore, limit_memory
from gtp_benchmarks.performance.selection import PeakMemory, problem
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.selection.base import SelectionProblem

ROWS = 24


def pose(store: GradientFeatures, target: dict[str, torch.Tensor]) -> SelectionProblem:
    return problem(store, [target[key] for key in sorted(target)], ROWS)


def select(asked: SelectionProblem, memory_gib: float) -> list[int]:
    few = {"ridges": [0.3, 3.0], "folds": 2}  # cross-validated as shipped, in less time
    return gtp(memory_gib=memory_gib, **few).select(asked).indices.tolist()


def main() -> None:
    torch.set_num_threads(1)
    store, target, limit, result = sys.argv[1:]
    asked = pose(MappedStore.mapped(store), load_file(target))
    release_free_memory()
    with PeakMemory() as memory:  # begun before the limit: its thread has a stack
        limit_memory(int(limit))
        report: dict[str, Any] = {"indices": select(asked, memory_gib=0.0)}
    report["peak"] = int(memory.peak_gib * 2**30)
    try:
        select(asked, memory_gib=4.0)
    except (MemoryError, RuntimeError) as error:
        report["held"] = str(error)
    Path(result).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
