"""Tables of runs to tables of statistics: means, intervals, differences to the baseline, ranks, costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np

from gtp_exp.data.benchmark import Mean
from gtp_exp.errors import UserError
from gtp_exp.leaderboard.comparability import TRAJECTORY_SEED, Row, Table, flatten
from gtp_exp.leaderboard.metrics import (
    CHOICE,
    COPIES,
    CORRUPTED,
    HEADLINE,
    ON_TARGET,
    Metric,
    headline_metric,
    mean_over_tasks,
    metric_named,
    row_weights,
)
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.statistics import (
    ALPHA,
    Paired,
    RankComparison,
    Summary,
    compare_ranks,
    holm,
    paired,
    summarise,
)

LOSS = "nats_per_token"
MIN_RANK_SEEDS, MIN_RANK_ROWS = 3, 3  # below these a rank diagram says nothing


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
        return any(
            run.record.selection.diagnostics.get("ignores_budget") is True
            for run in self.row.runs
            if run.record.selection
        )

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

    @property
    def lines(self) -> tuple[BoardLine, ...]:
        return tuple(line for block in self.blocks for line in block.lines)


def is_choosing(stage: str) -> bool:
    """Whether a stage belongs to choosing the data, as opposed to training on it and testing the result."""
    return not stage.startswith(("finetune", "evaluat", "untuned"))


def check_metric(runs: Sequence[Run], name: str) -> None:
    """Raises UserError when runs were evaluated but none has the metric."""
    names_present = {key for run in runs for values in run.record.metrics.values() for key in values}
    if names_present and name not in names_present:
        offered = sorted(key for key in names_present if not key.endswith("_stderr"))
        raise UserError(f"--metric {name} is in none of the runs; choose one of {', '.join(offered)}")


def score(table: Table, *, metric: str, baseline: str, mean: Mean | None = None) -> Board:
    """metric: what ranks, a name or `headline`. baseline: the selector that others are compared to. mean:
    over rows or over tasks; None is as the benchmark asks."""
    evaluated = [run for run in table.runs if run.record.metrics]
    tasks = tuple(sorted({task for run in evaluated for task in run.record.metrics}))
    weights, uncounted = row_weights([run.record for run in evaluated], mean)
    metrics = _metrics(evaluated, metric)
    if len(tasks) > 1:
        over = Mean.TASKS if weights is None else Mean.ROWS
        metrics = tuple(kind.averaged(over) for kind in metrics)
    covered = {kind.name: _tasks_with(evaluated, tasks, kind) for kind in metrics}
    unranked = _unranked(table.runs, tasks, metrics, covered)
    out = {run for run, _ in unranked}
    rows = [
        replace(row, runs=tuple(run for run in row.runs if run not in out) or row.runs) for row in table.rows
    ]

    values: dict[Row, dict[str, dict[int, float]]] = {}
    for row in rows:
        of_row: dict[str, dict[int, float]] = {}
        for run in row.runs:
            for kind in metrics if run not in out else ():
                value = mean_over_tasks(run.record.metrics, covered[kind.name], kind.name, weights)
                if value is not None:
                    of_row.setdefault(kind.name, {})[run.record.seed] = value
        values[row] = of_row

    blocks = [
        _block([row for row in rows if row.budget == budget], values, metrics, baseline)
        for budget in dict.fromkeys(row.budget for row in rows)
    ]
    blocks.sort(key=lambda block: (block.n_selected, block.budget))
    untuned, untuned_differs = _untuned(table.runs, covered, metrics, weights)
    notes = _notes(table, blocks, metrics, baseline)
    if uncounted:
        notes.append(
            "Means are over tasks, not over test rows, for no run tells the number of test rows of "
            f"{', '.join(uncounted)}."
        )
    for kind in metrics:
        if without := [task for task in tasks if task not in covered[kind.name]]:
            notes.append(f"{kind.label} is a mean over the tasks that have it: not {', '.join(without)}.")
    if untuned_differs:
        notes.append("The runs disagree on the untuned model's numbers; the first run's are shown.")
    return Board(
        table=table,
        metrics=metrics,
        tasks=tasks,
        untuned=untuned,
        blocks=tuple(blocks),
        unranked=tuple(unranked),
        notes=tuple(notes),
    )


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


def _metrics(runs: Sequence[Run], first: str) -> tuple[Metric, ...]:
    """The ranking metric, then the held-out loss or what labels say, and the headline where it is another."""
    if not runs:
        return ()
    headline = headline_metric({str(v["headline"]) for run in runs for v in run.record.metrics.values()})
    present = {key for run in runs for values in run.record.metrics.values() for key in values}
    chosen = [headline if first == HEADLINE else metric_named(first)]
    beside = [metric_named(name) for name in (LOSS, ON_TARGET, CORRUPTED, COPIES) if name in present]
    for kind in [*beside, headline]:
        if kind.name not in {other.name for other in chosen}:
            chosen.append(kind)
    return tuple(chosen)


def _tasks_with(runs: Sequence[Run], tasks: tuple[str, ...], kind: Metric) -> tuple[str, ...]:
    """The tasks that have the metric in any run: only there can a single run lack it."""
    return tuple(
        task
        for task in tasks
        if any(mean_over_tasks(run.record.metrics, (task,), kind.name) is not None for run in runs)
    )


def _unranked(
    runs: Sequence[Run],
    tasks: tuple[str, ...],
    metrics: tuple[Metric, ...],
    covered: Mapping[str, tuple[str, ...]],
) -> list[tuple[Run, str]]:
    if not metrics:
        return []
    first = metrics[0]
    left_out: list[tuple[Run, str]] = []
    for run in runs:
        metrics_of = run.record.metrics
        if missing := [task for task in tasks if task not in metrics_of]:
            left_out.append((run, f"not evaluated on {', '.join(missing)}"))
        elif lacking := [
            task for task in covered[first.name] if mean_over_tasks(metrics_of, (task,), first.name) is None
        ]:
            left_out.append((run, f"no {first.name} for {', '.join(lacking)}"))
        elif not covered[first.name]:
            left_out.append((run, f"no {first.name}"))
    return left_out


def _block(
    rows: Sequence[Row],
    values: Mapping[Row, Mapping[str, Mapping[int, float]]],
    metrics: tuple[Metric, ...],
    baseline: str,
) -> BoardBlock:
    first = metrics[0] if metrics else None
    of_first = {row: values[row].get(first.name, {}) if first else {} for row in rows}
    shares = {kind.name for kind in metrics if kind.percent}
    summary = {
        row: {
            name: summarise(list(by_seed.values()), share=name in shares)
            for name, by_seed in values[row].items()
        }
        for row in rows
    }

    def order(row: Row) -> tuple[bool, float, str]:
        if first is None or first.name not in summary[row]:
            return True, 0.0, row.label
        mean = summary[row][first.name].mean
        return False, -mean if first.higher_is_better else mean, row.label

    ordered = sorted(rows, key=order)
    ranked = [row for row in ordered if of_first[row]]
    means = [order(row)[1] for row in ranked]
    rank = {row: 1 + sum(other < mean for other in means) for row, mean in zip(ranked, means, strict=True)}

    references = {row: _baseline_of(row, rows, baseline) for row in rows}
    versus: dict[Row, Paired | None] = {}
    for row in ordered:
        reference = references[row]
        versus[row] = (
            paired(of_first[row], of_first[reference], higher_is_better=first.higher_is_better)
            if first and reference is not None
            else None
        )
    corrected = dict(zip(versus, holm([test.p if test else None for test in versus.values()]), strict=True))

    # The leader against each other row: `best` needs every one of these tests, corrected.
    best, close = False, ()
    if first and len(ranked) > 1:
        against = [
            paired(of_first[ranked[0]], of_first[row], higher_is_better=first.higher_is_better)
            for row in ranked[1:]
        ]
        adjusted = holm([test.p if test else None for test in against])
        # Against the baseline both corrections hold: a row is never best and yet not told from the baseline.
        own, reference = corrected[ranked[0]], references[ranked[0]]
        close = tuple(
            row.label
            for row, test, p in zip(ranked[1:], against, adjusted, strict=True)
            if not _better(test, p, first) or (row is reference and not _better(test, own, first))
        )
        best = not close

    lines = tuple(
        BoardLine(
            row=row,
            values=values[row],
            summary=summary[row],
            rank=rank.get(row),
            is_baseline=row.selector == baseline,
            versus=versus[row],
            p_holm=corrected[row],
            better_than_baseline=_better(versus[row], corrected[row], first),
            best=best and row is ranked[0],
            seconds=_median_seconds(row.runs),
        )
        for row in ordered
    )
    return BoardBlock(
        budget=rows[0].budget,
        n_selected=_block_size(lines),
        lines=lines,
        close=close,
        ranks=_ranks([of_first[row] for row in ranked], first),
    )


def _better(test: Paired | None, p: float | None, metric: Metric | None) -> bool | None:
    """The direction of a significant difference: of its mean, which the test is about, and not of the number
    of seeds won."""
    if test is None or p is None or p >= ALPHA or metric is None:
        return None
    return metric.better(test.difference, 0.0)


def _block_size(lines: Sequence[BoardLine]) -> float:
    bound = [line for line in lines if not line.ignores_budget] or lines
    sizes = [run.record.selection.n_selected for li in bound for run in li.row.runs if run.record.selection]
    return fmean(sizes) if sizes else 0.0


def _baseline_of(row: Row, rows: Sequence[Row], baseline: str) -> Row | None:
    """The baseline's row of the same budget and grid settings; none where it has several variants."""
    if row.selector == baseline:
        return None
    same = [other for other in rows if other.selector == baseline and other.beside == row.beside]
    return same[0] if len(same) == 1 else None


def _ranks(by_row: Sequence[Mapping[int, float]], metric: Metric | None) -> RankComparison | None:
    if metric is None or len(by_row) < MIN_RANK_ROWS:
        return None
    seeds = sorted(set.intersection(*(set(values) for values in by_row)))
    if len(seeds) < MIN_RANK_SEEDS:
        return None
    values = np.array([[of_row[seed] for of_row in by_row] for seed in seeds])
    return compare_ranks(values, higher_is_better=metric.higher_is_better)


def _median_seconds(runs: Sequence[Run]) -> dict[str, float]:
    stages = dict.fromkeys(stage for run in runs for stage in run.record.stages)
    return {
        stage: median(run.record.stages[stage].seconds for run in runs if stage in run.record.stages)
        for stage in stages
    }


def _untuned(
    runs: Sequence[Run],
    covered: Mapping[str, tuple[str, ...]],
    metrics: tuple[Metric, ...],
    weights: Mapping[str, int] | None,
) -> tuple[dict[str, float], bool]:
    shown: dict[str, float] = {}
    differs = False
    for kind in metrics:
        means = [
            mean_over_tasks(run.record.untuned, covered[kind.name], kind.name, weights)
            for run in runs
            if run.record.untuned
        ]
        numbers = [value for value in means if value is not None]
        if numbers:
            shown[kind.name] = numbers[0]
            differs |= not all(math.isclose(value, numbers[0], rel_tol=1e-3) for value in numbers)
    return shown, differs


def _notes(
    table: Table, blocks: Sequence[BoardBlock], metrics: tuple[Metric, ...], baseline: str
) -> list[str]:
    notes: list[str] = []
    if not metrics:
        notes.append("These runs were not evaluated: only the selections can be compared.")
    if any(CHOICE in run.record.metrics for run in table.runs):
        notes.append(
            "No model was tested: the choices are judged by labels of the rows that no selector has seen. "
            "A row on target need not be the better one to train on."
        )
    if metrics and baseline not in {row.selector for row in table.rows}:
        notes.append(f"No run of the baseline {baseline}: nothing is compared to it.")
    elif metrics:
        alone = [
            f"{line.row.label} at {line.row.budget}"
            for block in blocks
            for line in block.lines
            if line.rank is not None and line.versus is None and not line.is_baseline
        ]
        if alone:
            notes.append(f"Without a run of {baseline} of the same settings and seeds: {', '.join(alone)}.")
    commits = {run.record.git_sha or "unknown" for run in table.runs}
    if len(commits) > 1:
        shown = ", ".join(sorted(commit[:10] for commit in commits))
        notes.append(f"The runs come from {len(commits)} commits of the code ({shown}).")
    versions: dict[str, set[str]] = {}
    for run in table.runs:
        for package, version in run.record.packages.items():
            versions.setdefault(package, set()).add(version)
    mixed = sorted(package for package, versions_used in versions.items() if len(versions_used) > 1)
    if mixed:
        shown = "; ".join(f"{package} {', '.join(sorted(versions[package]))}" for package in mixed)
        notes.append(f"The runs used different package versions: {shown}.")
    if metrics and (fixed := _fixed_trajectories(table)):
        notes.append(
            f"The seeds share one warm-up trajectory ({TRAJECTORY_SEED}={', '.join(fixed)}): intervals and "
            "p-values hold for that trajectory only, and a selector that draws nothing itself chooses the "
            f"same rows at every seed. Run with {TRAJECTORY_SEED}=${{seed}} to vary it with the seed."
        )
    for block in blocks if metrics else ():
        seeds = {tuple(sorted(line.values.get(metrics[0].name, {}))) for line in block.lines}
        if len(seeds - {()}) > 1:  # a row without a value is not ranked
            notes.append(
                f"At {block.budget} the rows have different seeds, so their means cover different runs; "
                "differences are taken over the common seeds only."
            )
    return notes


def _fixed_trajectories(table: Table) -> list[str]:
    """The values of gradients.seed that rows of several seeds hold fixed, where gradients were read."""
    fixed: set[str] = set()
    for row in table.rows:
        runs = [run for run in row.runs if "warmup" in run.record.stages]
        values = {flatten(run.record.config).get(TRAJECTORY_SEED) for run in runs}
        if len({run.record.seed for run in runs}) > 1 and len(values) == 1:
            fixed.update(value for value in values if value is not None)
    return sorted(fixed)
