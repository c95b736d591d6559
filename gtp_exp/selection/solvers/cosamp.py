"""Compressive sampling matching pursuit with non-negative least squares.

CoSaMP (Needell and Tropp, 2009), in the non-negative form that Gradient Trajectory Pursuit uses (Deng, Li,
Li, arXiv 2410.16710): take the 2M atoms that correlate most with the residual, merge them with the support,
solve NNLS on the union, prune to the M largest, fit again. Ours: the warm starts, the Gram matrix kept across
iterations, pruning in stages, the suppression of near copies, and a token budget in place of M.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gtp_exp.selection.atoms.duplicates import near_copies
from gtp_exp.selection.atoms.matrix import Atoms
from gtp_exp.selection.solvers.nnls import Columns, GramCache, columns_of
from gtp_exp.selection.solvers.pruning import contributions, fit_columns, keep_largest, prune
from gtp_exp.selection.solvers.pursuit import Pursuit, strongest

EXACT = 1e-12  # relative residual at which nothing is left to pursue


@dataclass(frozen=True)
class Iterate:
    columns: Columns
    weights: torch.Tensor
    residual: torch.Tensor
    objective: float
    kkt: float


def cosamp(
    atoms: Atoms,
    target: torch.Tensor,
    *,
    size: int,
    ridge: float,
    available: torch.Tensor | None = None,
    candidates: float = 2.0,
    max_iterations: int = 30,
    tolerance: float = 2e-2,
    prune_stages: int = 4,
    near_copy_cosine: float | None = None,
    cost: torch.Tensor | None = None,
    capacity: int = 0,
) -> Pursuit:
    """At most `size` rows whose non-negative combination is closest to target [m, S].

    ridge: lam of the objective. candidates: rows looked at per iteration, as a multiple of size (the paper's
    2). tolerance: stop when an iteration lowers the best objective by a smaller share. prune_stages: 1 is the
    paper's single prune; see `prune`. cost int64 [N] with capacity bounds the summed cost of the rows
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
    best = Iterate(columns, weights, residual, 0.5 * energy, 0.0)

    for _ in range(max_iterations):
        # Proxy: the atoms most correlated with the residual, without those that are already in.
        eligible = available.clone()
        eligible[columns.ids] = False
        if cost is not None:
            eligible &= cost <= capacity
        found, rows = strongest(atoms, residual, eligible, width)
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
        columns, weights, residual, kkt = prune(
            merged, fitted, target, ridge, size=size, cost=cost, capacity=capacity, stages=prune_stages
        )
        columns.cache.keep(columns.ids)

        left = float(residual.square().sum())
        objective = 0.5 * left + 0.5 * ridge * float(weights.square().sum())
        curve.append((left / energy) ** 0.5)
        improved = objective < best.objective * (1 - tolerance)
        if objective < best.objective:
            best = Iterate(columns, weights, residual, objective, kkt)
        if not improved or curve[-1] < EXACT:
            break

    contribution = contributions(best.weights, best.columns)
    order = keep_largest(contribution, None, 0, len(contribution))  # rows that the last fit set to zero leave
    return Pursuit(
        support=best.columns.ids[order],
        weights=best.weights[order],
        contributions=contribution[order],
        objective=best.objective,
        residual=(float(best.residual.square().sum()) / energy) ** 0.5 if energy else 0.0,
        kkt=best.kkt,
        iterations=len(curve),
        seconds=time.perf_counter() - began,
        curve=tuple(curve),
        near_copies=torch.cat(suppressed) if suppressed else torch.empty(0, dtype=torch.long),
        fitted=target - best.residual,
    )
