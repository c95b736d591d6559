"""Non-negative elastic net, its path walked to a given number of rows. Ours.

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

import time
from dataclasses import dataclass

import torch

from gtp_exp.errors import UserError
from gtp_exp.selection.atoms.duplicates import near_copies
from gtp_exp.selection.atoms.matrix import Atoms
from gtp_exp.selection.solvers.nnls import NNLS, Columns, GramCache, columns_of, fit
from gtp_exp.selection.solvers.pruning import contributions, keep_largest, prune
from gtp_exp.selection.solvers.pursuit import Pursuit, strongest

TRIALS = 25  # values of l1 tried on one working set
FLOOR = 1e-6  # smallest l1, over the largest correlation: below it the path has ended


@dataclass(frozen=True)
class Point:
    """The solution on the working set at one l1."""

    l1: float
    fit: NNLS

    @property
    def rows(self) -> int:
        return int((self.fit.weights > 0).sum())


def elastic_net(
    atoms: Atoms,
    target: torch.Tensor,
    *,
    size: int,
    ridge: float,
    available: torch.Tensor | None = None,
    near_copy_cosine: float | None = None,
    surplus: float = 2.0,
    prune_stages: int = 4,
    max_iterations: int = 30,
    cost: torch.Tensor | None = None,
    capacity: int = 0,
) -> Pursuit:
    """At most `size` rows, fewer only where the path ends before; target [m, 1], ridge the lam above.

    surplus: rows on the path, as a multiple of size. prune_stages: see `prune`.
    `kkt` is that of the final fit; `curve` the residual of the elastic net after each pass over the pool.
    With cost int64 [N] (tokens) the path's rows of the largest weights per token that fit into capacity are
    kept.
    """
    began = time.perf_counter()
    if target.shape[1] != 1:
        raise UserError(
            f"the elastic net follows one target, not {target.shape[1]} columns; "
            "set selector.target_columns=mean or selector.solver=cosamp"
        )
    b = target.double()[:, 0]
    energy = float(b.square().sum())
    n, m = atoms.shape
    available = torch.ones(n, dtype=torch.bool) if available is None else available.clone()
    columns = columns_of(torch.empty(0, m), torch.empty(0, dtype=torch.long), GramCache())
    wanted = max(1, round(surplus * size))
    weights, residual, l1 = torch.empty(0, dtype=torch.float64), b, 0.0
    curve, suppressed = [], []
    for _ in range(max_iterations):
        eligible = available.clone()
        eligible[columns.ids] = False
        if cost is not None:
            eligible &= cost <= capacity
        violating = l1 * (1 + 1e-5)
        found, rows = strongest(
            atoms, residual[:, None], eligible, 2 * size if not curve else size, above=violating
        )
        outside = rows.double() @ residual > l1 * (1 + 1e-6)
        found, rows = found[outside], rows[outside]
        if not len(found):
            break
        before = len(columns.ids)
        columns = columns.join(columns_of(rows, found, columns.cache))
        weights = torch.cat([weights, weights.new_zeros(len(found))])
        if near_copy_cosine is not None:
            near = near_copies(columns.unit.float() @ columns.unit.float().T, near_copy_cosine, kept=before)
            suppressed.append(columns.ids[near])
            available[columns.ids[near]] = False
            columns, weights = columns.select(~near), weights[~near]
        largest = float((columns.unit * columns.norms[:, None] @ b).max())
        point = _path_point(columns, b, ridge, wanted, weights, l1, largest)
        weights, residual, l1 = point.fit.weights, point.fit.residual, point.l1
        curve.append(float(residual.norm()) / energy**0.5)

    chosen, fitted, left, kkt = prune(
        columns,
        weights[:, None],
        b[:, None],
        ridge,
        size=size,
        cost=cost,
        capacity=capacity,
        stages=prune_stages,
    )
    contribution = contributions(fitted, chosen)
    order = keep_largest(contribution, None, 0, len(contribution))
    energy_left = float(left.square().sum())
    return Pursuit(
        support=chosen.ids[order],
        weights=fitted[order],
        contributions=contribution[order],
        objective=0.5 * energy_left + 0.5 * ridge * float(fitted.square().sum()),
        residual=(energy_left / energy) ** 0.5 if energy else 0.0,
        kkt=kkt,
        iterations=len(curve),
        seconds=time.perf_counter() - began,
        curve=tuple(curve),
        near_copies=torch.cat(suppressed) if suppressed else torch.empty(0, dtype=torch.long),
        fitted=b[:, None] - left,
    )


def _path_point(
    columns: Columns, b: torch.Tensor, ridge: float, size: int, start: torch.Tensor, l1: float, largest: float
) -> Point:
    """The l1 at which `size` of the working set's rows have weight, by a bracketed search on log l1.

    The number of rows falls with l1, almost everywhere; when no tried l1 gives exactly `size`, the largest
    one that gives more is returned and the caller keeps the `size` largest contributions.
    """

    def at(value: float, warm: torch.Tensor, guess: bool) -> Point:
        return Point(value, fit(columns, b, ridge=ridge, l1=value, start=warm, guess=guess))

    if l1 > 0:
        point = at(l1, start, guess=True)
    else:
        point = at(0.5 * largest, start, guess=True)
    few: Point | None = None  # l1 too large
    many: Point | None = None  # l1 too small
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
