"""Selection problems with features in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from options import option

from gtp_exp.config import build
from gtp_exp.data.examples import Example
from gtp_exp.gradients.features import MemoryFeatures, TensorRows
from gtp_exp.selection.base import Budget, SelectionProblem, Unit
from gtp_exp.selection.gtp import GTP


def shipped(selector: str = "gtp") -> dict[str, Any]:
    """Return the config node of a selector, with what its defaults list adds."""
    return option("selector", selector)


def gtp(**settings: Any) -> GTP:
    """Return the shipped configuration with some settings replaced, given as YAML gives them.

    Only a solver is given as the object that it is.
    """
    solver = settings.pop("solver", None)
    built = build({**shipped(), **settings}, "selector")
    return built if solver is None else replace(built, solver=solver)


def features(matrices: Sequence[torch.Tensor], rates=None, directions=("sgd", "adam")) -> MemoryFeatures:
    """Return gradients that hold one matrix [n, d] per checkpoint, the same in every direction."""
    rates = [1e-4 / (t + 1) for t in range(len(matrices))] if rates is None else rates
    return MemoryFeatures(tuple({d: x for d in directions} for x in matrices), tuple(rates))


@dataclass
class CountedRows:
    """Rows that count as read from a disk: `passes` over all of them, and in `sizes` how many at once."""

    matrix: torch.Tensor
    passes: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        self.passes += 1
        for start, chunk in TensorRows(self.matrix).chunks(size, span):
            self.sizes.append(len(chunk))
            yield start, chunk

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(index))
        return self.matrix[index]


@dataclass(frozen=True)
class CountedFeatures(MemoryFeatures):
    """Gradients whose rows, one of `counted` per checkpoint, remember what was asked for."""

    counted: tuple[CountedRows, ...]

    @classmethod
    def of(cls, matrices: Sequence[torch.Tensor]) -> CountedFeatures:
        held = features(matrices)
        return cls(held.matrices, held.learning_rates, tuple(CountedRows(matrix) for matrix in matrices))

    def features(self, checkpoint: int, direction: str) -> Any:
        return self.counted[checkpoint]


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
    """Return the problem of sketches per checkpoint, of the pool [N, d] and of target rows [n, d].

    Every row has 10 to 59 tokens.
    """
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


def with_features(posed: SelectionProblem, pool, target="keep") -> SelectionProblem:
    """Return a problem with other gradients."""
    return replace(
        posed, pool_gradients=pool, target_gradients=posed.target_gradients if target == "keep" else target
    )
