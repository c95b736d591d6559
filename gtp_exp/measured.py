"""What a model is worth: on the tests of a job, or on the rows that were held back for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from gtp_exp.inputs import Inputs, PreparedTask
from gtp_exp.records.record import TokenLoss
from gtp_exp.records.row_results import TaskRows
from gtp_exp.stages.evaluation import (
    VALIDATION,
    EvaluatedModel,
    evaluate_task,
    read_by_row,
    read_loss,
    read_metrics,
    validate,
)
from gtp_exp.stages.runner import StageRunner

MAIN = ""  # stands for the benchmark whose target was aimed at, beside the names of further tests


@dataclass(frozen=True)
class Measured:
    """Holds what a model is worth: on the tests, or on the rows that were held back for validation."""

    # By benchmark (MAIN, and the further tests' names), task and metric; and the same for every test row.
    metrics: Mapping[str, Mapping[str, Mapping[str, float | str]]] = field(default_factory=dict)
    by_row: Mapping[str, Mapping[str, TaskRows]] = field(default_factory=dict)
    loss: TokenLoss | None = None


def measure(runner: StageRunner, evaluated: EvaluatedModel, inputs: Inputs, batch_size: int) -> Measured:
    """Measure a model on the rows that were held back for validation; where there are none, on the tests."""
    if inputs.validation is None:
        return evaluate_all(runner, evaluated, {MAIN: inputs.tasks, **inputs.further}, batch_size)
    loss = read_loss(validate(runner, evaluated, inputs.validation, batch_size))
    if evaluated.tuned:
        runner.journal.event(VALIDATION, asdict(loss))
    return Measured(loss=loss)


def evaluate_all(
    runner: StageRunner,
    evaluated: EvaluatedModel,
    benchmarks: Mapping[str, Sequence[PreparedTask]],
    batch_size: int,
) -> Measured:
    """Test a model on every task of every benchmark."""
    metrics: dict[str, dict[str, dict[str, float | str]]] = {name: {} for name in benchmarks}
    by_row: dict[str, dict[str, TaskRows]] = {name: {} for name in benchmarks}
    for name, tests in benchmarks.items():
        for test in tests:
            result = evaluate_task(runner, evaluated, test, batch_size)
            values = read_metrics(result)
            metrics[name][test.task.name] = values
            by_row[name] |= read_by_row(result)
            if evaluated.tuned:
                task = f"{name}/{test.task.name}" if name else test.task.name
                runner.journal.event("evaluation", {"task": task, **values})
    return Measured(metrics, by_row)
