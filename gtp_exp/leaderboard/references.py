"""Runs on all rows with a training of their own: a reference beside the choices, not a table of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.variants import is_under

TRAINING = ("train",)


def takes_all(run: Run) -> bool:
    """Say whether a run's selector takes what it takes at any budget, as `full` does."""
    selection = run.record.selection
    return selection is not None and selection.diagnostics.get("ignores_budget") is True


def references_of(
    groups: Sequence[Sequence[Run]], settings: Mapping[Run, Mapping[str, str]]
) -> dict[Run, list[Sequence[Run]]]:
    """Return by the first run of a group the groups that are a reference for it.

    groups: runs of equal settings. A reference takes all rows, and differs from a group with choices in its
    training alone, and was tested.
    """
    data = [{k: v for k, v in settings[runs[0]].items() if not is_under(k, TRAINING)} for runs in groups]
    references: dict[Run, list[Sequence[Run]]] = {}
    for runs, own in zip(groups, data, strict=True):
        if all(takes_all(run) and run.record.metrics for run in runs):
            for others, theirs in zip(groups, data, strict=True):
                if own == theirs and not all(map(takes_all, others)):
                    references.setdefault(others[0], []).append(runs)
    return references


def reference_label(selector: str, runs: Sequence[Run]) -> str:
    """Return the name of a reference: the selector, with the optimizer steps of its training.

    Where no record tells them, the epochs of the configuration stand for them.
    """
    lengths = {run.record.training.steps for run in runs if run.record.training}
    if lengths:
        return f"{selector}, {' or '.join(f'{n:,}' for n in sorted(lengths))} steps"
    return f"{selector}, train.epochs={runs[0].record.config.get('train', {}).get('epochs')}"
