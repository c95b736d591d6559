"""Selection problems with features in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from gtp_exp.config import build
from gtp_exp.data.examples import Example
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.base import Budget, SelectionProblem, Unit
from gtp_exp.selection.gtp import GTP

CONF = Path(__file__).resolve().parents[1] / "conf"


def gtp(**settings) -> GTP:
    """The shipped configuration with some settings replaced."""
    node = yaml.safe_load((CONF / "selector" / "gtp.yaml").read_text())
    return build({**node, **settings}, "selector")


def features(matrices: Sequence[torch.Tensor], rates=None, directions=("sgd", "adam")) -> MemoryFeatures:
    rates = [1e-4 / (t + 1) for t in range(len(matrices))] if rates is None else rates
    return MemoryFeatures(tuple({d: x for d in directions} for x in matrices), tuple(rates))


def problem(
    pool: Sequence[torch.Tensor],
    target: Sequence[torch.Tensor] | None,
    *,
    rows: int | None = None,
    tokens: int | None = None,
    subtasks: Sequence[str] | None = None,
    seed: int = 0,
    rates=None,
) -> SelectionProblem:
    """Sketches per checkpoint of pool [N, d] and target rows [n, d]; every row has 10 to 59 tokens."""
    n = len(pool[0])
    n_tokens = torch.randint(10, 60, (n,), generator=torch.Generator().manual_seed(99))
    budget = Budget(Unit.ROWS, rows) if tokens is None else Budget(Unit.TOKENS, tokens)
    examples = None
    if target is not None:
        names = subtasks or [""] * len(target[0])
        examples = [Example(f"target-{j}", (), name) for j, name in enumerate(names)]
    return SelectionProblem(
        candidates=[Example(f"row-{i}", ()) for i in range(n)],
        n_tokens=n_tokens,
        n_completion_tokens=n_tokens // 2,
        target=examples,
        budget=budget,
        seed=seed,
        pool_gradients=features(pool, rates),
        target_gradients=None if target is None else features(target, rates),
    )


def with_features(made: SelectionProblem, pool, target="keep") -> SelectionProblem:
    return replace(
        made, pool_gradients=pool, target_gradients=made.target_gradients if target == "keep" else target
    )
