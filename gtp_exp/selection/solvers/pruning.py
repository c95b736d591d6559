"""Fit the rows of a pursuit together, and cut them down to the budget."""

from __future__ import annotations

import torch

from gtp_exp.selection.capacity import fitting
from gtp_exp.selection.solvers.nnls import Columns, nnls_of_columns
from gtp_exp.selection.solvers.pursuit import PursuitProblem, top
from gtp_exp.selection.solvers.rough import RoughFit, rough_fit


def keep_largest(
    contribution: torch.Tensor, cost: torch.Tensor | None, capacity: int, size: int
) -> torch.Tensor:
    """Return the positions to keep, best first: the `size` largest contributions, or, when rows cost
    (tokens), the largest contributions per token that together cost at most `capacity`; a row that does not
    fit is passed over.
    """
    if cost is None:
        return top(contribution, size)
    order = top(contribution / cost, len(contribution))
    return order[torch.tensor(fitting(cost[order].tolist(), capacity, size), dtype=torch.long)]


def fit_to_prune(columns: Columns, target: torch.Tensor, ridge: float, start: torch.Tensor) -> RoughFit:
    """Fit every target column [m, S] well enough to tell which columns to keep, from weights [k, S].

    Without a ridge nothing holds alike columns apart, a guess is too poor, and the fit is exact.
    """
    if ridge > 0:
        return rough_fit(columns, target, ridge, start).guessed()
    weights, _, _ = fit_columns(columns, target, ridge, start)
    return rough_fit(columns, target, ridge, weights)


def prune(
    columns: Columns, rough: RoughFit, problem: PursuitProblem, stages: int
) -> tuple[Columns, torch.Tensor, torch.Tensor, float]:
    """Cut roughly fitted columns down to the problem's size and capacity, and fit again after each stage.

    Every stage halves the excess. A ridge spreads weight over many alike rows, so the largest weights of the
    merged fit are a poor guess of the rows that do best alone. Backward elimination in stages corrects it, at
    the price of small solves, of which only the last is exact. Returns the columns kept, their weights
    [k, S], the residual [m, S] and the largest KKT residual of the last fit.
    """
    cost, size, capacity = problem.cost, problem.size, problem.capacity
    ids = columns.ids
    position = torch.arange(len(ids))
    for stage in range(stages, 0, -1):
        contribution = torch.linalg.vector_norm(rough.u, dim=1)
        rows = int((contribution > 0).sum())
        price = 0 if cost is None else int(cost[ids[position[contribution > 0]]].sum())
        last = stage == 1 or (rows <= size + 1 and price <= capacity)
        kept = keep_largest(
            contribution,
            None if cost is None else cost[ids[position]],
            capacity if last else max(capacity, (price + capacity) // 2),
            size if last else max(size, (rows + size) // 2),
        )
        position, rough = position[kept], rough.select(kept)
        if last or (len(kept) <= size and price <= capacity):
            break
        rough = rough.solved()
    columns = columns.select(position)
    start = rough.u.double() / torch.where(columns.norms > 0, columns.norms, 1.0)[:, None]
    weights, residual, kkt = fit_columns(columns, problem.target.double(), problem.ridge, start, guess=False)
    return columns, weights, residual, kkt


def fit_columns(
    columns: Columns, target: torch.Tensor, ridge: float, start: torch.Tensor, guess: bool = True
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fit every target column [m, S] on the same rows: weights [k, S], residual [m, S], largest KKT.

    guess: see `nnls_of_columns`.
    """
    fits = [
        nnls_of_columns(columns, target[:, s], ridge=ridge, start=start[:, s], guess=guess)
        for s in range(target.shape[1])
    ]
    weights = torch.stack([one.weights for one in fits], dim=1)
    return weights, torch.stack([one.residual for one in fits], dim=1), max(one.kkt for one in fits)


def contributions(weights: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Return ||W_i|| ||a_i||: how much of the combination a row makes up, whatever the scale of its atom."""
    return torch.linalg.vector_norm(weights, dim=1) * columns.norms
