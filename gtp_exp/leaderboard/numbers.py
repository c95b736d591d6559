"""What the rows of a table scored: by metric and seed, and on resampled test rows where these were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from gtp_exp.errors import UserError
from gtp_exp.leaderboard.comparability import Row
from gtp_exp.leaderboard.metrics import Metric, mean_over_tasks
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.row_draws import draws_by_run
from gtp_exp.leaderboard.statistics import Paired, Summary, holm, paired, summarise
from gtp_exp.records.row_results import TaskRows, read_row_results


@dataclass(frozen=True)
class Numbers:
    """Hold one row's values of one metric."""

    values: Mapping[int, float]  # by seed
    draws: Mapping[int, np.ndarray]  # by seed: the value on draws of test rows, where they are known

    def summary(self, metric: Metric) -> Summary:
        """Return the mean with its interval, which stays where the metric can be."""
        known = all(seed in self.draws for seed in self.values)
        draws = np.stack([self.draws[seed] for seed in self.values]) if known else None
        return summarise(list(self.values.values()), draws, metric.bounds)

    def minus(self, other: Numbers, metric: Metric) -> Paired | None:
        """Compare to another row at equal seeds and on equal test rows; None where they share no seed."""
        draws = (self.draws, other.draws)
        return paired(self.values, other.values, draws, higher_is_better=metric.higher_is_better)


NO_NUMBERS = Numbers({}, {})


def p_of_pairs(numbers: Mapping[Row, Numbers], metric: Metric) -> dict[tuple[Row, Row], float | None]:
    """Return the p of the difference between each two rows, in their order, Holm-corrected over all pairs."""
    tests = {(a, b): numbers[a].minus(numbers[b], metric) for a, b in combinations(numbers, 2)}
    return dict(zip(tests, holm([test.p if test else None for test in tests.values()]), strict=True))


@dataclass(frozen=True)
class Tested:
    """Hold the tested runs of a table, and how their tasks are averaged."""

    runs: tuple[Run, ...]
    tasks: tuple[str, ...]
    weights: Mapping[str, int] | None  # of each task in a mean over test rows; None counts them alike
    by_row: Mapping[Run, Mapping[str, TaskRows]]  # of the runs that kept the results of single test rows
    kept: dict[str, dict[Run, np.ndarray]] = field(default_factory=dict)  # draws by metric, made once

    def covered(self, metric: Metric) -> tuple[str, ...]:
        """Return the tasks that have the metric in any run: only there can a single run lack it."""
        return tuple(
            task
            for task in self.tasks
            if any(mean_over_tasks(run.record.metrics, (task,), metric.name) is not None for run in self.runs)
        )

    def numbers(self, rows: Sequence[Row], metric: Metric) -> dict[Row, Numbers]:
        """Return what each row scored by a metric: nothing where its runs lack it."""
        tasks, draws = self.covered(metric), {}
        if any(len(row.runs) > 1 for row in rows):  # a single seed has no interval
            if metric.name not in self.kept:
                self.kept[metric.name] = draws_by_run(self.by_row, tasks, metric.name, self.weights)
            draws = self.kept[metric.name]
        found = {}
        for row in rows:
            of_run = {
                run: mean_over_tasks(run.record.metrics, tasks, metric.name, self.weights) for run in row.runs
            }
            found[row] = Numbers(
                {run.record.seed: value for run, value in of_run.items() if value is not None},
                {run.record.seed: draws[run] for run in row.runs if run in draws},
            )
        return found


def rows_of_runs(runs: Sequence[Run]) -> tuple[dict[Run, dict[str, TaskRows]], list[str]]:
    """Return the results of single test rows of the runs that kept them, and what files are damaged."""
    by_row, damaged = {}, []
    for run in runs:
        try:
            found = read_row_results(run.directory).get(run.test)
        except UserError as error:
            damaged.append(str(error).replace(f"{run.directory}/", f"{run.name}/"))
            continue
        if found:
            by_row[run] = found
    return by_row, damaged
