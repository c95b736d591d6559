"""The contract between the pipeline and a selector.

A selector is a frozen dataclass that inherits `Selector` and has a `select` method; one Python file and one
YAML in conf/selector add it, and nothing else changes. docs/extending.md shows one.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gtp_exp.data.examples import Example, TokenizedExample
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import NothingToChoose, UserError

if TYPE_CHECKING:
    from gtp_exp.gradients.features import GradientFeatures
    from gtp_exp.model.loading import LoadedModel


class Unit(Enum):
    """Name what a budget counts."""

    FRACTION = "fraction"  # share of the candidate rows
    ROWS = "rows"
    TOKENS = "tokens"  # total tokens of the chosen rows, prompt included


class Need(Enum):
    """What a selector reads beyond the examples' text; the pipeline computes only what is needed."""

    GRADIENTS = "gradients"
    MODEL = "model"


@dataclass(frozen=True)
class Budget:
    """Say how much may be chosen."""

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
    candidate_tokens: Sequence[TokenizedExample] = ()  # as the model that chooses reads them
    target_tokens: Sequence[TokenizedExample] = ()
    processes: Processes = ALONE  # that call a `distributed` selector together


@dataclass(frozen=True)
class Selection:
    """The chosen candidates, most important first."""

    indices: torch.Tensor  # int64 [M], into SelectionProblem.candidates, no repeats
    weights: torch.Tensor  # float32 [M], finite, >= 0, mean 1
    scores: torch.Tensor  # float32 [N], finite, larger is better; zeros where the method has none
    diagnostics: Mapping[str, Any] = field(default_factory=dict)  # JSON values only

    def __post_init__(self) -> None:
        for name in ("indices", "weights", "scores"):
            if not isinstance(getattr(self, name), torch.Tensor):
                raise UserError(
                    f"a selection's {name} must be a tensor, not {type(getattr(self, name)).__name__}; "
                    f"torch.tensor({name}) makes one"
                )
        if len(self.indices) == 0:
            raise UserError("the selection is empty; raise the budget or check the pool")
        if self.indices.dtype != torch.int64:
            raise UserError(
                f"a selection's indices must be int64, not {self.indices.dtype}; use indices.long()"
            )
        if len(self.indices.unique()) != len(self.indices):
            raise UserError("a selection holds the same candidate twice; return every index once")
        if self.weights.shape != self.indices.shape:
            raise UserError(
                f"a selection has {len(self.indices)} indices but weights of shape "
                f"{tuple(self.weights.shape)}; return one weight per index, or unit_weights(n)"
            )
        if not (torch.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise UserError("a selection's weights must be finite and 0 or more")
        if not torch.isfinite(self.scores).all():
            raise UserError("a selection's scores must be finite; give the lowest score to a row without")


class Selector(abc.ABC):
    """Choose rows out of a pool. What a selector does not say of itself holds as here."""

    needs: ClassVar[frozenset[Need]] = frozenset()  # beyond the examples' text; without it it is not there
    version: ClassVar[int] = 1  # raise it when the same settings choose differently: it enters the cache key
    distributed: ClassVar[bool] = False  # every process of a job calls `select`, not the main one alone
    ignores_budget: ClassVar[bool] = False  # the same rows at every budget: chosen, trained and tested once

    def reads(self) -> Mapping[str, Any]:
        """Return what the choice depends on besides settings and problem; it enters the cache key."""
        return {}

    @abc.abstractmethod
    def select(self, problem: SelectionProblem) -> Selection:
        """Return the chosen candidates, most important first: as many as the problem's budget asks for."""


def choose_rows(selector: Selector, problem: SelectionProblem) -> Selection:
    """Return what a selector chooses, held to the contract.

    Raises UserError, by the selector's class and with what to return, for an answer that is no Selection,
    that misses the budget, or whose arrays do not fit the problem.
    """
    name = type(selector).__name__
    try:
        answer = selector.select(problem)
    except (AttributeError, TypeError) as error:
        if "NoneType" in str(error) and (undeclared := _undeclared(selector, problem)):
            raise UserError(
                f"{name} reads the problem's {undeclared}, which it has not asked for ({error}); declare it: "
                f"needs = frozenset({{Need.{undeclared.upper()}}})"
            ) from error
        raise
    if not isinstance(answer, Selection):
        raise UserError(
            f"{name}.select returned {type(answer).__name__}; return "
            "gtp_exp.selection.base.Selection(indices, weights, scores)"
        )
    candidates = len(problem.candidates)
    if int(answer.indices.min()) < 0 or int(answer.indices.max()) >= candidates:
        raise UserError(
            f"{name}.select returned an index outside the {candidates} candidates, 0 to {candidates - 1}"
        )
    if answer.scores.shape != (candidates,):
        raise UserError(
            f"{name}.select returned scores of shape {tuple(answer.scores.shape)}; return one for each "
            f"of the {candidates} candidates, zeros where the method has none"
        )
    if not selector.ignores_budget:
        _check_budget(name, answer, problem)
    return answer


def _undeclared(selector: Selector, problem: SelectionProblem) -> str:
    """Name what a selector has not asked for and was not given; empty where it was given everything."""
    given = {Need.GRADIENTS: problem.pool_gradients, Need.MODEL: problem.model}
    return next(
        (need.value for need, value in given.items() if value is None and need not in selector.needs), ""
    )


def _check_budget(name: str, answer: Selection, problem: SelectionProblem) -> None:
    chosen, wanted = len(answer.indices), problem.budget.rows(len(problem.candidates))
    if wanted is not None and chosen != wanted:
        raise UserError(
            f"{name}.select returned {chosen} rows, the budget is {wanted}; problem.budget.take(order, "
            "problem.n_tokens) cuts a ranking to it, or set ignores_budget = True"
        )
    tokens = int(problem.n_tokens[answer.indices].sum())
    if wanted is None and tokens > problem.budget.amount:
        raise UserError(
            f"{name}.select returned rows of {tokens} tokens, the budget is {problem.budget.amount:g}; "
            "problem.budget.take(order, problem.n_tokens) cuts a ranking to it"
        )


def unit_weights(n: int) -> torch.Tensor:
    """Return the weights of n rows that all count the same, float32 [n]."""
    return torch.ones(n, dtype=torch.float32)
