"""Non-negative orthogonal matching pursuit, one atom or a block of atoms per pass: the classical baseline.

Each step adds the atoms that correlate most with the residual and fits all weights again (Pati et al., 1993;
the non-negative form of Bruckstein, Elad and Zibulevsky, 2008). The Cholesky factor of the support's Gram
matrix is extended, not computed again; when the plain solution turns negative, NNLS on the support replaces
it and atoms at zero leave. GradMatch's OMP (Killamsetty et al., arXiv 2103.00123) is the one-atom form with a
full refit.
"""

from __future__ import annotations

import math
import time

import torch

from gtp_exp.errors import UserError
from gtp_exp.selection.atoms.duplicates import near_copies
from gtp_exp.selection.atoms.matrix import Atoms
from gtp_exp.selection.solvers.nnls import DEPENDENT, Columns, GramCache, columns_of, fit
from gtp_exp.selection.solvers.pursuit import Pursuit, strongest

CORRELATION = 1e-7  # of a unit atom with the residual, over ||b||: below it rounding picks, not the data


def omp(
    atoms: Atoms,
    target: torch.Tensor,
    *,
    size: int,
    ridge: float,
    available: torch.Tensor | None = None,
    near_copy_cosine: float | None = None,
    cost: torch.Tensor | None = None,
    capacity: int = 0,
) -> Pursuit:
    """One atom per pass over the pool. Arguments as in `block_omp`."""
    return block_omp(
        atoms,
        target,
        size=size,
        ridge=ridge,
        available=available,
        near_copy_cosine=near_copy_cosine,
        cost=cost,
        capacity=capacity,
        steps=size,
    )


def block_omp(
    atoms: Atoms,
    target: torch.Tensor,
    *,
    size: int,
    ridge: float,
    available: torch.Tensor | None = None,
    near_copy_cosine: float | None = None,
    cost: torch.Tensor | None = None,
    capacity: int = 0,
    steps: int = 50,
) -> Pursuit:
    """At most `size` rows, ceil(size / steps) of them per pass; target [m, 1].

    A row that has left the support may come back. Ends when no available atom correlates positively. With
    cost int64 [N] (tokens), atoms that no longer fit into capacity are passed over.
    """
    began = time.perf_counter()
    if target.shape[1] != 1:
        raise UserError(
            f"OMP pursues one target, not {target.shape[1]} columns; "
            "set selector.target_columns=mean or selector.solver=cosamp"
        )
    b = target.double()[:, 0]
    length = float(b.norm())
    n, m = atoms.shape
    available = torch.ones(n, dtype=torch.bool) if available is None else available.clone()
    columns = columns_of(torch.empty(0, m), torch.empty(0, dtype=torch.long), GramCache())
    factor = torch.empty(0, 0, dtype=torch.float64)
    u = torch.empty(0, dtype=torch.float64)  # weights of the unit atoms
    residual, kkt = b, 0.0
    curve, suppressed = [], []
    block = math.ceil(size / steps)
    # Atoms may leave, so a support of `size` can take more steps than size / block; twice is plenty.
    for _ in range(2 * math.ceil(size / block)):
        if len(columns.ids) >= size:
            break
        eligible = available.clone()
        eligible[columns.ids] = False
        if cost is not None:
            eligible &= cost <= capacity - int(cost[columns.ids].sum())
        found, rows = strongest(atoms, residual[:, None], eligible, min(block, size - len(columns.ids)))
        if cost is not None and len(found):
            fits = _fitting(cost[found], capacity - int(cost[columns.ids].sum()))
            found, rows = found[fits], rows[fits]
        fresh = columns_of(rows, found, columns.cache)
        if near_copy_cosine is not None and len(found):
            cosines = fresh.unit @ torch.cat([columns.unit, fresh.unit]).T
            near = _repeats(cosines, len(columns.ids), near_copy_cosine)
            suppressed.append(found[near])
            available[found[near]] = False
            if near.all():
                continue
            fresh = fresh.select(~near)
        fresh = fresh.select(fresh.unit @ residual > CORRELATION * length)
        if not len(fresh.ids):
            break
        columns, factor = _extend(columns, fresh, factor, ridge)
        u = torch.cholesky_solve((columns.unit @ b)[:, None], factor)[:, 0]
        if (u <= 0).any():
            exact = fit(columns, b, ridge=ridge, start=u.clamp(min=0) / columns.norms, guess=False)
            keep = (exact.weights > 0).nonzero().flatten()
            columns, u = columns.select(keep), exact.weights[keep] * columns.norms[keep]
            factor = _factor(columns, ridge)
        residual = b - columns.unit.T @ u
        curve.append(float(residual.norm()) / length)

    weights = u / columns.norms
    if len(u):
        gradient = ridge * weights / columns.norms - columns.unit @ residual
        kkt = float(gradient.abs().max() / (columns.unit @ b).max())
    left = float(residual.square().sum())
    order = u.sort(descending=True, stable=True).indices
    return Pursuit(
        support=columns.ids[order],
        weights=weights[order, None],
        contributions=u[order],
        objective=0.5 * left + 0.5 * ridge * float(weights.square().sum()),
        residual=math.sqrt(left) / length if length else 0.0,
        kkt=kkt,
        iterations=len(curve),
        seconds=time.perf_counter() - began,
        curve=tuple(curve),
        near_copies=torch.cat(suppressed) if suppressed else torch.empty(0, dtype=torch.long),
        fitted=(b - residual)[:, None],
    )


def _fitting(prices: torch.Tensor, left: int) -> torch.Tensor:
    """Positions, in order, of the rows that still fit when taken in turn."""
    fits = []
    for position, price in enumerate(prices.tolist()):
        if price <= left:
            fits.append(position)
            left -= price
    return torch.tensor(fits, dtype=torch.long)


def _repeats(cosines: torch.Tensor, kept: int, threshold: float) -> torch.Tensor:
    """Which fresh atoms [k] repeat a kept one or an earlier fresh one; cosines [k, kept + k]."""
    near = (cosines[:, :kept] > threshold).any(1)
    among = torch.where(near[:, None] | near, 0.0, cosines[:, kept:])
    return near | near_copies(among, threshold, kept=0)


def _extend(
    columns: Columns, fresh: Columns, factor: torch.Tensor, ridge: float
) -> tuple[Columns, torch.Tensor]:
    """Add atoms to the support and rows to its Cholesky factor; atoms in the support's span are left out."""
    while True:
        joined = columns.join(fresh)
        old = len(columns.ids)
        gram = joined.cache.gram(joined.ids, lambda new, of=joined: of.unit[new])
        gram.diagonal().add_(ridge / joined.norms.square())
        cross = torch.linalg.solve_triangular(factor, gram[:old, old:], upper=False)
        corner, info = torch.linalg.cholesky_ex(gram[old:, old:] - cross.T @ cross)
        failed = int(info)
        pivots = corner.diagonal()[: failed - 1 if failed else None].square()
        bad = (pivots < DEPENDENT).nonzero().flatten().tolist() + ([failed - 1] if failed else [])
        if not bad:
            break
        keep = torch.ones(len(fresh.ids), dtype=torch.bool)
        keep[bad] = False
        fresh = fresh.select(keep)
    grown = gram.new_zeros(len(gram), len(gram))
    grown[:old, :old], grown[old:, :old], grown[old:, old:] = factor, cross.T, corner
    return joined, grown


def _factor(columns: Columns, ridge: float) -> torch.Tensor:
    gram = columns.cache.gram(columns.ids, lambda new: columns.unit[new])
    gram.diagonal().add_(ridge / columns.norms.square())
    return torch.linalg.cholesky(gram)
