"""Train the model on a subset, and measure it on held-back target rows and on the tests, by cached stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from gtp_benchmarks.choice_task import ChoiceMetric, choice_task
from gtp_benchmarks.validity.study import Study
from gtp_exp.cache import StageResult
from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.data.examples import Example
from gtp_exp.data.validation import NAME as VALIDATION
from gtp_exp.inputs import PreparedTask
from gtp_exp.selection.base import Budget, Selection, SelectionProblem, Selector, Unit, unit_weights
from gtp_exp.stages.evaluation import EvaluatedModel, evaluate_task, read_metrics
from gtp_exp.stages.selection import select
from gtp_exp.stages.training import tune

LOSS, CONTENT, TEST = HELD_OUT_LOSS, "content", "test"
MOST_CHOICES = 32  # distinct answers of target rows, above which they are no choice among labels

Measured = Mapping[str, Mapping[str, float]]  # VALIDATION or TEST -> LOSS, CONTENT -> nats


@dataclass(frozen=True)
class GivenRows(Selector):
    """Choose rows that are known beforehand, all with the same weight."""

    rows: tuple[int, ...]

    def select(self, problem: SelectionProblem) -> Selection:
        """Return the rows."""
        weights, scores = unit_weights(len(self.rows)), torch.zeros(len(problem.candidates))
        return Selection(torch.tensor(self.rows), weights, scores)


def train_on(study: Study, rows: Sequence[int]) -> StageResult:
    """Return the model that is tuned on some candidates, by the recipe of the study's job."""
    settings = study.experiment.settings
    budget = Budget(Unit.ROWS, len(rows))
    chosen = select(study.runner, study.sources(), GivenRows(tuple(rows)), budget, settings.seed)
    return tune(
        study.runner, study.tuned, study.inputs.candidates, chosen, study.experiment.train, settings.seed
    )


def measure(study: Study, tuned: StageResult | None) -> dict[str, dict[str, float]]:
    """Return the losses of a tuned model, or with None of the untuned one.

    Of several test tasks it is the mean; `content` is left out where one of them has none.
    """
    evaluated = EvaluatedModel(study.tuned, tuned)
    batch_size = study.experiment.settings.eval_batch_size
    tasks = {VALIDATION: [validation_task(study)], TEST: study.tests}
    found: dict[str, dict[str, float]] = {}
    for part, tests in tasks.items():
        metrics = [read_metrics(evaluate_task(study.runner, evaluated, test, batch_size)) for test in tests]
        found[part] = {
            name: fmean(float(values[name]) for values in metrics)
            for name in (LOSS, CONTENT)
            if all(name in values for values in metrics)
        }
    return found


def validation_task(study: Study) -> PreparedTask:
    """Return the held-back rows as a task: a choice among the target's answers where the tests are choices,
    else their loss alone."""
    rows = study.inputs.validation
    assert rows is not None
    task = EvalTask(VALIDATION, HELD_OUT_LOSS, {}, None, held_out=rows.examples)
    if all(test.task.config.get("output_type") == "multiple_choice" for test in study.tests):
        assert study.inputs.target is not None
        known = (*study.inputs.target.examples, *rows.examples)
        chat = all(test.task.chat for test in study.tests)
        task = as_choices(rows.examples, known, chat) or task
    return PreparedTask(task, rows)


def as_choices(rows: Sequence[Example], known: Sequence[Example], chat: bool) -> EvalTask | None:
    """Return rows as questions whose choices are the distinct answers of the known rows; None where these are
    too few or too many, or where a row is not one question with one answer."""
    choices = sorted({example.completion for example in known})
    single = all([m.role for m in example.messages] == ["user", "assistant"] for example in rows)
    if not single or not 2 <= len(choices) <= MOST_CHOICES:
        return None
    docs = [
        {"id": row.id, "query": row.prompt, "choices": choices, "gold": choices.index(row.completion)}
        for row in rows
    ]
    return choice_task(VALIDATION, docs, metric=ChoiceMetric.ACC, chat=chat)
