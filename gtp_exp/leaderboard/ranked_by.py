"""Which metric ranks a table, and why, where nobody has asked for one.

The answers of the benchmark decide. The loss of a bare answer never ranks a test with reasoning: over the
models of arXiv 2602.14696 that loss and the metric rise together (correlations of +0.5 to +0.8), where a loss
should fall.
"""

from __future__ import annotations

from collections.abc import Sequence

from gtp_exp.data.benchmark import Answers
from gtp_exp.leaderboard.choices import judged_by_labels
from gtp_exp.leaderboard.comparability import Row
from gtp_exp.leaderboard.metrics import CONTENT, HEADLINE, LOSS, VALIDATED, Metric, metric_named
from gtp_exp.leaderboard.numbers import Tested, p_of_pairs
from gtp_exp.leaderboard.statistics import ALPHA


def ranked_by(tested: Tested, rows: Sequence[Row]) -> tuple[str, str]:
    """Return the name of the metric that ranks (HEADLINE for the tasks' own), and why in one sentence."""
    metrics = [values for run in tested.runs for values in run.record.metrics.values()]
    answers = {run.record.answers for run in tested.runs}
    by_labels = judged_by_labels(tested.runs)
    if by_labels:
        return HEADLINE, "Ranked by what hidden labels say of the choice; no test of a model counts here."
    if by_labels is False:
        return (
            HEADLINE,
            "Ranked by copies among the chosen rows: no test of a model counts, no row has labels.",
        )
    if any(VALIDATED in run.record.metrics for run in tested.runs):
        return LOSS, "Ranked by the loss of rows that were held back from the selector; no test row was read."
    if Answers.REASONING in answers:
        return HEADLINE, (
            "Ranked by the test's own metric: its answers follow from reasoning, which the loss of a bare "
            "answer does not measure."
        )
    own = {str(values["headline"]) for values in metrics if CONTENT in values}
    if answers == {Answers.CHOICES} and len(own) == 1:
        accuracy = metric_named(own.pop())
        if budgets := told_apart(tested, rows, accuracy):
            return accuracy.name, (
                f"Ranked by {accuracy.label}: the answers are choices, and it tells selectors apart at "
                f"{', '.join(budgets)} (p < {ALPHA}, Holm-corrected over the pairs of a budget)."
            )
        return CONTENT, (
            f"Ranked by content, minus the log of the right choice's share among all: the answers are "
            f"choices, and {accuracy.label} tells no two selectors apart."
        )
    if any(LOSS in values for values in metrics):
        return LOSS, (
            f"Ranked by {metric_named(LOSS).label}, the held-out loss of the right answers, which tells "
            "selectors apart with fewer seeds than a metric of a few test rows."
        )
    return HEADLINE, "Ranked by the test's own metric: the right answers have no held-out loss."


def told_apart(tested: Tested, rows: Sequence[Row], metric: Metric) -> list[str]:
    """Return the budgets at which a difference between two rows is significant, corrected over all pairs."""
    numbers = tested.numbers(rows, metric)
    told = []
    for budget in dict.fromkeys(row.budget for row in rows):
        at_budget = {row: numbers[row] for row in rows if row.budget == budget}
        if any(p is not None and p < ALPHA for p in p_of_pairs(at_budget, metric).values()):
            told.append(budget)
    return told
