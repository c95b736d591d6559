"""What a table shows once it is ranked: lines with their numbers, by budget, and the change on each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from gtp_exp.leaderboard.comparability import Row, Table
from gtp_exp.leaderboard.metrics import LOSS, Metric, metric_named
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.references import takes_all
from gtp_exp.leaderboard.statistics import Paired, RankComparison, Summary


@dataclass(frozen=True)
class BoardLine:
    """A row with its numbers. `values` maps a metric to seed -> value, `summary` the same to its statistics;
    both lack a metric that the runs lack."""

    row: Row  # without the runs that lack numbers, where others have them
    values: Mapping[str, Mapping[int, float]]
    summary: Mapping[str, Summary]
    rank: int | None  # among the rows of the budget by the first metric; ties share
    is_baseline: bool
    versus: Paired | None  # this minus the baseline at equal seeds, first metric
    p_holm: float | None  # corrected over the selectors of the budget
    better_than_baseline: bool | None  # None where the difference is not significant or not testable
    best: bool  # better than every other row of the budget, each p_holm < 0.05
    seconds: Mapping[str, float]  # stage -> median over seeds

    @property
    def ignores_budget(self) -> bool:
        """Whether the selector takes what it takes at any budget, as `full` does."""
        return any(map(takes_all, self.row.runs))

    @property
    def n_selected(self) -> float:
        """Mean over the seeds; 0 for runs without a selection."""
        sizes = [run.record.selection.n_selected for run in self.row.runs if run.record.selection]
        return fmean(sizes) if sizes else 0.0

    @property
    def choosing_seconds(self) -> float:
        return sum(seconds for stage, seconds in self.seconds.items() if is_choosing(stage))

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class BoardBlock:
    """The rows of one budget, best first."""

    budget: str
    n_selected: float  # mean over its runs, without those that ignore the budget where others are there
    lines: tuple[BoardLine, ...]
    close: tuple[str, ...]  # rows that the leader could not be told from
    ranks: RankComparison | None  # over the seeds that every ranked row has; methods in the order of `lines`


@dataclass(frozen=True)
class TaskChange:
    """A task before and after tuning, for one row."""

    task: str
    metric: Metric
    untuned: float | None
    mean: float

    @property
    def change(self) -> float | None:
        return None if self.untuned is None else self.mean - self.untuned


@dataclass(frozen=True)
class Board:
    """Hold one table as it is shown: its ranked rows by budget, and the notes that go with them."""

    table: Table
    metrics: tuple[Metric, ...]  # the ranking one first; empty for runs that were not evaluated
    tasks: tuple[str, ...]
    untuned: Mapping[str, float]  # metric -> value of the model before tuning
    blocks: tuple[BoardBlock, ...]
    unranked: tuple[tuple[Run, str], ...]  # complete runs that lack numbers, with the reason
    notes: tuple[str, ...]  # what a reader must know before believing the table
    ranked_by: str = ""  # which metric ranks, and why, in one sentence
    # of the runs on all rows with another training: label -> metric -> mean over seeds
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def reference_lines(self) -> list[tuple[str, Mapping[str, float]]]:
        """The numbers to compare with that have no rank, by label: first those of the untuned model."""
        return [*([("untuned model", self.untuned)] if self.untuned else []), *self.references.items()]

    @property
    def further(self) -> bool:
        """Whether it shows a further test of runs that another table shows with what they chose."""
        return any(run.test for run in self.table.runs)

    @property
    def lines(self) -> tuple[BoardLine, ...]:
        return tuple(line for block in self.blocks for line in block.lines)


def is_choosing(stage: str) -> bool:
    """Whether a stage belongs to choosing the data, as opposed to training on it and testing the result."""
    return not stage.startswith(("finetune", "evaluat", "untuned", "validation"))


def task_changes(board: Board, line: BoardLine) -> tuple[TaskChange, ...]:
    """Each task's headline metric and held-out loss, so that a gain that costs another task shows."""
    changes: list[TaskChange] = []
    for task in board.tasks:
        runs = [run for run in line.row.runs if task in run.record.metrics]
        for name in dict.fromkeys([LOSS, *(str(run.record.metrics[task]["headline"]) for run in runs)]):
            tuned_values = [
                float(run.record.metrics[task][name]) for run in runs if name in run.record.metrics[task]
            ]
            before = next(
                (
                    float(run.record.untuned[task][name])
                    for run in board.table.runs
                    if name in run.record.untuned.get(task, {})
                ),
                None,
            )
            if tuned_values:
                changes.append(
                    TaskChange(task=task, metric=metric_named(name), untuned=before, mean=fmean(tuned_values))
                )
    return tuple(changes)
