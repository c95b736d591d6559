"""Choose how strongly to regularise a pursuit, and at how many rows to stop it, by cross-validation.

The observed target is a mean over few rows, and a pursuit with thousands of candidates drives the residual to
it far below its distance to the mean of all rows it was sampled from. So the target rows are split into
folds; a pursuit of the mean of all folds but one is judged by its distance to the mean of that one.
Screening, pursuit and fit see the training rows only. In-domain the rows are the pool's, the candidates of a
fold's pursuit are its training rows, and exact copies share a fold.

The scale of a fit is free (selection weights have mean 1), so it is set on the training target before
judging: the error is || v - s f ||^2 / || v ||^2 with s = <f, b> / <f, f>.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from gtp_exp.selection.atoms.matrix import Atoms
from gtp_exp.selection.solvers.pursuit import Pursuit

MORE_SIZES = 2  # that are tried besides the size wanted: a half and a quarter of it


@dataclass(frozen=True)
class Fold:
    """Hold the target columns that a pursuit is fitted to, and those that it is judged by."""

    train: torch.Tensor  # float64 [m, S], mean of the rows outside the fold
    held_out: torch.Tensor  # float64 [m, S], mean of the fold's rows
    judged: torch.Tensor  # bool [S], columns with held-out rows
    available: torch.Tensor | None  # bool [N], candidates the fold's pursuit may use; None: all
    correlation: torch.Tensor | None = (
        None  # float32 [N, S], own rows' correlation with `train`; None: unknown
    )


@dataclass(frozen=True)
class CrossValidationPoint:
    """Hold the held-out errors of one setting."""

    rows: int
    ridge: float
    errors: tuple[float, ...]  # one per fold

    @property
    def error(self) -> float:
        """The mean over folds."""
        return statistics.fmean(self.errors)

    @property
    def standard_error(self) -> float:
        """The standard error of that mean."""
        return statistics.stdev(self.errors) / len(self.errors) ** 0.5

    def report(self) -> dict[str, float]:
        """Return the setting and its error as JSON values."""
        return {
            "rows": self.rows,
            "ridge": self.ridge,
            "error": self.error,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class RegularisationChoice:
    """Hold the setting that was chosen, and all that were tried."""

    rows: int  # where a pursuit stops
    ridge: float
    curve: tuple[CrossValidationPoint, ...]  # every setting that was tried, in order

    def doubts(self, ridges: Sequence[float]) -> list[str]:
        """Return sentences on why the choice may be a poor one; ridges: those it was made among."""
        doubts = []
        chosen = next(p for p in self.curve if (p.rows, p.ridge) == (self.rows, self.ridge))
        if chosen.error >= 1:
            doubts.append(
                f"the choice has an error of {chosen.error:.3g} on held-out rows, choosing nothing has 1: "
                "what fits some rows of the target does not fit the others; give more, or ones more alike"
            )
        if len(ridges) > 2 and self.ridge in (ridges[0], ridges[-1]):
            end = "smallest" if self.ridge == ridges[0] else "largest"
            doubts.append(
                f"cross-validation chose the {end} of selector.ridges, {self.ridge:g}, so the best may lie "
                "beyond; add some there"
            )
        return doubts


class FoldSolve(Protocol):
    """Pursue the training columns of a fold."""

    def __call__(self, fold: Fold, rows: int, ridge: float) -> Pursuit:
        """Return a pursuit of at most `rows` rows at the ridge."""
        ...


def correlated(atoms: Atoms, folds: Sequence[Fold]) -> list[Fold]:
    """Return the folds with the correlations that all their pursuits begin with, from one pass for all."""
    columns = torch.cat([fold.train for fold in folds], dim=1)
    parts = atoms.correlate_own(columns.float()).split([fold.train.shape[1] for fold in folds], dim=1)
    return [replace(fold, correlation=part) for fold, part in zip(folds, parts, strict=True)]


def choose(
    solve: FoldSolve, folds: Sequence[Fold], rows: int, ridges: Sequence[float]
) -> RegularisationChoice:
    """Choose the ridge, then the number of rows at that ridge.

    ridges: ascending. The search starts in their middle and walks downhill, as the error has one valley in
    all that was measured. rows: the size wanted; a half and a quarter of it are tried too, and the largest
    whose error is within one standard error (of the paired differences) of the best is taken.
    """
    curve: list[CrossValidationPoint] = []
    tried: dict[int, CrossValidationPoint] = {}

    def judge(size: int, ridge: float) -> CrossValidationPoint:
        errors = tuple(held_out_error(solve(fold, size, ridge), fold) for fold in folds)
        point = CrossValidationPoint(size, ridge, errors)
        curve.append(point)
        return point

    def at(position: int) -> CrossValidationPoint:
        if position not in tried:
            tried[position] = judge(rows, ridges[position])
        return tried[position]

    here = len(ridges) // 2
    while True:
        around = [p for p in (here + 1, here - 1) if 0 <= p < len(ridges)]
        better = [p for p in around if at(p).error < at(here).error]
        if not better:
            break
        here = min(better, key=lambda p: at(p).error)
    whole = at(here)

    sizes = [whole]
    for size in (rows // 2, rows // 4):
        if size >= 1 and all(size != point.rows for point in sizes):
            sizes.append(judge(size, ridges[here]))
    best = min(sizes, key=lambda point: point.error)
    for point in sizes:  # largest first
        if _excess(point, best) <= 0:
            return RegularisationChoice(point.rows, ridges[here], tuple(curve))
    raise AssertionError("the best point is within one standard error of itself")


def held_out_error(pursuit: Pursuit, fold: Fold) -> float:
    """Return the squared distance of a fit, at its best scale, to the held-out columns, over their energy."""
    fitted = pursuit.fitted
    energy = float(fitted.square().sum())
    scale = float((fitted * fold.train).sum()) / energy if energy > 0 else 0.0
    held_out, fitted = fold.held_out[:, fold.judged], fitted[:, fold.judged]
    return float((held_out - scale * fitted).square().sum() / held_out.square().sum())


def _excess(point: CrossValidationPoint, best: CrossValidationPoint) -> float:
    """Return by how much a point's error exceeds the best one's, less a standard error of the difference."""
    differences = [a - b for a, b in zip(point.errors, best.errors, strict=True)]
    return statistics.fmean(differences) - statistics.stdev(differences) / len(differences) ** 0.5


def target_folds(
    rows: torch.Tensor,
    groups: Sequence[str],
    count: int,
    seed: int,
    alike: Sequence[Sequence[int]] | None = None,
) -> list[Fold] | str:
    """Deal target rows [n, m] to folds within each group (one target column per group), or say why there
    are none.

    alike: all rows, in lists of those that stay in one fold together; None: each on its own. Needs two rows a
    fold in all, a list for every fold, and every group in two folds, so that no training mean is empty; and
    of every fold a mean other than zero, which errors are over.
    """
    names = sorted(set(groups))
    if len(rows) < 2 * count:
        return f"{len(rows)} target rows are too few for {count} folds of at least 2 rows"
    members = {name: [i for i, group in enumerate(groups) if group == name] for name in names}
    small = [name for name in names if len(members[name]) < 2]
    if small:
        return f"subtask '{small[0]}' has one target row, which cannot be both fitted and held out"
    units = [[i] for i in range(len(rows))] if alike is None else alike
    if len(units) < count:
        return f"{len(rows)} target rows of {len(units)} kinds are too few for {count} folds of other kinds"
    fold_of = _deal(units, members, count, seed)
    alone = [name for name in names if len(fold_of[members[name]].unique()) < 2]
    if alone:
        return f"the target rows{_of(alone[0])} are all alike, which cannot be both fitted and held out"
    folds = []
    for k in range(count):
        outside = group_means(rows, groups, names, (fold_of != k).nonzero().flatten().tolist())
        inside = group_means(rows, groups, names, (fold_of == k).nonzero().flatten().tolist())
        judged = torch.isfinite(inside).all(0)  # a small subtask has no row in some folds
        if not inside[:, judged].any():
            return _nothing_to_judge_by("target")
        folds.append(Fold(outside, inside, judged, None))
    return folds


def _nothing_to_judge_by(rows: str) -> str:
    return f"the {rows} rows that a fold holds out have a mean gradient of zero, by which no fit is judged"


def _of(name: str) -> str:
    return f" of subtask '{name}'" if name else ""


def _deal(
    units: Sequence[Sequence[int]], members: Mapping[str, list[int]], count: int, seed: int
) -> torch.Tensor:
    """Return the fold of every row, int64 [n]. members: the rows of every group.

    Group by group, in random order but the largest units first, each unit goes to the fold with the fewest
    rows of the group, then with the fewest rows, then of the lowest number.
    """
    generator = torch.Generator().manual_seed(seed)
    unit_of = {i: unit for unit in units for i in unit}
    fold_of = torch.full((len(unit_of),), -1)
    for rows in members.values():
        shuffled = torch.tensor(rows)[torch.randperm(len(rows), generator=generator)].tolist()
        for row in sorted(shuffled, key=lambda i: -len(unit_of[i])):
            if fold_of[row] < 0:
                of_group = torch.bincount(fold_of[rows] + 1, minlength=count + 1)[1:].tolist()
                of_all = torch.bincount(fold_of + 1, minlength=count + 1)[1:].tolist()
                fold_of[list(unit_of[row])] = min(range(count), key=lambda k: (of_group[k], of_all[k], k))
    return fold_of


def pool_folds(atoms: Atoms, originals: torch.Tensor, count: int, seed: int) -> list[Fold] | str:
    """Deal the pool's own rows, whose mean is the target in-domain, to folds, or say why there are none.

    originals: int64 [N], of every row the first of those that are equal to it, which share its fold: of a row
    on both sides one copy would tell what the other holds out. Takes one pass over the pool.
    """
    n = atoms.shape[0]
    kinds, of_row = originals.unique(return_inverse=True)
    if len(kinds) < 2 * count:
        told = f"{n} pool rows" if len(kinds) == n else f"{n} pool rows of {len(kinds)} kinds"
        return f"{told} are too few for {count} folds of at least 2 rows"
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty(len(kinds), dtype=torch.long)
    fold_of[torch.randperm(len(kinds), generator=generator)] = torch.arange(len(kinds)) % count
    fold_of = fold_of[of_row]
    member = torch.nn.functional.one_hot(fold_of, count).float()  # [N, folds]
    sums, sizes = atoms.combine(member), member.sum(0).double()
    if not sums.any(0).all():
        return _nothing_to_judge_by("pool")
    judged = torch.ones(1, dtype=torch.bool)
    return [
        Fold(
            train=((sums.sum(1) - sums[:, k]) / (n - sizes[k]))[:, None],
            held_out=(sums[:, k] / sizes[k])[:, None],
            judged=judged,
            available=fold_of != k,
        )
        for k in range(count)
    ]


def group_means(
    rows: torch.Tensor, groups: Sequence[str], names: Sequence[str], index: Sequence[int] | None = None
) -> torch.Tensor:
    """Return the mean of the indexed rows of each group: float64 [m, S], NaN for a group without any."""
    index = range(len(rows)) if index is None else index
    number = {name: s for s, name in enumerate(names)}
    of = torch.tensor([number[groups[i]] for i in index], dtype=torch.long)
    sums = torch.zeros(len(names), rows.shape[1], dtype=torch.float64).index_add_(
        0, of, rows[list(index)].double()
    )
    return (sums / torch.bincount(of, minlength=len(names))[:, None]).T.contiguous()
