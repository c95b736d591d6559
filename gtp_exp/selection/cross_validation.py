"""How strongly to regularise a pursuit, and at how many rows to stop it, by cross-validation over the target.

The observed target is a mean over few rows, and a pursuit with thousands of candidates drives the residual to it
far below its distance to the mean of all rows it was sampled from. So the target rows are split into folds; a
pursuit of the mean of all folds but one is judged by its distance to the mean of that one. Screening, pursuit
and fit see the training rows only. In-domain the rows are the pool's, and the candidates of a fold's pursuit are
its training rows.

The scale of a fit is free (selection weights have mean 1), so it is set on the training target before judging:
the error is || v - s f ||^2 / || v ||^2 with s = <f, b> / <f, f>.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from gtp_exp.selection.pursuit import Pursuit


@dataclass(frozen=True)
class Fold:
    train: torch.Tensor  # float64 [m, S], mean of the rows outside the fold
    held_out: torch.Tensor  # float64 [m, S], mean of the fold's rows
    available: torch.Tensor | None  # bool [N], candidates the fold's pursuit may use; None: all


@dataclass(frozen=True)
class Point:
    rows: int
    ridge: float
    errors: tuple[float, ...]  # one per fold

    @property
    def error(self) -> float:
        return statistics.fmean(self.errors)

    @property
    def standard_error(self) -> float:
        return statistics.stdev(self.errors) / len(self.errors) ** 0.5

    def report(self) -> dict[str, float]:
        return {
            "rows": self.rows,
            "ridge": self.ridge,
            "error": self.error,
            "standard_error": self.standard_error,
        }


@dataclass(frozen=True)
class Choice:
    rows: int  # where a pursuit stops
    ridge: float
    curve: tuple[Point, ...]  # every setting that was tried, in order


class FoldSolve(Protocol):
    def __call__(self, fold: Fold, rows: int, ridge: float) -> Pursuit: ...


def choose(solve: FoldSolve, folds: Sequence[Fold], rows: int, ridges: Sequence[float]) -> Choice:
    """The ridge, then the number of rows at that ridge.

    ridges: ascending. The search starts in their middle and walks downhill, as the error has one valley in all
    that was measured. rows: the size wanted; a half and a quarter of it are tried too, and the largest whose
    error is within one standard error (of the paired differences) of the best is taken.
    """
    curve: list[Point] = []
    tried: dict[int, Point] = {}

    def judge(size: int, ridge: float) -> Point:
        point = Point(size, ridge, tuple(held_out_error(solve(fold, size, ridge), fold) for fold in folds))
        curve.append(point)
        return point

    def at(position: int) -> Point:
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
            return Choice(point.rows, ridges[here], tuple(curve))
    raise AssertionError("the best point is within one standard error of itself")


def held_out_error(pursuit: Pursuit, fold: Fold) -> float:
    fitted = pursuit.fitted
    energy = float(fitted.square().sum())
    scale = float((fitted * fold.train).sum()) / energy if energy > 0 else 0.0
    return float((fold.held_out - scale * fitted).square().sum() / fold.held_out.square().sum())


def _excess(point: Point, best: Point) -> float:
    """By how much a point's error exceeds the best one's, less one standard error of the difference."""
    differences = [a - b for a, b in zip(point.errors, best.errors, strict=True)]
    return statistics.fmean(differences) - statistics.stdev(differences) / len(differences) ** 0.5


def target_folds(rows: torch.Tensor, groups: Sequence[str], count: int, seed: int) -> list[Fold] | str:
    """Folds over target rows [n, m], dealt within each group (one target column per group), or why there are none.

    Needs two rows a fold in all and two rows in every group, so that no training mean is empty.
    """
    names = sorted(set(groups))
    if len(rows) < 2 * count:
        return f"{len(rows)} target rows are too few for {count} folds of at least 2 rows"
    members = {name: [i for i, group in enumerate(groups) if group == name] for name in names}
    small = [name for name in names if len(members[name]) < 2]
    if small:
        return f"subtask '{small[0]}' has one target row, which cannot be both fitted and held out"
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty(len(rows), dtype=torch.long)
    dealt = 0
    for name in names:
        shuffled = torch.tensor(members[name])[torch.randperm(len(members[name]), generator=generator)]
        fold_of[shuffled] = (torch.arange(len(shuffled)) + dealt) % count
        dealt += len(shuffled)
    wide, folds = rows.double(), []
    for k in range(count):
        train, held_out = [], []
        for name in names:
            index = torch.tensor(members[name])
            outside, inside = index[fold_of[index] != k], index[fold_of[index] == k]
            train.append(wide[outside].mean(0))
            held_out.append(wide[inside].mean(0) if len(inside) else None)
        # A small subtask has no row in some folds; there only the others are judged.
        present = [s for s, column in enumerate(held_out) if column is not None]
        blank = torch.zeros_like(train[0])
        columns = torch.stack([blank if column is None else column for column in held_out], dim=1)
        folds.append(Fold(torch.stack(train, dim=1), columns, None))
        assert present, "every fold holds at least one row"
    return folds
