"""Pursue by non-negative orthogonal matching pursuit, one atom or a block of atoms per pass: the classical
baseline.

Each step adds the atoms that correlate most with the residual and fits all weights again (Pati et al., 1993;
the non-negative form of Bruckstein, Elad and Zibulevsky, 2008). The Cholesky factor of the support's Gram
matrix is extended, not computed again; when the plain solution turns negative, NNLS on the support replaces
it and atoms at zero leave. GradMatch's OMP (Killamsetty et al., arXiv 2103.00123) is the one-atom form with a
full refit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_exp.decode import check_fields
from gtp_exp.selection.atoms.duplicates import near_copies
from gtp_exp.selection.capacity import fitting
from gtp_exp.selection.solvers.nnls import Columns, columns_of, dependent, nnls_of_columns
from gtp_exp.selection.solvers.pursuit import Pursuit, PursuitProblem, Search, require, require_one_column

CORRELATION = 1e-7  # of a unit atom with the residual, over ||b||: below it rounding picks, not the data


@dataclass(frozen=True)
class OMP:
    """Take one atom per pass over the pool."""

    name: ClassVar[str] = "omp"

    def pursue(self, problem: PursuitProblem) -> Pursuit:
        """Return what `pursue_in_blocks` does with blocks of one."""
        return pursue_in_blocks(problem, 1)


@dataclass(frozen=True)
class BlockOMP:
    """Take equally many atoms in each of a given number of passes over the pool."""

    steps: int = 50  # passes that a pursuit takes

    name: ClassVar[str] = "block_omp"

    def __post_init__(self) -> None:
        check_fields(self, "selector.solver")
        require(self.steps >= 1, "steps", self.steps, "at least 1")

    def pursue(self, problem: PursuitProblem) -> Pursuit:
        """Return what `pursue_in_blocks` does with blocks of ceil(size / steps)."""
        return pursue_in_blocks(problem, math.ceil(problem.size / self.steps))


def pursue_in_blocks(problem: PursuitProblem, block: int) -> Pursuit:
    """Return at most `size` rows, `block` of which were added per pass; the target has one column.

    A row that has left the support may come back. Ends when no available atom correlates positively. Where
    rows cost, atoms that no longer fit into the capacity are passed over.
    """
    require_one_column(problem.target, "OMP pursues")
    search = Search(problem)
    b = search.target[:, 0]
    length = float(b.norm())
    columns = search.no_columns()
    factor = torch.empty(0, 0, dtype=torch.float64)
    u = torch.empty(0, dtype=torch.float64)  # weights of the unit atoms
    residual = b
    # Atoms may leave, so a support of `size` can take more passes than size / block; twice is plenty.
    for _ in range(2 * math.ceil(problem.size / block)):
        if len(columns.ids) >= problem.size:
            break
        fresh = _next_block(search, columns, residual, min(block, problem.size - len(columns.ids)))
        if fresh is None:  # all of them were near copies
            continue
        fresh = fresh.select(fresh.unit @ residual > CORRELATION * length)
        if not len(fresh.ids):
            break
        columns, factor = _extend(columns, fresh, factor, problem.ridge)
        u = torch.cholesky_solve((columns.unit @ b)[:, None], factor)[:, 0]
        if (u <= 0).any():
            start = u.clamp(min=0) / columns.norms
            exact = nnls_of_columns(columns, b, ridge=problem.ridge, start=start, guess=False)
            keep = (exact.weights > 0).nonzero().flatten()
            columns, u = columns.select(keep), exact.weights[keep] * columns.norms[keep]
            factor = _factor(columns, problem.ridge)
        residual = b - columns.unit.T @ u
        search.curve.append(search.relative(residual))

    weights, kkt = u / columns.norms, 0.0
    if len(u):
        gradient = problem.ridge * weights / columns.norms - columns.unit @ residual
        kkt = float(gradient.abs().max() / (columns.unit @ b).max())
    return search.finish(columns.ids, weights[:, None], residual[:, None], kkt, u)


def _next_block(search: Search, columns: Columns, residual: torch.Tensor, count: int) -> Columns | None:
    """Return the atoms that one pass adds: no row where nothing is left to add, None where every one nearly
    repeats a row of the support or of this pass.
    """
    problem = search.problem
    spent = 0 if problem.cost is None else int(problem.cost[columns.ids].sum())
    index, rows = search.strongest(columns.ids, residual[:, None], count, spent=spent)
    if problem.cost is not None and len(index):
        prices = problem.cost[index].tolist()
        fits = torch.tensor(fitting(prices, problem.capacity - spent), dtype=torch.long)
        index, rows = index[fits], rows[fits]
    fresh = columns_of(rows, index, columns.cache)
    if problem.near_copy_cosine is None or not len(index):
        return fresh
    cosines = fresh.unit @ torch.cat([columns.unit, fresh.unit]).T
    near = _repeats(cosines, len(columns.ids), problem.near_copy_cosine)
    search.suppress(index[near])
    return None if near.all() else fresh.select(~near)


def _repeats(cosines: torch.Tensor, kept: int, threshold: float) -> torch.Tensor:
    """Tell which fresh atoms repeat a kept one or an earlier fresh one, bool [k]; cosines [k, kept + k].

    A pass adds few atoms to many, so only their cosines are taken, not those of the whole support.
    """
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
        bad = dependent(corner, int(info))
        if not bad:
            break
        keep = torch.ones(len(fresh.ids), dtype=torch.bool)
        keep[bad] = False
        fresh = fresh.select(keep)
    grown = gram.new_zeros(len(gram), len(gram))
    grown[:old, :old], grown[old:, :old], grown[old:, old:] = factor, cross.T, corner
    return joined, grown


def _factor(columns: Columns, ridge: float) -> torch.Tensor:
    """Return the Cholesky factor of the ridged Gram matrix of unit columns, float64 [k, k]."""
    gram = columns.cache.gram(columns.ids, lambda new: columns.unit[new])
    gram.diagonal().add_(ridge / columns.norms.square())
    return torch.linalg.cholesky(gram)
