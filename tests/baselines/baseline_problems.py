"""Small selection problems with random gradients, for the tests of the baselines."""

from __future__ import annotations

from dataclasses import replace

import torch

from conftest import conversation
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.base import Budget, SelectionProblem, Unit

RATES = (3e-4, 1e-4)


def features(rows: int, dim: int, seed: int, directions=("sgd", "adam", "less")) -> MemoryFeatures:
    generator = torch.Generator().manual_seed(seed)
    matrices = tuple(
        {d: torch.randn(rows, dim, generator=generator) + 0.2 for d in directions} for _ in RATES
    )
    return MemoryFeatures(matrices, RATES)


def problem(
    n=40, targets: int | None = 6, rows=10, dim=16, subtasks=2, seed=0, texts=None, model=None
) -> SelectionProblem:
    texts = texts or [(f"Question {i}?", f"Answer {i}.") for i in range(n)]
    lengths = torch.tensor([len(q) + len(a) for q, a in texts])
    target = None
    if targets is not None:
        target = [
            conversation(900 + i, f"Target {i}?", f"Yes {i}.", subtask=f"task{i % subtasks}")
            for i in range(targets)
        ]
    return SelectionProblem(
        candidates=[conversation(i, *pair) for i, pair in enumerate(texts)],
        n_tokens=lengths,
        n_completion_tokens=torch.tensor([len(a) for _, a in texts]),
        target=target,
        budget=Budget(Unit.ROWS, rows),
        seed=seed,
        pool_gradients=features(len(texts), dim, 1),
        target_gradients=None if targets is None else features(targets, dim, 2),
        model=model,
    )


def with_rows(given: SelectionProblem, rows: int) -> SelectionProblem:
    return replace(given, budget=Budget(Unit.ROWS, rows))
