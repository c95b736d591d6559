"""Selections judged by the pool's hidden labels, as if these were a test: the same intervals and tests apply.

For runs that chose and did not train (`until=selection`). No selector has read a label.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gtp_exp.leaderboard.diagnostics import label_shares
from gtp_exp.leaderboard.metrics import CHOICE, COPIES, CORRUPTED, LABELS, NEAR_COPIES, ON_TARGET, REPEATS
from gtp_exp.leaderboard.records import Run


def with_choice_judged(run: Run) -> Run:
    """The run with what its labels say of the choice in place of metrics; unchanged without a selection."""
    selection = run.record.selection
    if selection is None or not selection.n_selected:
        return run
    shares = label_shares(run.record)
    judged = {
        ON_TARGET: shares.get("on target"),
        LABELS: selection.labels_chosen / selection.target_labels if selection.target_labels else None,
        CORRUPTED: shares.get("corrupted"),
        COPIES: selection.exact_duplicates / selection.n_selected,
        NEAR_COPIES: selection.near_duplicates / selection.n_selected,
        REPEATS: None if selection.repeats is None else selection.repeats / selection.n_selected,
    }
    metrics: dict[str, float | str] = {name: value for name, value in judged.items() if value is not None}
    metrics["headline"] = next(iter(metrics))
    return replace(run, record=replace(run.record, metrics={CHOICE: metrics}))


def judged_by_labels(runs: Iterable[Run]) -> bool | None:
    """Return whether labels of the rows judge the choices, not copies alone; None where nothing does."""
    headlines = {run.record.metrics[CHOICE]["headline"] for run in runs if CHOICE in run.record.metrics}
    return headlines != {COPIES} if headlines else None
