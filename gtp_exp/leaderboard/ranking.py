"""The rows of one budget in order: ranks, differences to the baseline, and which row is called the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from gtp_exp.leaderboard.baseline import baseline_of, is_baseline
from gtp_exp.leaderboard.board import BoardBlock, BoardLine
from gtp_exp.leaderboard.comparability import Row
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.numbers import NO_NUMBERS, Numbers, p_of_pairs
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.statistics import (
    ALPHA,
    Paired,
    RankComparison,
    Summary,
    compare_ranks,
    holm,
    ties_made_equal,
)

MIN_RANK_SEEDS, MIN_RANK_ROWS = 3, 3  # below these a rank diagram says nothing


def ranked_block(
    rows: Sequence[Row],
    numbers: Mapping[Row, Mapping[str, Numbers]],
    metrics: tuple[Metric, ...],
    baseline: str,
) -> BoardBlock:
    """Rank the rows of one budget by the first metric, and compare each to the baseline and to the leader.

    numbers: by row and metric; a row without the first metric comes last and has no rank.
    """
    first = metrics[0] if metrics else None
    of_first = {row: numbers[row].get(first.name, NO_NUMBERS) if first else NO_NUMBERS for row in rows}
    kinds = {kind.name: kind for kind in metrics}
    summary = {row: {name: own.summary(kinds[name]) for name, own in numbers[row].items()} for row in rows}

    place = _places(summary, first)
    ordered = sorted(rows, key=lambda row: (row not in place, place.get(row, 0.0), row.label))
    ranked = [row for row in ordered if row in place]
    rank = {row: 1 + sum(other < place[row] for other in place.values()) for row in ranked}

    references = {row: baseline_of(row, rows, baseline) for row in rows}
    versus: dict[Row, Paired | None] = {}
    for row in ordered:
        reference = references[row]
        versus[row] = (
            of_first[row].minus(of_first[reference], first) if first and reference is not None else None
        )
    corrected = dict(zip(versus, holm([test.p if test else None for test in versus.values()]), strict=True))

    close: tuple[str, ...] = ()
    if first and len(ranked) > 1:
        close = _close_to_leader(ranked, of_first, first, corrected, references)
    best = len(ranked) > 1 and not close

    lines = tuple(
        BoardLine(
            row=row,
            values={name: own.values for name, own in numbers[row].items()},
            summary=summary[row],
            rank=rank.get(row),
            is_baseline=is_baseline(row, baseline),
            versus=versus[row],
            p_holm=corrected[row],
            better_than_baseline=_better(versus[row], corrected[row], first),
            best=best and row is ranked[0],
            seconds=_median_seconds(row.runs),
        )
        for row in ordered
    )
    return BoardBlock(
        budget=rows[0].budget,
        n_selected=_block_size(lines),
        lines=lines,
        close=close,
        ranks=_ranks([of_first[row].values for row in ranked], first),
    )


def _places(summary: Mapping[Row, Mapping[str, Summary]], first: Metric | None) -> dict[Row, float]:
    """Return by row the mean that orders it, lowest first, of the rows that have the metric."""
    if first is None:
        return {}
    rows = [row for row, of_row in summary.items() if first.name in of_row]
    means = np.array([summary[row][first.name].mean for row in rows])
    places = ties_made_equal(-means if first.higher_is_better else means)
    return dict(zip(rows, places.tolist(), strict=True))


def _close_to_leader(
    ranked: Sequence[Row],
    numbers: Mapping[Row, Numbers],
    metric: Metric,
    corrected: Mapping[Row, float | None],
    references: Mapping[Row, Row | None],
) -> tuple[str, ...]:
    """The labels of the rows that the first cannot be told from: `best` needs each of these tests, corrected.

    The data say which row is first, so its tests are corrected over all pairs of rows. Where the first is the
    baseline, which was named before, they are corrected over the selectors, as those of the baseline are.

    corrected: the p of each row's difference to its baseline, which is the row in `references`.
    """
    leader, *others = ranked
    tests = {row: numbers[leader].minus(numbers[row], metric) for row in others}
    p = {row: corrected[row] for row in others}
    if any(references[row] is not leader for row in others):
        of_pairs = p_of_pairs({row: numbers[row] for row in ranked}, metric)
        p |= {row: of_pairs[leader, row] for row in others if references[row] is not leader}
    # Against the baseline both corrections hold: a row is never best and yet not told from the baseline.
    of_baseline = corrected[leader]
    return tuple(
        row.label
        for row, test in tests.items()
        if not _better(test, p[row], metric)
        or (row is references[leader] and not _better(test, of_baseline, metric))
    )


def _better(test: Paired | None, p: float | None, metric: Metric | None) -> bool | None:
    """The direction of a significant difference: of its mean, which the test is about, and not of the number
    of seeds won."""
    if test is None or p is None or p >= ALPHA or metric is None:
        return None
    return metric.better(test.difference, 0.0)


def _block_size(lines: Sequence[BoardLine]) -> float:
    bound = [line for line in lines if not line.ignores_budget] or lines
    sizes = [run.record.selection.n_selected for li in bound for run in li.row.runs if run.record.selection]
    return fmean(sizes) if sizes else 0.0


def _ranks(by_row: Sequence[Mapping[int, float]], metric: Metric | None) -> RankComparison | None:
    if metric is None or len(by_row) < MIN_RANK_ROWS:
        return None
    seeds = sorted(set.intersection(*(set(values) for values in by_row)))
    if len(seeds) < MIN_RANK_SEEDS:
        return None
    values = np.array([[of_row[seed] for of_row in by_row] for seed in seeds])
    return compare_ranks(values, higher_is_better=metric.higher_is_better)


def _median_seconds(runs: Sequence[Run]) -> dict[str, float]:
    stages = dict.fromkeys(stage for run in runs for stage in run.record.stages)
    return {
        stage: median(run.record.stages[stage].seconds for run in runs if stage in run.record.stages)
        for stage in stages
    }
