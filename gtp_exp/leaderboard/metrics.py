"""What a metric's name says: which way is better, and how it is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from gtp_exp.data.benchmark import Mean
from gtp_exp.records.record import RunRecord

HEADLINE = "headline"  # each task's own headline metric
LOSS = "nats_per_token"  # the held-out loss of the test answers
CONTENT = "content"  # the part of a right choice's loss that is about which choice it is
TESTED_ON = "tested_on"  # the settings of a further test, where that is what the runs were tested on
VALIDATED = "validation"  # what stands for a task where rows held back from the selector judge
# Where hidden labels judge: what stands for a task, and its metrics, shares of the chosen rows.
CHOICE = "choice"
ON_TARGET, CORRUPTED, COPIES, NEAR_COPIES = "on_target", "corrupted", "exact_copies", "near_copies"
REPEATS = "repeats"  # copies of another chosen row by hidden labels, in other words or the same
LABELS = "labels_covered"  # of those that the pool has to teach for the target

_NEVER_NEGATIVE = {
    *("nats", "bits", "bpb", "nll", "loss", "perplexity", "ppl", "brier"),
    *("content", "form"),  # the parts of a choice's loss
    *("error", "errors", "wer", "cer", "ter", "mse", "rmse", "mae"),
}
_OF_BIAS = {"bias", "toxicity", "stereotype", "preferred", "difference", "diff", "invalid"}  # lm-eval's
_LOWER_IS_BETTER = _NEVER_NEGATIVE | _OF_BIAS
_FAULTS = (CORRUPTED, COPIES, NEAR_COPIES, REPEATS)
_WRITTEN = ("exact_match", "em", "rouge_l", "sentence_chrf")  # of answers that the model writes
_SHARES = ("acc", "accuracy", "win_rate", *_WRITTEN, ON_TARGET, LABELS, *_FAULTS)


@dataclass(frozen=True)
class Metric:
    """Say how a metric is read and written: its direction, and whether it is a share."""

    name: str
    label: str
    higher_is_better: bool
    percent: bool  # a share of 1, written as per cent
    over: str = ""  # what it is a mean over, `rows` or `tasks`; empty for one task

    def show(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.percent else _plain(value)

    def show_difference(self, value: float) -> str:
        """Signed; the difference of two shares is in percentage points. A difference that its column's three
        decimals do not show is zero there."""
        size = abs(value)
        text = f"{100 * size:.1f} pt" if self.percent else "0.000" if size < 0.0005 else _plain(size)
        return ("+" if value > 0 else "\u2212" if value < 0 else "") + text

    def averaged(self, over: Mean) -> Metric:
        """Return the metric as a mean over several tasks, which its label names."""
        return replace(self, label=f"{self.label} over {over.value}", over=over.value)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that a mean of it can have."""
        if self.percent:
            return 0.0, 1.0
        return (-inf if _NEVER_NEGATIVE.isdisjoint(_words(self.name)) else 0.0), inf

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher_is_better else a < b


def metric_named(name: str) -> Metric:
    """Return what a metric's name tells of it; an unknown one counts as better when higher."""
    base = _base(name)
    return Metric(
        name=name,
        label=name.replace("_", " "),
        higher_is_better=base not in _FAULTS and _LOWER_IS_BETTER.isdisjoint(_words(name)),
        percent=base in _SHARES or base.startswith(("acc_", "exact_match")),
    )


def _base(name: str) -> str:
    return name.split(",")[0].lower()  # lm-eval writes "exact_match,strict-match"


def _words(name: str) -> list[str]:
    return _base(name).split("_")


def headline_metric(headlines: set[str]) -> Metric:
    """What `headline` is over several tasks: their common metric, or a mean of unlike ones, which there is
    where `have_a_mean` says so."""
    if len(headlines) == 1:
        return metric_named(next(iter(headlines)))
    kinds = [metric_named(name) for name in headlines]
    return Metric(
        name=HEADLINE,
        label="headline mean",
        higher_is_better=all(kind.higher_is_better for kind in kinds),
        percent=all(kind.percent for kind in kinds),
    )


def have_a_mean(headlines: Collection[str]) -> bool:
    """Whether the headline metrics of several tasks are all better when higher, or all when lower: a mean of
    an accuracy and a perplexity says nothing."""
    return len({metric_named(name).higher_is_better for name in headlines}) < 2


def mean_over_tasks(
    metrics: Mapping[str, Mapping[str, float | str]],
    tasks: Sequence[str],
    name: str,
    weights: Mapping[str, int] | None = None,
) -> float | None:
    """The mean over tasks, or None where any task lacks the metric (a mean of fewer tasks is another
    quantity) and where their headline metrics have none.

    weights: the number of test rows by task, for a mean over rows; None counts every task the same.
    """
    total, n = 0.0, 0
    if name == HEADLINE and not have_a_mean({str(metrics[t]["headline"]) for t in tasks if t in metrics}):
        return None
    for task in tasks:
        of_task = metrics.get(task)
        key = name if of_task is None or name != HEADLINE else str(of_task["headline"])
        if of_task is None or key not in of_task:
            return None
        weight = 1 if weights is None else weights[task]
        total, n = total + weight * float(of_task[key]), n + weight
    return total / n if n else None


def n_test_rows(record: RunRecord, task: str) -> int:
    """Return the number of rows that a task was tested on; 0 where the record does not tell.

    A record of an earlier release tells only how many rows became of tokenising them, used or left out.
    """
    tested = record.metrics.get(task, {}).get("rows_tested")
    if tested is not None:
        return int(tested)
    counts = record.rows.get(task)
    return 0 if counts is None else counts.used + sum(counts.left_out.values())


def error_over_rows(values: Mapping[str, float | str], name: str) -> float | None:
    """Return the standard error of a task's metric over its test rows; None where it is not known, as of a
    single row, for which records tell 0."""
    error = values.get(f"{name}_stderr")
    return None if isinstance(error, str) or error is None or values.get("rows_tested") == 1 else float(error)


def row_weights(records: Sequence[RunRecord], mean: Mean | None) -> tuple[dict[str, int] | None, list[str]]:
    """Return the weight of each task in a mean over the tasks of these runs, and the tasks whose number of
    test rows no run tells. The weights are None where every task counts the same, as one such task or a
    single task makes it.

    mean: None takes what the runs' benchmark asks for as `benchmark.mean`, by default a mean over rows.
    """
    tasks = dict.fromkeys(task for record in records for task in record.metrics)
    if len(tasks) == 1 or (mean or _asked(records)) is Mean.TASKS:
        return None, []
    weights = {task: max(n_test_rows(record, task) for record in records) for task in tasks}
    unknown = sorted(task for task, n in weights.items() if not n)
    return (None if unknown else weights), unknown


def headline_mean(record: RunRecord) -> float | None:
    """Return a run's mean headline metric, as tables show it and a sweeper is told it; None without a
    task, and where the tasks' metrics have no mean."""
    weights, _ = row_weights([record], None)
    return mean_over_tasks(record.metrics, tuple(record.metrics), HEADLINE, weights)


def _asked(records: Sequence[RunRecord]) -> Mean:
    benchmarks = [record.config.get(TESTED_ON, record.config.get("benchmark")) for record in records]
    asked = [b.get("mean") for b in benchmarks if isinstance(b, Mapping)]
    return Mean.TASKS if Mean.TASKS.value in asked else Mean.ROWS


def _plain(value: float) -> str:
    """Four significant digits up to a thousand, no exponent for the usual sizes of a loss."""
    size = abs(value)
    if size >= 1000 or (0 < size < 0.0005):
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 100 else f"{value:.1f}"
