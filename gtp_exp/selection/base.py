"""The contract between the pipeline and a selector.

A selector is a frozen dataclass that inherits `Selector` and has a `select` method; one Python file and one
YAML in conf/selector add it, and nothing else changes. docs/extending.md shows one. torch is imported where
tensors are made, so that what a selector was given can be checked before.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from gtp_exp.data.examples import Example, Pool, TokenizedExample
from gtp_exp.decode import check_fields
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import NothingToChoose, UserError
from gtp_exp.gradients.weight import Weight
from gtp_exp.selection.capacity import fitting
from gtp_exp.selection.misuse import explain, place, source_line

if TYPE_CHECKING:
    import torch

    from gtp_exp.gradients.features import GradientFeatures
    from gtp_exp.model.loading import LoadedModel

MEAN_TOLERANCE = 1e-3  # of a selection's weights, well above the rounding of float32


class Unit(Enum):
    """Name what a budget counts."""

    FRACTION = "fraction"  # share of the candidate rows
    ROWS = "rows"
    TOKENS = "tokens"  # total tokens of the chosen rows, prompt included
    ALL = "all"  # all that the selector has to offer: every candidate, or the whole of a given list


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
        check_fields(self, "budget")
        if not 0 < self.amount < float("inf"):
            raise UserError(f"budget.amount={self.amount} chooses nothing; give a positive amount")
        if self.unit is Unit.FRACTION and self.amount > 1:
            raise UserError(f"budget.amount={self.amount} is above 1 for a fraction; 5% is 0.05")
        if self.whole and self.amount != 1:
            raise UserError(
                f"budget.amount={self.amount:g} must be 1 for budget.unit=all, which takes all once"
            )
        if self.unit is not Unit.FRACTION and self.amount != int(self.amount):
            raise UserError(f"budget.amount={self.amount} must be a whole number of {self.unit.value}")

    @property
    def whole(self) -> bool:
        """Return whether all is taken that the selector has to offer."""
        return self.unit is Unit.ALL

    def rows(self, n_candidates: int) -> int | None:
        """Number of rows to choose among the candidates, or None for a token budget."""
        if self.unit is Unit.TOKENS:
            return None
        if self.whole:
            return n_candidates
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
        import torch

        rows = self.rows(len(n_tokens))
        if rows is not None or not len(order):
            return order[:rows]
        prices = n_tokens[order].tolist()
        fits = fitting(prices, int(self.amount))
        if not fits:
            raise NothingToChoose(
                f"budget.amount={self.amount:g} tokens is below the shortest row on offer "
                f"({min(prices)} tokens)"
            )
        return order[torch.tensor(fits)]


@dataclass(frozen=True)
class SelectionProblem:
    """All that a selector may look at. Candidates are the pool rows with at least one completion token.

    candidates: the N rows that may be chosen; an Example has `prompt`, `completion`, `messages` and `id`.
    n_tokens, n_completion_tokens: int64 [N], of the prompt and completion together, and of the completion.
    target: the rows that are aimed at; None in-domain, where the target is the pool itself.
    budget: how much may be chosen; `budget.take(order, n_tokens)` cuts a ranking to it.
    seed: of whatever the selector draws.
    pool_gradients, target_gradients: N rows, and one per target example, at each checkpoint; None unless the
    selector's `needs` hold Need.GRADIENTS, and for the target in-domain. See gtp_exp/gradients/features.py.
    model: the untuned model and its tokenizer; None unless the selector's `needs` hold Need.MODEL.
    candidate_tokens, target_tokens: the rows as the model that chooses reads them; a TokenizedExample has
    `input_ids` and `labels`. Empty where gradients alone are given, by `gtp_exp.select`.
    processes: those of the job, which call a `distributed` selector together.
    scores: float64 [N] by name, the columns of `dataset.scores` that the selector's `score_columns` names.
    """

    candidates: Sequence[Example]
    n_tokens: torch.Tensor
    n_completion_tokens: torch.Tensor
    target: Sequence[Example] | None
    budget: Budget
    seed: int
    pool_gradients: GradientFeatures | None = None
    target_gradients: GradientFeatures | None = None
    model: LoadedModel | None = None
    candidate_tokens: Sequence[TokenizedExample] = ()
    target_tokens: Sequence[TokenizedExample] = ()
    processes: Processes = ALONE
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The chosen candidates, most important first. Raises UserError for what breaks this contract.

    indices: int64 [M], into SelectionProblem.candidates, none twice.
    weights: float32 [M], finite, 0 or more, mean 1: how much each row counts in training.
    scores: float32 [N], finite, one per candidate, larger is better; zeros where the method has none.
    diagnostics: JSON values by name, for the record of the run.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import torch

        kinds = {"indices": torch.int64, "weights": torch.float32, "scores": torch.float32}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, torch.Tensor):
                raise UserError(
                    f"a selection's {name} must be a tensor, not {type(value).__name__}; "
                    f"torch.tensor({name}) makes one"
                )
            if value.dtype != kind or value.ndim != 1:
                method = "long" if kind is torch.int64 else "float"
                raise UserError(
                    f"a selection's {name} must be {str(kind).removeprefix('torch.')} of one dimension, not "
                    f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}; "
                    f"use {name}.flatten().{method}()"
                )
        if len(self.indices) == 0:
            raise UserError("the selection is empty; raise the budget or check the pool")
        if len(self.indices.unique()) != len(self.indices):
            raise UserError("a selection holds the same candidate twice; return every index once")
        if self.weights.shape != self.indices.shape:
            raise UserError(
                f"a selection has {len(self.indices)} indices but weights of shape "
                f"{tuple(self.weights.shape)}; return one weight per index, or unit_weights(n)"
            )
        if not (torch.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise UserError("a selection's weights must be finite and 0 or more")
        if abs((mean := float(self.weights.double().mean())) - 1) > MEAN_TOLERANCE:
            raise UserError(
                f"a selection's weights have mean {mean:.4g} and must have mean 1, or training would take "
                "other steps than it is set to; return weights / weights.mean(), or unit_weights(n)"
            )
        if not torch.isfinite(self.scores).all():
            raise UserError("a selection's scores must be finite; give the lowest score to a row without")
        for name, value in self.diagnostics.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"a selection's diagnostics['{name}'] cannot be kept as JSON ({error}); give numbers, "
                    "texts, and lists or dictionaries of these: value.item() of one number of a tensor or an "
                    "array, value.tolist() of several, None for one that is not finite"
                ) from None


class Selector(abc.ABC):
    """Choose rows out of a pool. What a selector does not say of itself holds as here."""

    needs: ClassVar[frozenset[Need]] = frozenset()  # what `select` reads beside text; the rest is None
    version: ClassVar[int] = 1  # raise it when the same settings choose differently: it enters the cache key
    distributed: ClassVar[bool] = False  # every process of a job calls `select`, not the main one alone
    ignores_budget: ClassVar[bool] = False  # the same rows at every budget: chosen, trained and tested once
    target_end_of_turn: Weight = 1.0  # in the target's gradients; see gtp_exp/gradients/end_of_turn.py

    def reads(self) -> Mapping[str, Any]:
        """Return what the choice depends on besides settings and problem; it enters the cache key."""
        return {}

    def score_columns(self) -> Sequence[str]:
        """Return which columns of `dataset.scores` the choice reads; no others are in the problem."""
        return ()

    def check_pool(self, pool: Pool) -> None:  # noqa: B027  most selectors are given nothing about rows
        """Raise UserError for what the selector was given and does not fit the pool: a job asks before its
        long work, and where it can before its long imports."""

    def offers(self, n_candidates: int) -> int:
        """Return how many rows budget=all takes of so many candidates."""
        return n_candidates

    def check_budget(self, budget: Budget, candidates: Sequence[Example]) -> None:
        """Raise UserError where there is less to choose from than the budget asks for."""
        budget.rows(len(candidates))

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
    except (AttributeError, TypeError, RuntimeError) as error:
        told = _what_is_none(error, selector, problem) or explain(error, problem)
        if not told:
            raise
        raise UserError(f"{name}.select {told}") from error
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


def _what_is_none(error: Exception, selector: Selector, problem: SelectionProblem) -> str:
    """Say which part of the problem a selector has read that is None, and why; "" for another error."""
    if isinstance(error, RuntimeError) or "NoneType" not in str(error):
        return ""
    line, where = source_line(error), f"({place(error)}: {error})"
    given = {Need.GRADIENTS: problem.pool_gradients, Need.MODEL: problem.model}
    undeclared = [need.value for need, part in given.items() if part is None and need not in selector.needs]
    if problem.target is None and "target" in line:
        if Need.GRADIENTS in selector.needs or "target_gradients" not in line:
            return (
                f"reads the problem's target, which is None in-domain: there the pool is the target {where}"
            )
    if undeclared:
        name = min(undeclared, key=lambda name: name not in line)  # one that the line names, if any
        return (
            f"reads the problem's {name}, which {type(selector).__name__} has not asked for {where}; "
            f"declare it: needs = frozenset({{Need.{name.upper()}}})"
        )
    return ""


def _check_budget(name: str, answer: Selection, problem: SelectionProblem) -> None:
    if problem.budget.whole:
        return  # all that it has to offer, whatever that is
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
    import torch

    return torch.ones(n, dtype=torch.float32)
