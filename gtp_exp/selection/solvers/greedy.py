"""Pursue with equal weights: the rows whose plain sum points most nearly where the target does. Ours.

    max over S, |S| <= M, of  cos(sum_{i in S} u_i, b),     u_i = a_i / |a_i|

Training counts every row the same unless it is told otherwise, and this is the objective of such training.
Forward greedy adds the row that makes the cosine largest, although it may fall, until the budget is spent;
then every chosen row in turn is exchanged for the row that makes the cosine largest, if that is larger.
Candidates are the rows that correlate positively with the target. There is no ridge and no rank beyond which
rows find no weight, so one call fills any budget.

A step needs every candidate's product with the sum. A pass over the pool proposes a window of rows, those
that correlate most with the residual b / <s, b> - s / <s, s> of the sum s: the slope of log cos along a row.
Within the window, whose Gram matrix is held, the steps are exact in float64. Where all candidates fit into
the window, the whole search is; ties go to the row proposed first, there the one of lower index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from gtp_exp.decode import check_fields
from gtp_exp.selection.solvers.nnls import Columns, GramCache, columns_of
from gtp_exp.selection.solvers.pursuit import (
    Pursuit,
    PursuitProblem,
    Search,
    require,
    require_one_column,
)

WINDOW = 1024  # rows held at a time, at least
PER_ROW = 4  # rows held for each that is added between two passes, at least
CHUNK = 512  # chosen rows held at a time
GAIN = 1e-12  # by which an exchange must raise the cosine: more than rounding


@dataclass(frozen=True)
class Greedy:
    """Add rows one by one by the cosine of their plain sum with the target, then exchange them."""

    steps: int = 20  # passes over the pool that add equally many rows each
    exchanges: int = 3  # passes that then exchange rows, at most

    name: ClassVar[str] = "greedy"
    whole_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "selector.solver")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.exchanges >= 0, "exchanges", self.exchanges, "0 or more")

    def pursue(self, problem: PursuitProblem) -> Pursuit:
        """Return `size` rows, or as many as the capacity and the candidates allow; the target has one column.

        Every row's share of the sum is the same, at the scale that fits the target best. `curve` is the
        relative residual at that scale after each pass.
        """
        require_one_column(problem.target, "the greedy pursuit sums up")
        return _Sum(problem, self.steps).pursue(self.exchanges)


class _Sum:
    """Keep the chosen rows and their sum while the search goes on."""

    def __init__(self, problem: PursuitProblem, steps: int) -> None:
        atoms, target = problem.atoms, problem.target
        known = problem.correlation
        own = atoms.correlate_own(target.float()) if known is None else known
        positive = atoms.processes.all_reduce(own)[:, 0] > 0
        available = positive if problem.available is None else positive & problem.available
        self.problem = replace(problem, available=available, correlation=own)
        self.search = Search(self.problem)
        self.b = self.search.target[:, 0] / self.search.target.norm()
        self.sum = torch.zeros_like(self.b)
        self.ids: list[int] = []
        self.spent = 0
        expected = problem.size
        if problem.cost is not None and available.any():
            expected = min(expected, problem.capacity / float(problem.cost[available].double().mean()))
        self.block = max(1, math.ceil(expected / steps))
        self.width = max(WINDOW, PER_ROW * self.block)
        self.whole = int(available.sum()) <= self.width

    def pursue(self, exchanges: int) -> Pursuit:
        """Add rows, exchange them, and report."""
        while len(self.ids) < self.problem.size and self._add(self._window()):
            self._note()
        for _ in range(exchanges):
            if not self.ids or not self._exchange(self._window(self._dearest())):
                break
            self._note()
        scale = self._scale()
        norms = [columns.norms for columns in self._chosen()]
        weights = scale / torch.cat(norms) if norms else torch.empty(0, dtype=torch.float64)
        ids = torch.tensor(self.ids, dtype=torch.long)
        residual = (self.search.target[:, 0] - scale * self.sum)[:, None]
        return self.search.finish(
            ids, weights[:, None], residual, 0.0, torch.full((len(ids),), scale).double()
        )

    def _scale(self) -> float:
        """Return the weight of every unit row at which the sum is closest to the target."""
        energy = float(self.sum @ self.sum)
        return float(self.sum @ self.search.target[:, 0]) / energy if energy else 0.0

    def _note(self) -> None:
        self.search.curve.append(self.search.relative(self.search.target[:, 0] - self._scale() * self.sum))

    def _chosen(self) -> Iterator[Columns]:
        """Yield the chosen rows, some at a time."""
        for start in range(0, len(self.ids), CHUNK):
            index = torch.tensor(self.ids[start : start + CHUNK])
            yield columns_of(self.problem.atoms.rows(index), index, GramCache())

    def _dearest(self) -> int:
        """Return what the chosen row of the highest cost would leave."""
        return 0 if self.problem.cost is None else int(self.problem.cost[self.ids].max())

    def _window(self, freed: int = 0) -> Columns:
        """Return the rows that the next steps choose among: none that is chosen or nearly repeats one.

        freed: the tokens that a step wins back before it spends.
        """
        spent = self.spent - freed
        taken = torch.tensor(self.ids, dtype=torch.long)
        search, residual = self.search, self.search.target[:, 0]
        if self.whole:
            index = search.eligible(taken, spent).nonzero().flatten()
            rows = self.problem.atoms.rows(index)
        else:
            if self.ids:
                residual = self.b / (self.sum @ self.b) - self.sum / (self.sum @ self.sum)
            index, rows = search.strongest(taken, residual[:, None], self.width, spent=spent)
            if len(index) < self.block:  # past the best cosine: those that lower it least
                index, rows = search.strongest(taken, search.target, self.width, spent=spent)
        window = columns_of(rows, index, GramCache())
        window = window.select(window.norms > 0)
        threshold = self.problem.near_copy_cosine
        if threshold is not None:
            near = torch.zeros(len(window.ids), dtype=torch.bool)
            for columns in self._chosen():
                near |= (window.unit @ columns.unit.T > threshold).any(1)
            search.suppress(window.ids[near])
            window = window.select(~near)
        return window

    def _left(self, window: Columns) -> torch.Tensor:
        """Return what may be chosen of a window, bool [k]: that which the capacity allows."""
        if self.problem.cost is None:
            return torch.ones(len(window.ids), dtype=torch.bool)
        return self.problem.cost[window.ids] <= self.problem.capacity - self.spent

    def _pass_over(self, window: Columns, gram: torch.Tensor, chosen: int, free: torch.Tensor) -> None:
        """Take a row of the window and its near copies from what is free."""
        free[chosen] = False
        if self.problem.near_copy_cosine is not None:
            near = free & (gram[chosen] > self.problem.near_copy_cosine)
            self.search.suppress(window.ids[near])
            free &= ~near

    def _pay(self, row: int, sign: int) -> None:
        if self.problem.cost is not None:
            self.spent += sign * int(self.problem.cost[row])

    def _add(self, window: Columns) -> bool:
        """Add the next rows, all in one go where the window holds all candidates; tell whether there were."""
        gram, along = window.unit @ window.unit.T, window.unit @ self.b
        products, free, before = window.unit @ self.sum, self._left(window), len(self.ids)
        most = self.problem.size if self.whole else min(self.problem.size, before + self.block)
        while len(self.ids) < most and (free := free & self._left(window)).any():
            energy = (self.sum @ self.sum + 2 * products + 1).clamp(min=1e-300)
            cosine = torch.where(free, (self.sum @ self.b + along) / energy.sqrt(), -torch.inf)
            best = int(cosine.argmax())  # the first of equals
            self.ids.append(int(window.ids[best]))
            self._pay(self.ids[-1], 1)
            self.sum = self.sum + window.unit[best]
            products = products + gram[best]
            self._pass_over(window, gram, best, free)
        return len(self.ids) > before

    def _exchange(self, window: Columns) -> bool:
        """Exchange each chosen row in turn where that raises the cosine; tell whether any was."""
        gram, along = window.unit @ window.unit.T, window.unit @ self.b
        products, place, changed = window.unit @ self.sum, 0, False
        free = torch.ones(len(window.ids), dtype=torch.bool)
        for columns in self._chosen():
            cross = window.unit @ columns.unit.T
            for j, out in enumerate(columns.unit):
                rest = self.sum - out
                energy = (rest @ rest + 2 * (products - cross[:, j]) + 1).clamp(min=1e-300)
                self._pay(self.ids[place], -1)
                cosine = torch.where(
                    free & self._left(window), (rest @ self.b + along) / energy.sqrt(), -torch.inf
                )
                now = float(self.sum @ self.b) / float(self.sum.norm())
                best = int(cosine.argmax()) if len(cosine) else -1
                if best >= 0 and float(cosine[best]) > now + GAIN:
                    self.ids[place] = int(window.ids[best])
                    self.sum, changed = rest + window.unit[best], True
                    products = products - cross[:, j] + gram[best]
                    self._pass_over(window, gram, best, free)
                self._pay(self.ids[place], 1)
                place += 1
        return changed
