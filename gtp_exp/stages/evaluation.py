"""The stages that measure a model: on a test, and on rows that were held back for validation."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_exp.cache import StageResult
from gtp_exp.evaluation.held_out import token_loss
from gtp_exp.evaluation.tasks import evaluate
from gtp_exp.inputs import PreparedRows, PreparedTask
from gtp_exp.model.loading import LoadedModel, Model
from gtp_exp.records.record import TokenLoss
from gtp_exp.records.row_results import TaskRows, read_row_results
from gtp_exp.stages.runner import StageRunner

# Names under which results.json tells the costs of the two evaluations of a job, or of its two validations.
EVALUATION, UNTUNED = "evaluation", "evaluation of the untuned model"
VALIDATION, UNTUNED_VALIDATION = "validation", "validation of the untuned model"


@dataclass(frozen=True)
class EvaluatedModel:
    """Names the model to test: a tuned one, or with `tuned=None` the untuned one. It is loaded once, and
    only if a task is new."""

    model: Model
    tuned: StageResult | None

    @functools.cached_property
    def loaded(self) -> LoadedModel:
        """Return the model in memory."""
        return self.model.load_tuned(self.tuned.directory / "model") if self.tuned else self.model.load()

    def reads(self) -> dict[str, Any]:
        """Return what the model is, for the key of a stage that measures it."""
        return {"tuned": self.tuned and self.tuned.key, "model": self.model.identity}


def evaluate_task(
    runner: StageRunner, evaluated: EvaluatedModel, test: PreparedTask, batch_size: int
) -> StageResult:
    """Test a model on one task."""

    def produce(directory: Path) -> None:
        metrics = evaluate(
            test.task,
            evaluated.loaded,
            held_out=() if test.held_out is None else test.held_out.tokenized,
            batch_size=batch_size,
            directory=directory,
            processes=runner.processes,
        )
        if runner.processes.main:
            (directory / "metrics.json").write_text(json.dumps(metrics, allow_nan=False))

    reads = {
        **evaluated.reads(),
        "task": test.description,
        "held_out": test.held_out and test.held_out.key,
    }
    return runner.run_stage("evaluation", reads, produce, cost=EVALUATION if evaluated.tuned else UNTUNED)


def read_metrics(result: StageResult) -> dict[str, float | str]:
    """Return the metrics that `evaluate_task` has written."""
    return json.loads((result.directory / "metrics.json").read_text())


def read_by_row(result: StageResult) -> Mapping[str, TaskRows]:
    """Return the values of every test row that `evaluate_task` has written, by task and metric."""
    return read_row_results(result.directory).get("", {})


def validate(
    runner: StageRunner, evaluated: EvaluatedModel, held_back: PreparedRows, batch_size: int
) -> StageResult:
    """Measure the loss of a model on the rows that were held back for validation."""

    def produce(directory: Path) -> None:
        loss = token_loss(
            held_back.tokenized,
            evaluated.loaded,
            batch_size=batch_size,
            label=VALIDATION,
            processes=runner.processes,
        )
        if runner.processes.main:
            (directory / "loss.json").write_text(json.dumps(loss, allow_nan=False))

    reads = {**evaluated.reads(), "rows": held_back.key}
    cost = VALIDATION if evaluated.tuned else UNTUNED_VALIDATION
    return runner.run_stage("validation", reads, produce, cost=cost)


def read_loss(result: StageResult) -> TokenLoss:
    """Return the loss that `validate` has written."""
    return TokenLoss(**json.loads((result.directory / "loss.json").read_text()))
