"""From a table of runs to a board: which metrics count, which runs have them, and the mean of each run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from gtp_exp.data.benchmark import Mean
from gtp_exp.errors import UserError
from gtp_exp.leaderboard.board import Board, BoardBlock
from gtp_exp.leaderboard.comparability import Row, Table
from gtp_exp.leaderboard.enough import enough
from gtp_exp.leaderboard.metrics import (
    CHOICE,
    CONTENT,
    COPIES,
    CORRUPTED,
    HEADLINE,
    LOSS,
    ON_TARGET,
    Metric,
    have_a_mean,
    headline_metric,
    mean_over_tasks,
    metric_named,
    row_weights,
)
from gtp_exp.leaderboard.notes import notes_on
from gtp_exp.leaderboard.numbers import NO_NUMBERS, Numbers, Tested, rows_of_runs
from gtp_exp.leaderboard.ranked_by import ranked_by
from gtp_exp.leaderboard.ranking import ranked_block
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.references import reference_label, takes_all


def check_metric(runs: Sequence[Run], name: str) -> None:
    """Raises UserError when runs were evaluated but none has the metric."""
    names_present = {key for run in runs for values in run.record.metrics.values() for key in values}
    if names_present and name not in names_present:
        offered = sorted(key for key in names_present if not key.endswith("_stderr"))
        raise UserError(f"--metric {name} is in none of the runs; choose one of {', '.join(offered)}")


def score(table: Table, *, metric: str | None, baseline: str, mean: Mean | None = None) -> Board:
    """metric: what ranks, a name or `headline`; None leaves it to `ranked_by`. baseline: the selector that
    others are compared to. mean: over rows or over tasks; None is as the benchmark asks."""
    evaluated = tuple(run for run in table.runs if run.record.metrics)
    tasks = tuple(sorted({task for run in evaluated for task in run.record.metrics}))
    weights, uncounted = row_weights([run.record for run in evaluated], mean)
    by_row, damaged = rows_of_runs([*evaluated, *(run for row in table.references for run in row.runs)])
    tested = Tested(evaluated, tasks, weights, by_row)
    why = f"Ranked by {metric}, which was asked for." if metric and evaluated else ""
    if metric is None:
        metric, why = ranked_by(tested, table.rows) if evaluated else (LOSS, "")
    metrics = _metrics(evaluated, metric)
    if len(tasks) > 1:
        over = Mean.TASKS if weights is None else Mean.ROWS
        metrics = tuple(kind.averaged(over) for kind in metrics)
    covered = {kind.name: tested.covered(kind) for kind in metrics}
    unranked = _unranked(table.runs, tasks, metrics, covered)
    out = {run for run, _ in unranked}
    rows = [
        replace(row, runs=tuple(run for run in row.runs if run not in out) or row.runs) for row in table.rows
    ]
    numbers: dict[Row, dict[str, Numbers]] = {row: {} for row in rows}
    for kind in metrics:
        for row, own in tested.numbers([row for row in rows if not out & set(row.runs)], kind).items():
            if own.values:
                numbers[row][kind.name] = own

    blocks = [
        ranked_block([row for row in rows if row.budget == budget], numbers, metrics, baseline)
        for budget in dict.fromkeys(row.budget for row in rows)
    ]
    blocks.sort(key=lambda block: (block.n_selected, block.budget))
    untuned, untuned_differs = _untuned(table.runs, covered, metrics, weights)
    notes = [
        *notes_on(table, blocks, metrics, baseline),
        *_enough(tested, table, blocks, numbers, metrics),
        *_means(covered, tasks, metrics, uncounted),
    ]
    if untuned_differs:
        notes.append("The runs disagree on the untuned model's numbers; the first run's are shown.")
    notes += [f"Intervals are over seeds alone where {fault}." for fault in damaged]
    return Board(
        table=table,
        metrics=metrics,
        tasks=tasks,
        untuned=untuned,
        blocks=tuple(blocks),
        unranked=tuple(unranked),
        notes=tuple(notes),
        ranked_by=why,
        references=_references(table, covered, metrics, weights),
    )


def _enough(
    tested: Tested,
    table: Table,
    blocks: Sequence[BoardBlock],
    numbers: Mapping[Row, Mapping[str, Numbers]],
    metrics: tuple[Metric, ...],
) -> list[str]:
    """Tell from which budget on a choice is as good as all rows, whose models are references or rows."""
    if not metrics or CHOICE in tested.tasks:  # of all rows, labels tell the pool's shares and no worth
        return []
    first = metrics[0]
    of_all = tested.numbers(table.references, first)
    references = {reference_label(row.label, row.runs): own for row, own in of_all.items()}
    of_rows = {row: own.get(first.name, NO_NUMBERS) for row, own in numbers.items()}
    of_choices = {row: own for row, own in of_rows.items() if not all(map(takes_all, row.runs))}
    references |= {row.label: own for row, own in of_rows.items() if row not in of_choices}
    return enough(blocks, of_choices, references, first)


def _means(
    covered: Mapping[str, tuple[str, ...]],
    tasks: tuple[str, ...],
    metrics: tuple[Metric, ...],
    uncounted: Sequence[str],
) -> Iterator[str]:
    """Tell what means are over. uncounted: tasks whose number of test rows no run tells."""
    if uncounted:
        yield (
            "Means are over tasks, not over test rows, for no run tells the number of test rows of "
            f"{', '.join(uncounted)}."
        )
    for kind in metrics:
        if without := [task for task in tasks if task not in covered[kind.name]]:
            yield f"{kind.label} is a mean over the tasks that have it: not {', '.join(without)}."


def _metrics(runs: Sequence[Run], first: str) -> tuple[Metric, ...]:
    """The ranking metric, then the loss of the choices, the held-out loss or what labels say, and the
    headline where it is another and the tasks' own metrics have a mean."""
    if not runs:
        return ()
    own = {str(v["headline"]) for run in runs for v in run.record.metrics.values()}
    headline = headline_metric(own)
    present = {key for run in runs for values in run.record.metrics.values() for key in values}
    chosen = [headline if first == HEADLINE else metric_named(first)]
    beside = [metric_named(n) for n in (CONTENT, LOSS, ON_TARGET, CORRUPTED, COPIES) if n in present]
    for kind in [*beside, *([headline] if have_a_mean(own) else [])]:
        if kind.name not in {other.name for other in chosen}:
            chosen.append(kind)
    return tuple(chosen)


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
        elif mean_over_tasks(metrics_of, covered[first.name], first.name) is None:
            directions = {str(v["headline"]): metric_named(str(v["headline"])) for v in metrics_of.values()}
            told = ", ".join(f"{name}: {kind.direction}" for name, kind in sorted(directions.items()))
            left_out.append((run, f"the tasks' own metrics have no mean ({told}); choose one by --metric"))
    return left_out


def _references(
    table: Table,
    covered: Mapping[str, tuple[str, ...]],
    metrics: tuple[Metric, ...],
    weights: Mapping[str, int] | None,
) -> dict[str, dict[str, float]]:
    """Return the means over seeds of the references, by label and metric."""
    shown: dict[str, dict[str, float]] = {}
    for row in table.references:
        numbers = shown[reference_label(row.label, row.runs)] = {}
        for kind in metrics:
            means = [
                mean_over_tasks(run.record.metrics, covered[kind.name], kind.name, weights)
                for run in row.runs
            ]
            if values := [value for value in means if value is not None]:
                numbers[kind.name] = fmean(values)
    return {label: numbers for label, numbers in shown.items() if numbers}


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
