"""Compressive sampling matching pursuit with non-negative least squares.

CoSaMP (Needell and Tropp, 2009), in the non-negative form that Gradient Trajectory Pursuit uses (Deng, Li,
Li, arXiv 2410.16710): take the 2M atoms that correlate most with the residual, merge them with the support,
solve NNLS on the union, prune to the M largest, fit again. Ours: the warm starts, the Gram matrix kept across
iterations, pruning in stages, the suppression of near copies, and a token budget in place of M.
"""

from __future__ import annotations

import time

import torch

from gtp_exp.selection.atoms import Atoms
from gtp_exp.selection.duplicates import near_copies
from gtp_exp.selection.nnls import Columns, GramCache, columns_of, fit
from gtp_exp.selection.pursuit import Pursuit, keep_largest, strongest

EXACT = 1e-12  # relative residual at which nothing is left to pursue


def cosamp(
    atoms: Atoms,
    target: torch.Tensor,
    *,
    size: int,
    ridge: float,
    available: torch.Tensor | None = None,
    candidates: float = 2.0,
    max_iterations: int = 30,
    tolerance: float = 1e-3,
    prune_stages: int = 8,
    near_copy_cosine: float | None = None,
    cost: torch.Tensor | None = None,
    capacity: int = 0,
) -> Pursuit:
    """At most `size` rows whose non-negative combination is closest to target [m, S].

    ridge: lam of the objective. candidates: rows looked at per iteration, as a multiple of size (the paper's
    2). tolerance: stop when an iteration lowers the best objective by a smaller share. prune_stages: 1 is the
    paper's single prune; see `_prune`. cost int64 [N] with capacity bounds the summed cost of the rows
    (tokens); size then only bounds their number.
    """
    began = time.perf_counter()
    target = target.double()
    energy = float(target.square().sum())
    n, m = atoms.shape
    available = torch.ones(n, dtype=torch.bool) if available is None else available.clone()
    width = max(1, round(candidates * size))
    columns = columns_of(torch.empty(0, m), torch.empty(0, dtype=torch.long), GramCache())
    weights = torch.empty(0, target.shape[1], dtype=torch.float64)
    residual, curve, suppressed = target, [], []
    best = None

    for _ in range(max_iterations):
        # Proxy: the atoms most correlated with the residual, without those that are already in.
        eligible = available.clone()
        eligible[columns.ids] = False
        if cost is not None:
            eligible &= cost <= capacity
        correlation = atoms.correlate(residual.float())
        found, rows = strongest(atoms, correlation, residual, eligible, width)
        if not len(found):
            break
        merged = columns.join(columns_of(rows, found, columns.cache))
        if near_copy_cosine is not None:
            cosines = merged.unit.float() @ merged.unit.float().T
            near = near_copies(cosines, near_copy_cosine, kept=len(columns.ids))
            suppressed.append(merged.ids[near])
            available[merged.ids[near]] = False
            merged = merged.select(~near)

        # Merge, fit, prune, fit again.
        warm = torch.cat([weights, weights.new_zeros(len(merged.ids) - len(weights), weights.shape[1])])
        fitted, _, _ = fit_columns(merged, target, ridge, warm)
        columns, weights, residual, kkt = _prune(
            merged, fitted, target, ridge, size=size, cost=cost, capacity=capacity, stages=prune_stages
        )

        left = float(residual.square().sum())
        objective = 0.5 * left + 0.5 * ridge * float(weights.square().sum())
        curve.append((left / energy) ** 0.5)
        improved = best is None or objective < best[0] * (1 - tolerance)
        if best is None or objective < best[0]:
            best = (
                objective,
                curve[-1],
                kkt,
                columns.ids,
                weights,
                contributions(weights, columns),
                target - residual,
            )
        if not improved or curve[-1] < EXACT:
            break

    if best is None:
        best = (0.5 * energy, 1.0, 0.0, columns.ids, weights, contributions(weights, columns), 0 * target)
    objective, relative, kkt, support, weights, contribution, fitted = best
    order = keep_largest(contribution, None, 0, len(support))  # rows that the last fit set to zero drop out
    return Pursuit(
        support=support[order],
        weights=weights[order],
        contributions=contribution[order],
        objective=objective,
        residual=relative,
        kkt=kkt,
        iterations=len(curve),
        seconds=time.perf_counter() - began,
        curve=tuple(curve),
        near_copies=torch.cat(suppressed) if suppressed else torch.empty(0, dtype=torch.long),
        fitted=fitted,
    )


def _prune(
    columns: Columns,
    weights: torch.Tensor,
    target: torch.Tensor,
    ridge: float,
    *,
    size: int,
    cost: torch.Tensor | None,
    capacity: int,
    stages: int,
) -> tuple[Columns, torch.Tensor, torch.Tensor, float]:
    """Down to `size` rows (and `capacity`), fitting again after each stage; every stage halves the excess.

    A ridge spreads weight over many alike rows, so the largest weights of the merged fit are a poor guess of
    the rows that do best alone. Backward elimination in stages corrects it, at the price of small solves.
    """
    for stage in range(stages, 0, -1):
        contribution = contributions(weights, columns)
        rows = int((contribution > 0).sum())
        price = 0 if cost is None else int(cost[columns.ids[contribution > 0]].sum())
        last = stage == 1 or (rows <= size + 1 and price <= capacity)
        kept = keep_largest(
            contribution,
            None if cost is None else cost[columns.ids],
            capacity if last else max(capacity, (price + capacity) // 2),
            size if last else max(size, (rows + size) // 2),
        )
        columns = columns.select(kept)
        weights, residual, kkt = fit_columns(columns, target, ridge, weights[kept], guess=False)
        if last or (len(kept) <= size and price <= capacity):
            break
    return columns, weights, residual, kkt


def fit_columns(
    columns: Columns, target: torch.Tensor, ridge: float, start: torch.Tensor, guess: bool = True
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """NNLS of every target column on the same rows: weights [k, S], residual [m, S], worst KKT residual."""
    fits = [
        fit(columns, target[:, s], ridge=ridge, start=start[:, s], guess=guess)
        for s in range(target.shape[1])
    ]
    weights = torch.stack([one.weights for one in fits], dim=1)
    return weights, torch.stack([one.residual for one in fits], dim=1), max(one.kkt for one in fits)


def contributions(weights: torch.Tensor, columns: Columns) -> torch.Tensor:
    """||W_i|| ||a_i||: how much of the combination a row makes up, whatever the scale of its atom."""
    return torch.linalg.vector_norm(weights, dim=1) * columns.norms
