"""The contract between the pipeline and a selector.

A selector is a frozen dataclass with a `select` method and two class variables; one Python file and one YAML
in conf/selector add it, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from gtp_exp.data.examples import Example
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import NothingToChoose, UserError

if TYPE_CHECKING:
    from gtp_exp.gradients.features import GradientFeatures
    from gtp_exp.model.loading import LoadedModel


class Unit(Enum):
    FRACTION = "fraction"  # share of the candidate rows
    ROWS = "rows"
    TOKENS = "tokens"  # total tokens of the chosen rows, prompt included


class Need(Enum):
    """What a selector reads beyond the examples' text; the pipeline computes only what is needed."""

    GRADIENTS = "gradients"
    MODEL = "model"


@dataclass(frozen=True)
class Budget:
    unit: Unit
    amount: float

    def __post_init__(self) -> None:
        if not 0 < self.amount < float("inf"):
            raise UserError(f"budget.amount={self.amount} chooses nothing; give a positive amount")
        if self.unit is Unit.FRACTION and self.amount > 1:
            raise UserError(f"budget.amount={self.amount} is above 1 for a fraction; 5% is 0.05")
        if self.unit is not Unit.FRACTION and self.amount != int(self.amount):
            raise UserError(f"budget.amount={self.amount} must be a whole number of {self.unit.value}")

    def rows(self, n_candidates: int) -> int | None:
        """Number of rows to choose among the candidates, or None for a token budget."""
        if self.unit is Unit.TOKENS:
            return None
        if self.unit is Unit.FRACTION:
            return max(1, round(self.amount * n_candidates))
        if self.amount > n_candidates:
            raise UserError(
                f"budget.amount={self.amount:g} rows is more than the {n_candidates} candidates; "
                "lower it or use budget=100pct"
            )
        return int(self.amount)

    def take(self, order: torch.Tensor, n_tokens: torch.Tensor) -> torch.Tensor:
        """The rows of a ranking (best first) that fit the budget: the first M, or, for tokens,
        every row in turn that still fits, so that the bound is exact.

        order: int64 [k] candidate indices, no repeats. n_tokens: int64 [N].
        """
        rows = self.rows(len(n_tokens))
        if rows is not None:
            return order[:rows]
        left, taken = int(self.amount), []
        shortest = int(n_tokens.min())
        for i in order.tolist():
            if left < shortest:
                break
            if int(n_tokens[i]) <= left:
                taken.append(i)
                left -= int(n_tokens[i])
        if not taken:
            raise NothingToChoose(
                f"budget.amount={self.amount:g} tokens is below the shortest candidate ({shortest} tokens)"
            )
        return torch.tensor(taken, dtype=torch.long)


@dataclass(frozen=True)
class SelectionProblem:
    """All that a selector may look at. Candidates are the pool rows with at least one completion token.

    `target` is None in-domain: the target is then the pool itself.
    Gradients are given only to a selector that needs them, likewise the model.
    """

    candidates: Sequence[Example]  # N rows
    n_tokens: torch.Tensor  # int64 [N], prompt and completion
    n_completion_tokens: torch.Tensor  # int64 [N]
    target: Sequence[Example] | None
    budget: Budget
    seed: int
    pool_gradients: GradientFeatures | None = None  # N rows per checkpoint
    target_gradients: GradientFeatures | None = None  # one row per target example; None in-domain
    model: LoadedModel | None = None  # the untuned model and its tokenizer
    processes: Processes = ALONE  # that call a `distributed` selector together


@dataclass(frozen=True)
class Selection:
    """The chosen candidates, most important first."""

    indices: torch.Tensor  # int64 [M], into SelectionProblem.candidates, no repeats
    weights: torch.Tensor  # float32 [M], finite, >= 0, mean 1
    scores: torch.Tensor  # float32 [N], finite, larger is better; zeros where the method has none
    diagnostics: Mapping[str, Any] = field(default_factory=dict)  # JSON values only

    def __post_init__(self) -> None:
        if len(self.indices) == 0:
            raise UserError("the selection is empty; raise the budget or check the pool")
        if len(self.indices.unique()) != len(self.indices):
            raise ValueError("a selector returned the same candidate twice")
        if self.weights.shape != self.indices.shape:
            raise ValueError(f"{len(self.indices)} indices but weights of shape {tuple(self.weights.shape)}")
        if not (torch.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise ValueError("selection weights must be finite and non-negative")
        if not torch.isfinite(self.scores).all():
            raise ValueError("selection scores must be finite")


class Selector(Protocol):
    needs: ClassVar[frozenset[Need]]
    version: ClassVar[int]  # raise it when the same settings choose differently: it enters the cache key
    # Optional: distributed: ClassVar[bool], every process of a job calls `select`, not the main one alone.
    # Optional: reads(), what the choice depends on besides settings and problem; it enters the cache key.

    def select(self, problem: SelectionProblem) -> Selection: ...


def unit_weights(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.float32)
