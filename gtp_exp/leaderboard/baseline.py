"""Find the row that the others of a table are compared with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gtp_exp.leaderboard.comparability import Row

_WHOLE = re.compile(r"(?<=\d)\.0+(?=\]*$)")  # of a number, or of the last one in a list


def is_baseline(row: Row, baseline: str) -> bool:
    """Tell whether a row is meant by a selector's name, `gtp`, or by that with some or all of the settings
    in the row's label, `gtp [train.loss=token_mean]`.
    """
    selector, settings = _taken_apart(baseline)
    return row.selector == selector and settings <= _parts(row.variant)


def baseline_of(row: Row, rows: Sequence[Row], baseline: str) -> Row | None:
    """Return the baseline's row to compare one of a budget's rows with; none where it stands in several.

    Without settings the baseline's row of the same grid settings is meant; with settings, which may be those
    of the grid, the one that has them.
    """
    if is_baseline(row, baseline):
        return None
    meant = [other for other in rows if is_baseline(other, baseline)]
    if not _taken_apart(baseline)[1]:
        meant = [other for other in meant if other.beside == row.beside]
    return meant[0] if len(meant) == 1 else None


def _taken_apart(baseline: str) -> tuple[str, set[str]]:
    """Return the selector's name and its settings, each as `key=value`."""
    selector, bracket, settings = baseline.partition("[")
    if not bracket or not settings.endswith("]"):
        return baseline, set()
    return selector.rstrip(), _parts(settings[:-1])


def _parts(settings: str) -> set[str]:
    """Return what stands between commas; those within a list part it on both sides of a comparison. Whole
    numbers are as a row's label has them: 1, not 1.0."""
    return {_WHOLE.sub("", part.strip()) for part in settings.split(",") if part.strip()}
