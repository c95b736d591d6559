"""Pursue by the path of the non-negative elastic net, walked to a given number of rows. Ours.

    min over w >= 0 of  1/2 ||A^T w - b||^2 + lam/2 ||w||^2 + l1 sum w

It is convex, so unlike a pursuit its solution does not depend on the order in which rows were tried. l1 is
found so that a multiple of M rows have weight; they are then fitted without l1, which only shrinks weights,
and pruned to M in stages. At exactly M rows the path still holds rows that the full solution would drop: it
misses part of a planted support that twice as many rows contain.

The problem is solved on a working set with `nnls`; one pass over the pool then finds the rows outside it
whose correlation exceeds l1, and they join, until there are none: the solution on the working set is then the
solution on all N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_exp.decode import check_fields
from gtp_exp.selection.solvers.nnls import NNLS, Columns, nnls_of_columns
from gtp_exp.selection.solvers.pruning import contributions, prune
from gtp_exp.selection.solvers.pursuit import Pursuit, PursuitProblem, Search, require, require_one_column
from gtp_exp.selection.solvers.rough import rough_fit

TRIALS = 25  # values of l1 tried on one working set
FLOOR = 1e-6  # smallest l1, over the largest correlation: below it the path has ended


@dataclass(frozen=True)
class PathPoint:
    """Hold the solution on the working set at one l1."""

    l1: float
    fit: NNLS

    @property
    def rows(self) -> int:
        """How many rows have weight."""
        return int((self.fit.weights > 0).sum())


@dataclass(frozen=True)
class ElasticNet:
    """Walk the path of the elastic net until a surplus of rows has weight, and prune those."""

    candidates: float = 2.0  # rows on the path, over the rows wanted
    prune_stages: int = 4  # 1 prunes at once; see `prune`
    max_iterations: int = 30  # passes over the pool

    name: ClassVar[str] = "elastic_net"

    def __post_init__(self) -> None:
        check_fields(self, "selector.solver")
        require(self.candidates >= 1, "candidates", self.candidates, "at least 1")
        require(self.prune_stages >= 1, "prune_stages", self.prune_stages, "at least 1")
        require(self.max_iterations >= 1, "max_iterations", self.max_iterations, "at least 1")

    def pursue(self, problem: PursuitProblem) -> Pursuit:
        """Return at most `size` rows, fewer only where the path ends before; the target has one column.

        `kkt` is that of the final fit; `curve` the residual of the elastic net after each pass over the pool.
        Where rows cost, the path's rows of the largest weights per token that fit into the capacity are kept.
        """
        require_one_column(problem.target, "the elastic net follows")
        search = Search(problem)
        b = search.target[:, 0]
        wanted = max(1, round(self.candidates * problem.size))
        columns = search.no_columns()
        weights, residual, l1 = torch.empty(0, dtype=torch.float64), b, 0.0
        for _ in range(self.max_iterations):
            count = problem.size if search.curve else 2 * problem.size
            index, rows = search.strongest(columns.ids, residual[:, None], count, above=l1 * (1 + 1e-5))
            outside = rows.double() @ residual > l1 * (1 + 1e-6)
            if not outside.any():
                break
            columns = search.join(columns, index[outside], rows[outside])
            weights = torch.cat([weights, weights.new_zeros(len(columns.ids) - len(weights))])
            largest = float((columns.unit * columns.norms[:, None] @ b).max())
            point = _path_point(columns, b, problem.ridge, wanted, weights, l1, largest)
            weights, residual, l1 = point.fit.weights, point.fit.residual, point.l1
            search.curve.append(search.relative(residual))

        rough = rough_fit(columns, search.target, problem.ridge, weights[:, None])
        chosen, fitted, left, kkt = prune(columns, rough, problem, self.prune_stages)
        return search.finish(chosen.ids, fitted, left, kkt, contributions(fitted, chosen))


def _path_point(
    columns: Columns, b: torch.Tensor, ridge: float, size: int, start: torch.Tensor, l1: float, largest: float
) -> PathPoint:
    """Return the point at which `size` rows of the working set have weight, by a bracketed search on log l1.

    The number of rows falls with l1, almost everywhere; when no tried l1 gives exactly `size`, the largest
    one that gives more is returned and the caller keeps the `size` largest contributions.
    """

    def at(value: float, warm: torch.Tensor, guess: bool) -> PathPoint:
        return PathPoint(value, nnls_of_columns(columns, b, ridge=ridge, l1=value, start=warm, guess=guess))

    if l1 > 0:
        point = at(l1, start, guess=True)
    else:
        point = at(0.5 * largest, start, guess=True)
    few: PathPoint | None = None  # l1 too large
    many: PathPoint | None = None  # l1 too small
    for _ in range(TRIALS):
        if point.rows == size:
            return point
        if point.rows < size:
            few = point
        else:
            many = point
        if few is None:
            assert many is not None
            value = many.l1 * 1.3
        elif many is None:
            if few.l1 <= FLOOR * largest:
                return few
            value = max(few.l1 * 0.6, FLOOR * largest)
        else:
            # Secant on (log l1, rows), kept away from the ends of the bracket.
            share = (few.rows - size) / (few.rows - many.rows)
            share = min(max(share, 0.1), 0.9)
            value = few.l1 ** (1 - share) * many.l1**share
            if few.l1 / many.l1 < 1 + 1e-9:
                return many
        point = at(value, point.fit.weights, guess=False)
    return many if many is not None else point
