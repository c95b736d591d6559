"""Resample the test rows of a table: each run's value of a metric on the same draws of rows.

Tasks are given, their rows are drawn: as many of each task as it has, with replacement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gtp_exp.leaderboard.metrics import HEADLINE, LOSS
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.statistics import DRAWS, SEED
from gtp_exp.records.row_results import ANSWER_TOKENS, TaskRows

CHUNK = 1 << 21  # numbers that are drawn at a time


@dataclass(frozen=True)
class TaskValues:
    """Hold what some runs scored on the rows of one task."""

    values: np.ndarray  # [runs, rows]
    row_weights: np.ndarray  # [rows]: 1, or a row's tokens for a mean per token
    weight: float  # of the task in the mean over tasks; they sum to 1


def draws_by_run(
    rows: Mapping[Run, Mapping[str, TaskRows]],
    tasks: Sequence[str],
    metric: str,
    weights: Mapping[str, int] | None,
) -> dict[Run, np.ndarray]:
    """Return each run's mean over tasks on DRAWS draws of rows; a run without its results of single rows, or
    with others than most runs, is left out.

    rows: by run and task. weights: as `mean_over_tasks` takes them.
    """
    of_run = {
        run: values
        for run, of_tasks in rows.items()
        if (values := _values(run, of_tasks, tasks, metric)) is not None
    }
    shapes = {
        run: tuple(row_weights.tobytes() for _, row_weights in values) for run, values in of_run.items()
    }
    if not shapes or not tasks:
        return {}
    (usual, _), *_ = Counter(shapes.values()).most_common(1)
    runs = [run for run, shape in shapes.items() if shape == usual]
    total = sum(1 if weights is None else weights[task] for task in tasks)
    drawn = resampled(
        [
            TaskValues(
                np.array([of_run[run][i][0] for run in runs]),
                np.frombuffer(usual[i]),
                (1 if weights is None else weights[task]) / total,
            )
            for i, task in enumerate(tasks)
        ]
    )
    return dict(zip(runs, drawn, strict=True))


def resampled(tasks: Sequence[TaskValues]) -> np.ndarray:
    """Return the mean over tasks of every run on draws of rows that all runs share, [runs, DRAWS]."""
    rng = np.random.default_rng(SEED)
    total = np.zeros((DRAWS, len(tasks[0].values)))
    for task in tasks:
        n = task.values.shape[1]
        weighted = np.column_stack([(task.values * task.row_weights).T, task.row_weights])  # [n, runs + 1]
        size = max(1, CHUNK // n)
        for start in range(0, DRAWS, size):
            draws = min(size, DRAWS - start)
            drawn = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
            times = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n)
            sums = times.astype(float) @ weighted
            total[start : start + draws] += task.weight * sums[:, :-1] / sums[:, -1:]
    return total.T


def _values(
    run: Run, rows: Mapping[str, TaskRows], tasks: Sequence[str], metric: str
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Return the values and weights of the rows of each task; None where one has no such results, or where
    their mean is not the value that the record tells."""
    found = []
    for task in tasks:
        of_task = run.record.metrics.get(task)
        if of_task is None:
            return None
        name = str(of_task["headline"]) if metric == HEADLINE else metric
        values = rows.get(task, {}).get(name)
        if values is None or name not in of_task:
            return None
        row_weights = rows[task].get(ANSWER_TOKENS) if name == LOSS else np.ones(len(values))
        if row_weights is None or len(row_weights) != len(values):
            return None
        mean = float((values * row_weights).sum() / row_weights.sum())
        if not np.isclose(mean, float(of_task[name]), rtol=1e-6, atol=1e-9):
            return None
        found.append((values, row_weights))
    return found
