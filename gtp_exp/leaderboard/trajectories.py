"""Which rows of several seeds have read the gradients of one warm-up trajectory."""

from __future__ import annotations

from collections.abc import Iterable

from gtp_exp.leaderboard.comparability import TRAJECTORY_SEED, Row, flatten


def fixed_trajectories(rows: Iterable[Row]) -> list[str]:
    """The values of gradients.seed that rows of several seeds hold fixed, where gradients were read."""
    fixed: set[str] = set()
    for row in rows:
        runs = [run for run in row.runs if "warmup" in run.record.stages]
        values = {flatten(run.record.config).get(TRAJECTORY_SEED) for run in runs}
        if len({run.record.seed for run in runs}) > 1 and len(values) == 1:
            fixed.update(value for value in values if value is not None)
    return sorted(fixed)
