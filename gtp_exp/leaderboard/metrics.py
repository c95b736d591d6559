"""What a metric's name says: which way is better, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HEADLINE = "headline"  # each task's own headline metric
# Where hidden labels judge: what stands for a task, and its metrics, shares of the chosen rows.
CHOICE = "choice"
ON_TARGET, CORRUPTED, COPIES, NEAR_COPIES = "on_target", "corrupted", "exact_copies", "near_copies"

_LOWER_IS_BETTER = {
    *("nats", "bits", "bpb", "nll", "loss", "perplexity", "ppl", "brier"),
    *("error", "errors", "wer", "cer", "ter", "mse", "rmse", "mae"),
}
_FAULTS = (CORRUPTED, COPIES, NEAR_COPIES)
_SHARES = ("acc", "exact_match", "em", "accuracy", "win_rate", ON_TARGET, *_FAULTS)


@dataclass(frozen=True)
class Metric:
    """Say how a metric is read and written: its direction, and whether it is a share."""

    name: str
    label: str
    higher_is_better: bool
    percent: bool  # a share of 1, written as per cent

    def show(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.percent else _plain(value)

    def show_difference(self, value: float) -> str:
        """Signed; the difference of two shares is in percentage points."""
        text = f"{100 * abs(value):.1f} pt" if self.percent else _plain(abs(value))
        return ("+" if value > 0 else "\u2212" if value < 0 else "") + text

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher_is_better else a < b


def describe(name: str) -> Metric:
    """Return what a metric's name tells of it; an unknown one counts as better when higher."""
    base = name.split(",")[0].lower()  # lm-eval writes "exact_match,strict-match"
    return Metric(
        name=name,
        label=name.replace("_", " "),
        higher_is_better=base not in _FAULTS and _LOWER_IS_BETTER.isdisjoint(base.split("_")),
        percent=base in _SHARES or base.startswith(("acc_", "exact_match")),
    )


def headline_metric(headlines: set[str]) -> Metric:
    """What `headline` is over several tasks: their common metric, or a mean of unlike ones."""
    if len(headlines) == 1:
        return describe(next(iter(headlines)))
    kinds = [describe(name) for name in headlines]
    return Metric(
        name=HEADLINE,
        label="headline mean",
        higher_is_better=all(kind.higher_is_better for kind in kinds),
        percent=all(kind.percent for kind in kinds),
    )


def mean_over_tasks(
    metrics: Mapping[str, Mapping[str, float | str]], tasks: tuple[str, ...], name: str
) -> float | None:
    """The unweighted mean over tasks, or None where any task lacks the metric: a mean of fewer tasks is
    another quantity."""
    values: list[float] = []
    for task in tasks:
        of_task = metrics.get(task)
        key = name if of_task is None or name != HEADLINE else str(of_task["headline"])
        if of_task is None or key not in of_task:
            return None
        values.append(float(of_task[key]))
    return sum(values) / len(values) if values else None


def _plain(value: float) -> str:
    """Four significant digits up to a thousand, no exponent for the usual sizes of a loss."""
    size = abs(value)
    if size >= 1000 or (0 < size < 0.0005):
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 100 else f"{value:.1f}"
