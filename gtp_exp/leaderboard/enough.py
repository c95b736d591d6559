"""How little is enough: from which budget on a selector's rows are worth about as much as all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gtp_exp.leaderboard.board import BoardBlock
from gtp_exp.leaderboard.comparability import Row
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.numbers import NO_NUMBERS, Numbers

MARGIN = 0.02  # of a share, such as accuracy; fixed before any run was looked at


def enough(
    blocks: Sequence[BoardBlock],
    numbers: Mapping[Row, Numbers],
    references: Mapping[str, Numbers],
    metric: Metric,
) -> list[str]:
    """Say for each row of runs on all rows which choices come within MARGIN of it, as sentences.

    A choice does where the 95% interval of its difference at equal seeds lies above -MARGIN. Of every
    selector the smallest budget that does is told, or the largest that was tried. Only shares have a margin.

    blocks: in the order of their budgets. numbers, references: by row and by label, of this metric.
    """
    if not metric.percent or not metric.higher_is_better:
        return []
    return [
        said
        for label, of_all in references.items()
        if (said := _beside(blocks, numbers, label, of_all, metric))
    ]


def _beside(
    blocks: Sequence[BoardBlock], numbers: Mapping[Row, Numbers], label: str, of_all: Numbers, metric: Metric
) -> str:
    """Return the sentence about one run on all rows; none without two seeds in common with any choice."""
    told: dict[str, tuple[bool, str]] = {}  # by selector: whether it comes that close, and where
    for block in blocks:
        for line in block.lines:
            test = numbers.get(line.row, NO_NUMBERS).minus(of_all, metric)
            if test is None or test.interval is None or told.get(line.row.label, (False,))[0]:
                continue
            low, high = (metric.show_difference(end) for end in (test.interval.low, test.interval.high))
            difference = f"{metric.show_difference(test.difference)} [{low}, {high}]"
            close = test.interval.low > -MARGIN
            told[line.row.label] = close, f"{line.row.label} at {block.budget} ({difference})"
    if not told:
        return ""
    limit = metric.show_difference(-MARGIN)
    within = [where for close, where in told.values() if close]
    beyond = [where for close, where in told.values() if not close]
    return (
        f"Enough rows are those whose interval minus {label} lies above {limit}: "
        f"{', '.join(within) or 'no choice yet'}."
        + (f" Not shown for {', '.join(beyond)}." if beyond else "")
    )
