"""Which rows of several seeds have read the gradients of one warm-up trajectory."""

from __future__ import annotations

from collections.abc import Iterable

from gtp_exp.leaderboard.comparability import TRAJECTORY_SEED, Row, flatten
from gtp_exp.leaderboard.records import Run

WARMUP, POOL = "warmup", "gradients: pool"  # stages; gradients made elsewhere have no warm-up


def fixed_trajectories(rows: Iterable[Row]) -> list[str]:
    """What names the one trajectory that rows of several seeds share, where gradients were read: a value of
    gradients.seed, or the store that holds gradients made elsewhere."""
    fixed: set[str] = set()
    for row in rows:
        runs = [run for run in row.runs if {WARMUP, POOL} & run.record.stages.keys()]
        trajectories = {_trajectory(run) for run in runs}
        if len({run.record.seed for run in runs}) > 1 and len(trajectories) == 1:
            fixed.update(name for name, _ in trajectories)
    return sorted(fixed)


def _trajectory(run: Run) -> tuple[str, str]:
    """Return the name of the trajectory of a run's gradients, and what tells it from others of that name."""
    if WARMUP in run.record.stages:
        name = f"{TRAJECTORY_SEED}={flatten(run.record.config).get(TRAJECTORY_SEED)}"
        return name, "" if run.record.pool is None else run.record.pool.content  # its rows warm up
    return f"gradients.pool={flatten(run.record.config).get('gradients.pool')}", run.record.stages[POOL].key
