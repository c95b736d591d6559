"""Fill a budget exactly, whatever a single pursuit can give.

Non-negative least squares supports at most m columns, and a pursuit ends when no row correlates with what is
left, so one pursuit often chooses fewer rows than the budget. The rule, ours:

1. Pursue in rounds of at most `round_rows`. Every round restarts from the whole target, without the rows that
   are already chosen, their exact copies and the near copies that were suppressed. What a round finds that is
   a near copy of a row which an earlier one has chosen is suppressed, too; after several pursuits in a row
   that have found nothing else, all near copies of chosen rows are.
2. When a round finds nothing, or after `max_rounds`, fill by correlation with the target, largest first:
   distinct rows, then near copies, then exact copies, each group in order.

Every round's combination approximates the target by itself, so their average, each in proportion to its
number of rows, does too. It is the start of a last fit of all chosen rows together (`refit`): with the ridge
times the number of rounds, which asks the same of weights that share the work with so many times more rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from tqdm import tqdm

from gtp_exp.errors import NothingToChoose
from gtp_exp.selection.apart import BLOCK, Apart
from gtp_exp.selection.atoms.matrix import Atoms
from gtp_exp.selection.solvers.nnls import GramCache, columns_of
from gtp_exp.selection.solvers.pruning import fit_columns
from gtp_exp.selection.solvers.pursuit import Pursuit

log = logging.getLogger(__name__)

FRUITLESS = 3  # pursuits in a row with near copies of chosen rows alone, until all such copies are sought


class Solve(Protocol):
    """Pursue the whole target once."""

    def __call__(self, *, available: torch.Tensor, size: int, capacity: int) -> Pursuit:
        """Return a pursuit of at most `size` available rows that together cost at most `capacity`."""
        ...


@dataclass(frozen=True)
class Filled:
    """Hold the chosen rows, and which of them come from pursuits."""

    indices: torch.Tensor  # int64 [M], round by round, largest contribution first, then the fill
    weights: torch.Tensor  # float64 [M, S] for the atoms as given, the rounds' average; 0 for fill rows
    from_pursuit: int  # the first so many rows come from pursuits
    rounds: tuple[Pursuit, ...]
    fill: dict[str, int]  # rows by class: distinct, near_copies, exact_copies
    shortfalls: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Return what happened in the rounds and in the fill as JSON values."""
        return {
            "rounds": [pursuit.summary() for pursuit in self.rounds],
            "rows_by_round": [len(pursuit.support) for pursuit in self.rounds],
            "rows_by_fill": len(self.indices) - self.from_pursuit,
            "fill": self.fill,
            "shortfalls": list(self.shortfalls),
            "near_copies_suppressed": sum(len(pursuit.near_copies) for pursuit in self.rounds),
        }


@dataclass(frozen=True)
class Refit:
    """Hold the weights of all chosen rows, fitted together."""

    weights: torch.Tensor  # float64 [M, S]
    residual: float  # ||B - A^T W|| / ||B||
    cosine: float  # between A^T W and B: the residual without the ridge's shrinkage
    kkt: float
    absolute_ridge: float  # lam of this fit, not over the atoms' mean squared norm, times the rounds
    seconds: float
    rows_without_weight: int

    def report(self) -> dict[str, float]:
        """Return the figures of the fit as JSON values."""
        return {
            "residual": self.residual,
            "cosine": self.cosine,
            "kkt": self.kkt,
            "absolute_ridge": self.absolute_ridge,
            "seconds": self.seconds,
            "rows_without_weight": self.rows_without_weight,
        }


def refit(atoms: Atoms, target: torch.Tensor, filled: Filled, ridge: float) -> Refit:
    """Fit all chosen rows by non-negative least squares, with the ridge times the number of rounds.

    Holds the chosen rows in memory in float64.
    """
    began = time.perf_counter()
    ridge *= max(1, len(filled.rounds))
    columns = columns_of(atoms.rows(filled.indices), filled.indices, GramCache())
    weights, residual, kkt = fit_columns(
        columns, target, ridge, filled.weights, guess=len(filled.rounds) != 1
    )
    fitted = target - residual
    lengths = float(torch.linalg.vector_norm(target)), float(torch.linalg.vector_norm(fitted))
    return Refit(
        weights=weights,
        residual=float(torch.linalg.vector_norm(residual)) / lengths[0],
        cosine=float((fitted * target).sum()) / (lengths[0] * lengths[1]) if lengths[1] else 0.0,
        kkt=kkt,
        absolute_ridge=ridge,
        seconds=time.perf_counter() - began,
        rows_without_weight=int((weights.sum(1) == 0).sum()),
    )


def fill_budget(
    solve: Solve,
    *,
    correlation: torch.Tensor,
    apart: Apart,
    rows: int | None,
    tokens: int,
    cost: torch.Tensor | None,
    round_rows: int,
    max_rounds: int,
) -> Filled:
    """Choose exactly `rows` rows, or, with cost int64 [N] (tokens per row), until none fits into `tokens`.

    The mean of the correlations float32 [N, S] with the target's columns orders the fill. apart: tells copies
    of rows.
    """
    n, columns = correlation.shape
    total = n if rows is None else rows
    available = apart.exact.multiplicity > 0
    near = torch.zeros(n, dtype=torch.bool)
    chosen = torch.zeros(n, dtype=torch.bool)
    rounds, shortfalls = [], []
    count, left, fruitless = 0, tokens, 0
    wanted, unit = (tokens, "tok") if rows is None else (rows, "row")
    progress = tqdm(total=wanted, desc="GTP", unit=unit, delay=2.0)
    while count < total and len(rounds) < max_rounds:
        fits = available & ~chosen if cost is None else available & ~chosen & (cost <= left)
        if not fits.any():
            break
        pursuit = solve(available=fits, size=min(round_rows, total - count), capacity=left)
        found = len(pursuit.support)
        pursuit = _without(pursuit, apart.repeats(pursuit.support, chosen.nonzero().flatten()))
        near[pursuit.near_copies] = True
        available[pursuit.near_copies] = False
        if found and not len(pursuit.support):
            # All that it found repeats chosen rows, and the next round will not see it.
            fruitless += 1
            if fruitless == FRUITLESS:
                rest = (fits & available).nonzero().flatten()
                copies = rest[apart.repeats(rest, chosen.nonzero().flatten())]
                near[copies] = True
                available[copies] = False
            continue
        fruitless = 0
        if not found:
            shortfalls.append(
                f"round {len(rounds) + 1} found no row with a positive correlation to the target"
            )
            break
        rounds.append(pursuit)
        chosen[pursuit.support] = True
        count += len(pursuit.support)
        spent = len(pursuit.support)
        if cost is not None:
            spent = int(cost[pursuit.support].sum())
            left -= spent
        progress.update(spent)
    progress.close()
    if count < total and len(rounds) == max_rounds:
        shortfalls.append(f"{max_rounds} rounds chose {count} rows; the rest is filled by correlation")

    picked, classes = _fill(correlation.mean(1), chosen, near, apart, total - count, cost, left)
    indices = torch.cat([r.support for r in rounds] + [picked])
    if not len(indices):
        assert cost is not None
        raise NothingToChoose(
            f"budget.amount={tokens} tokens is below the shortest candidate ({int(cost.min())} tokens)"
        )
    if not rounds and apart.atoms.processes.main:
        _warn_of_no_round(len(indices), bool((correlation > 0).any()))
    weights = torch.cat(
        [r.weights * (len(r.support) / count) for r in rounds]  # pyrefly: ignore[division-by-zero]
        + [torch.zeros(len(picked), columns, dtype=torch.float64)]
    )
    return Filled(indices, weights, count, tuple(rounds), classes, tuple(shortfalls))


def _warn_of_no_round(chosen: int, positive: bool) -> None:
    """Log that correlation alone has chosen all rows. positive: whether any candidate's is above zero."""
    reason = "no candidate's gradient points towards the target's"
    if positive:
        reason = "the ridge is too large, or what would help does not fit"
    log.warning(
        "no pursuit has found a row, as %s: the %d rows that correlate most with the target are chosen",
        reason,
        chosen,
    )


def _without(pursuit: Pursuit, repeats: torch.Tensor) -> Pursuit:
    """Return a pursuit without rows bool [k] of its support, which are near copies."""
    if not repeats.any():
        return pursuit
    return replace(
        pursuit,
        support=pursuit.support[~repeats],
        weights=pursuit.weights[~repeats],
        contributions=pursuit.contributions[~repeats],
        near_copies=torch.cat([pursuit.near_copies, pursuit.support[repeats]]),
    )


def _fill(
    correlation: torch.Tensor,
    chosen: torch.Tensor,
    near: torch.Tensor,
    apart: Apart,
    wanted: int,
    cost: torch.Tensor | None,
    left: int,
) -> tuple[torch.Tensor, dict[str, int]]:
    """Return the rows int64 [k] that fill what the rounds left, and how many of each class they are.

    Where rows cost, their correlation per token orders them; one below zero is no better for being spread.
    Rows that fit and repeat chosen ones are added to `near`.
    """

    def affordable(index: torch.Tensor) -> torch.Tensor:
        return index if cost is None else index[cost[index] <= left]  # what does not fit never will

    value = correlation.double()
    if cost is not None:
        value = torch.where(value > 0, value / cost.clamp(min=1), value)
    taken, picked = chosen.clone(), list[int]()
    counts = dict.fromkeys(("distinct", "near_copies", "exact_copies"), 0)
    copy = apart.exact.multiplicity == 0
    for name in counts:
        if len(picked) == wanted:
            break
        group = {"distinct": ~near & ~copy, "near_copies": near & ~copy, "exact_copies": copy}[name]
        index = affordable((group & ~taken).nonzero().flatten())
        order = index[value[index].sort(descending=True, stable=True).indices]
        for i in _distinct(order, taken, near, apart, affordable) if name == "distinct" else order.tolist():
            if len(picked) == wanted:
                break
            if cost is not None:
                if int(cost[i]) > left:
                    continue
                left -= int(cost[i])
            taken[i] = True
            picked.append(i)
            counts[name] += 1
    return torch.tensor(picked, dtype=torch.long), counts


def _distinct(
    order: torch.Tensor,
    taken: torch.Tensor,
    near: torch.Tensor,
    apart: Apart,
    affordable: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[int]:
    """Yield the rows that repeat none of those which are taken by then, and mark the others as near.

    affordable: keeps of some rows those that still fit; no others are read.
    """
    if apart.cosine is None:
        yield from order.tolist()
        return
    while len(order):
        block, order = order[:BLOCK], order[BLOCK:]
        repeats, before = apart.repeats(block, taken.nonzero().flatten()), apart.among(block).tril(-1)
        suspects = before.any(1)
        for k, i in enumerate(block.tolist()):
            if repeats[k] or (suspects[k] and (before[k] & taken[block]).any()):
                near[i] = True
            else:
                yield i
        order = affordable(order)
