"""The problem of some candidates alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.picked import picked
from gtp_exp.selection.base import Budget, Selection, SelectionProblem, Selector, Unit, choose_rows

log = logging.getLogger(__name__)


def some_candidates(
    problem: SelectionProblem, index: torch.Tensor, gradients: GradientFeatures | None
) -> SelectionProblem:
    """Return the problem of some candidates alone, with the budget of the whole one, at most all of them.

    gradients: of these candidates.
    """
    rows = problem.budget.rows(len(problem.candidates))
    return replace(
        problem,
        candidates=[problem.candidates[i] for i in index.tolist()],
        n_tokens=problem.n_tokens[index],
        n_completion_tokens=problem.n_completion_tokens[index],
        candidate_tokens=_picked_tokens(problem.candidate_tokens, index),
        pool_gradients=gradients,
        budget=problem.budget
        if rows is None or problem.budget.whole
        else Budget(Unit.ROWS, min(rows, len(index))),
        scores={name: column[index] for name, column in problem.scores.items()},
    )


def select_outside_quarantine(
    selector: Selector, problem: SelectionProblem, pool: torch.Tensor, target: torch.Tensor
) -> Selection:
    """Return what the selector chooses without the rows whose gradient is not finite, by the numbers of all
    candidates. The rows left out get the lowest score, and the diagnostics list their ids.

    pool, target: int64 numbers of these rows.
    """
    if not len(pool) and not len(target):
        return choose_rows(selector, problem)
    kept = others(len(problem.candidates), pool)
    _check_some_left(problem, len(pool), len(target))
    sound = problem
    if len(pool) and problem.pool_gradients is not None:
        sound = some_candidates(problem, kept, picked(problem.pool_gradients, kept))
    if len(target) and problem.target is not None and problem.target_gradients is not None:
        left = others(len(problem.target), target)
        sound = replace(
            sound,
            target=[problem.target[i] for i in left.tolist()],
            target_tokens=_picked_tokens(problem.target_tokens, left),
            target_gradients=picked(problem.target_gradients, left),
        )
    chosen = choose_rows(selector, sound)
    scores = chosen.scores.new_full((len(problem.candidates),), float(chosen.scores.min()))
    scores[kept] = chosen.scores
    ids = [problem.candidates[i].id for i in pool.tolist()]
    ids += [] if problem.target is None else [problem.target[i].id for i in target.tolist()]
    diagnostics = {**chosen.diagnostics, "quarantined": len(ids), "quarantined_ids": ids}
    return Selection(kept[chosen.indices], chosen.weights, scores, diagnostics)


def _check_some_left(problem: SelectionProblem, pool: int, target: int) -> None:
    """Raise UserError where so many rows without a finite gradient leave no row of the pool or the target;
    warn where they leave fewer than the budget asks for."""
    n, wanted = len(problem.candidates), problem.budget.rows(len(problem.candidates))
    for name, gone, all_of in (("pool", pool, n), ("target", target, len(problem.target or ()))):
        if gone and gone == all_of:
            raise UserError(f"none of the {all_of} rows of the {name} has a finite gradient")
    if wanted is not None and not problem.budget.whole and n - pool < wanted:
        log.warning(
            "%d of %d rows of the pool have no finite gradient: %d are chosen, and the budget is %d",
            pool,
            n,
            n - pool,
            wanted,
        )


def _picked_tokens(rows: Sequence[TokenizedExample], index: torch.Tensor) -> Sequence[TokenizedExample]:
    return [rows[i] for i in index.tolist()] if rows else ()


def others(n: int, index: torch.Tensor) -> torch.Tensor:
    """Return the numbers from 0 to n - 1 that an index lacks, ascending."""
    kept = torch.ones(n, dtype=torch.bool)
    kept[index] = False
    return kept.nonzero().flatten()
