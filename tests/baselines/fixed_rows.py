"""Gradients of whole numbers, on which official code was run outside the project."""

from __future__ import annotations

from dataclasses import replace

import torch
from baseline_problems import problem, with_rows

from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.base import SelectionProblem

POOL = [
    [-11, -6, -1, 4],
    [-3, 5, -4, -7],
    [-4, 7, 7, -4],
    [9, 0, 9, -10],
    [-10, 7, 2, -2],
    [8, 5, 9, -3],
    [-6, -6, 7, 10],
    [-6, -3, -4, -9],
    [8, -9, -1, 9],
    [-10, -1, -7, -5],
    [9, -2, 1, -5],
    [-4, 11, 0, 9],
    [-3, -8, -10, -9],
    [-11, 10, -6, 10],
]
TARGET = [[-8, -5, -2, 1], [-3, 2, -8, 5], [-7, 0, -4, 0], [-1, 8, -9, 5], [-4, 7, -4, 1]]


def fixed_problem(rows: int) -> SelectionProblem:
    """The problem of choosing `rows` of them, at one checkpoint, the same in every direction."""
    pool, target = (
        MemoryFeatures(({d: torch.tensor(m).float() for d in ("sgd", "less")},), (1e-4,))
        for m in (POOL, TARGET)
    )
    return with_rows(replace(problem(n=14, targets=5), pool_gradients=pool, target_gradients=target), rows)
