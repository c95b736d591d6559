"""One process of several that select together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from planted import clusters
from problems import gtp, problem

from gtp_exp.distributed import ALONE, SENT, Processes, connect
from gtp_exp.errors import UserError
from gtp_exp.selection.solvers.elastic_net import ElasticNet
from gtp_exp.selection.solvers.greedy import Greedy
from gtp_exp.selection.solvers.omp import OMP, BlockOMP

N = 2500  # shares end inside a block of 1024 rows
FIXED = {"regularisation": "fixed"}
ROUNDED = N * 2 * 64 / 2**30  # GiB: room for a byte of every number, and not for float32 of a third of them
CASES = {
    "as shipped": ({}, {}),
    "cross-validated": ({"regularisation": "cross_validation"}, {}),
    "whitened": ({"metric": "whitened", "metric_dim": 16, "memory_gib": 0.0, **FIXED}, {}),
    "whitened exactly": ({"metric": "whitened", **FIXED}, {}),
    "in-domain": (FIXED, {"in_domain": True}),
    "streamed": ({"memory_gib": 0.0, "chunk_rows": 300, **FIXED}, {}),
    "rounded": ({"memory_gib": ROUNDED, **FIXED}, {}),
    "pca, rounded": ({"subspace": "pca", "subspace_dim": 16, "memory_gib": ROUNDED / 4, **FIXED}, {}),
    "pca": ({"subspace": "pca", "subspace_dim": 16, "subspace_rows": 500, **FIXED}, {}),
    "svd, streamed": ({"subspace": "svd", "subspace_dim": 8, "memory_gib": 0.0, **FIXED}, {}),
    "one round": ({"memory_gib": 0.0, **FIXED}, {}),
    "beyond the rank": ({"round_rows": 40, **FIXED}, {"rows": 600}),
    "half precision": ({"memory_gib": 0.0, **FIXED}, {"dtype": torch.float16}),
    "tokens": (FIXED, {"rows": None, "tokens": 900}),
    "every row": ({"max_rounds": 2, **FIXED}, {"rows": N}),
    **{solver.name: ({"solver": solver, **FIXED}, {}) for solver in (OMP(), BlockOMP(steps=5), ElasticNet())},
    "greedy": ({"solver": Greedy(steps=4), **FIXED}, {}),
    "in parts": ({"partitions": 4, **FIXED}, {}),
    "not finite": (FIXED, {"spoiled": N - 3}),
}

OF_THREE = ("as shipped", "streamed", "rounded", "one round", "not finite")


def pose(in_domain=False, rows=90, tokens=None, dtype=torch.float32, spoiled=None):
    data = clusters(N, 64, 0, count=20, wanted=3, target_rows=24)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1))).Q
    pool = [data.atoms, data.atoms @ turn]
    for matrix in pool:
        matrix[N - 200 :] = matrix[:200]  # copies, in another share than what they copy
    pool = [matrix.to(dtype) for matrix in pool]
    if spoiled is not None:
        pool[1][spoiled, 5] = float("nan")
    target = None if in_domain else [data.target_rows, data.target_rows @ turn]
    return problem(pool, target, rows=rows, tokens=tokens)


def solve(name: str, processes: Processes) -> dict:
    from dataclasses import replace

    settings, how = CASES[name]
    SENT.clear()
    try:
        selection = gtp(**settings).select(replace(pose(**how), processes=processes))
    except (UserError, ValueError) as error:
        return {"error": str(error)}
    rounds = selection.diagnostics.get("rounds", [])
    return {
        "indices": selection.indices.tolist(),
        "weights": selection.weights.tolist(),
        "passes": sum(one["iterations"] for one in rounds),
        "sent": SENT["numbers"],
    }


def main(folder: Path) -> None:
    """Run every case, as one process with RANK and the like set, and write what it chose to
    <folder>/<number of processes>-<rank>.json."""
    torch.set_num_threads(1)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    processes = connect(size, torch.device("cpu")) if size > 1 else ALONE
    by_case = {name: solve(name, processes) for name in (CASES if size < 3 else OF_THREE)}
    (folder / f"{size}-{processes.rank}.json").write_text(json.dumps(by_case))
    processes.barrier()
    os._exit(0)  # as the worker ends: an interpreter that shuts down may find gloo's threads at work
