"""Run one job: select, fine-tune, evaluate. `run` is the whole of it; each step is one cached stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch

from gtp_exp.cache import Cache, StageResult
from gtp_exp.data.benchmark import Benchmark, SplitsPool, answers_of
from gtp_exp.data.sources.base import DataSource
from gtp_exp.data.validation import Validation
from gtp_exp.distributed import Processes, connect
from gtp_exp.errors import UserError
from gtp_exp.export.product import remove_product, write_product
from gtp_exp.given_stores import open_given
from gtp_exp.gradients.end_of_turn import LINEAR, check_weight, check_whole
from gtp_exp.gradients.given import GivenGradients
from gtp_exp.gradients.matching import GivenStore
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.inputs import Inputs, Overlap, PreparedRows, check_agreement, load_inputs
from gtp_exp.launch.launcher import Launch
from gtp_exp.launch.sharding import Sharding
from gtp_exp.leaderboard.metrics import headline_mean
from gtp_exp.measured import MAIN, Measured, measure
from gtp_exp.model.device import be_deterministic, choose_device
from gtp_exp.model.loading import Model, ModelConfig, prepare
from gtp_exp.model.loss import Reduction
from gtp_exp.model.quantized import Quantization
from gtp_exp.paths import at_home
from gtp_exp.records.record import METRICS_NAME, FurtherTest, RunRecord, SelectionSummary, ValidationSummary
from gtp_exp.records.row_results import write_row_results
from gtp_exp.records.selected import export, selected_rows, summarise_selection
from gtp_exp.selection.base import Budget, Need, Selection, Selector
from gtp_exp.stages.evaluation import VALIDATION, EvaluatedModel
from gtp_exp.stages.gradients import (
    GradientStores,
    check_quarantine,
    collect_gradients,
    proven_engine,
    rows_with_gradients,
)
from gtp_exp.stages.passes import read_saved_seconds
from gtp_exp.stages.runner import StageRunner
from gtp_exp.stages.selection import SelectionSources, read_beside_rows, read_selection, select
from gtp_exp.stages.training import mirror_history, read_training_length, tune, warm_up
from gtp_exp.tracking import Journal, NoTracker, RunInfo, Tracker, tracked
from gtp_exp.training.config import TrainConfig, check_divisible


class Tracking(Protocol):
    """Says what an option of the group `tracking` has to offer."""

    def tracker(self) -> Tracker:
        """Return a mirror of the event log that has not started yet."""
        ...


class Until(Enum):
    """Names the last stage of a job."""

    EVALUATION = "evaluation"
    VALIDATION = "validation"  # nothing is tested: to tune settings on rows held back from the target
    SELECTION = "selection"  # nothing is trained: to look at what selectors choose


class EvalBackend(Enum):
    """Names what generates and scores in lm-eval's tests."""

    HF = "hf"  # the model in this process
    VLLM = "vllm"  # has no implementation yet, and is refused


@dataclass(frozen=True)
class Settings:
    """Holds the config keys outside any group."""

    seed: int  # of the selector and of fine-tuning; the trajectory has gradients.seed
    outputs: str
    until: Until
    eval_batch_size: int
    validation: Validation = Validation()  # what `until=validation` holds back
    eval_backend: EvalBackend = EvalBackend.HF

    @property
    def held_back(self) -> Validation | None:
        """Return which rows are held back from all that a job does before it measures; None for none."""
        return self.validation if self.until is Until.VALIDATION else None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must lie between 0 and 4294967295")
        if self.eval_backend is EvalBackend.VLLM:
            raise UserError(
                "eval_backend=vllm is not implemented: it needs a GPU, the package vllm and lm-eval's class "
                "for it with the tuned adapter; set eval_backend=hf"
            )
        if self.eval_batch_size < 1:
            raise UserError(f"eval_batch_size={self.eval_batch_size} must be at least 1; 16 is usual")


@dataclass(frozen=True)
class Experiment:
    """Holds what a job is made of: one checked object for each config group."""

    model: ModelConfig
    selection_model: ModelConfig | None  # chooses in place of the model that is tuned; None: the same one
    dataset: DataSource
    gradients: GradientConfig | GivenGradients
    selector: Selector
    budget: Budget
    train: TrainConfig
    benchmark: Benchmark
    tracking: Tracking
    launch: Launch
    settings: Settings
    tests: Mapping[str, Benchmark] = field(default_factory=dict)  # tested on, too; nothing aims at them

    def __post_init__(self) -> None:
        if not isinstance(self.selector, Selector):
            raise UserError(
                f"selector._target_: {type(self.selector).__name__} is no selector; let its class inherit "
                "gtp_exp.selection.base.Selector and return a Selection from `select`"
            )
        if not isinstance(self.dataset, DataSource):
            raise UserError(
                f"dataset._target_: {type(self.dataset).__name__} is no data set; let its class inherit "
                "gtp_exp.data.sources.base.DataSource and return a Pool from `load`"
            )
        for name, benchmark in self.tests.items():
            if isinstance(benchmark, SplitsPool):
                raise UserError(
                    f"tests: {name} takes its test rows out of the pool, which changes what is chosen from; "
                    f"give it as benchmark={name}, or leave it out"
                )
        for name in self.selector.score_columns():
            if name not in self.dataset.scores:
                raise UserError(
                    f"selector.score={name} is not among dataset.scores={self.dataset.scores}; "
                    f"give dataset.scores=[{name}]"
                )
        if self.settings.until is not Until.SELECTION:
            check_divisible(self.train, self.launch.num_processes, "train")
        if Need.GRADIENTS in self.selector.needs:
            _check_gradients(self.gradients, self.selector)
            if isinstance(self.gradients, GradientConfig):
                check_divisible(self.gradients.warmup, self.launch.num_processes, "gradients.warmup")
        if self.launch.sharding is not None:
            _check_shareable(self.launch, self.selector, self.model, self.selection_model)


def _check_gradients(gradients: GradientConfig | GivenGradients, selector: Selector) -> None:
    """Raise UserError where gradients are collected without what a selector reads of them, or are given."""
    if isinstance(gradients, GivenGradients):
        own = type(selector).target_end_of_turn
        check_whole(selector.target_end_of_turn, own, "gradients.target")
        return
    stored = [direction.value for direction in gradients.directions]
    for key in ("direction", "target_direction"):
        asked = getattr(selector, key, None)
        if asked is not None and asked not in stored:
            raise UserError(
                f"selector.{key}={asked} is not among gradients.directions={stored}; "
                "add it there or choose one of these"
            )
    direction = getattr(selector, "direction", LINEAR)
    direction = getattr(selector, "target_direction", direction)
    check_weight(selector.target_end_of_turn, direction)


def _check_shareable(launch: Launch, selector: Selector, *models: ModelConfig | None) -> None:
    """Raise UserError for what shared weights cannot do: be trained, or run in one process alone."""
    where = f"launch.config_file={launch.config_file} shares weights among processes (FSDP), but"
    if any(model is not None and model.lora is None for model in models):
        raise UserError(
            f"{where} model.lora=null trains them, and per-row gradients need whole ones; use LoRA, or a "
            "file with distributed_type: MULTI_GPU"
        )
    for model in models:
        if model is not None and model.quantization is not Quantization.NONE:
            raise UserError(
                f"{where} model.quantization={model.quantization.value} stores them in a form that cannot be "
                "divided; set it to none, or use a file with distributed_type: MULTI_GPU"
            )
    if Need.MODEL in selector.needs:
        raise UserError(
            f"{where} selector {type(selector).__name__} runs the model in one process; use a file with "
            "distributed_type: MULTI_GPU"
        )


def run(experiment: Experiment, record: RunRecord, directory: Path, job: Mapping[str, Any]) -> RunRecord:
    """Run one job from data to metrics; return `record` with everything that was learned.

    directory: of the run. job: its `name`, the `group` that the jobs of one multirun share, and the `names`
    of the chosen options.
    """
    settings, selector, gradients = experiment.settings, experiment.selector, experiment.gradients
    processes, device = start_processes(experiment.launch)
    cache = Cache(at_home(settings.outputs) / "cache", processes)
    tracker = experiment.tracking.tracker() if processes.main else NoTracker()
    journal = Journal(directory / METRICS_NAME if processes.main else None, tracker)
    runner = StageRunner(cache, journal)
    with tracked(journal, run_info(job, directory, record)):
        models = prepare_models(experiment.model, experiment.selection_model, cache, device)
        tuned_model, chooser = shared(*models, experiment.launch.sharding)
        inputs = load_inputs(
            experiment.dataset,
            experiment.benchmark,
            tuned_model,
            chooser,
            validation=settings.held_back,
            further=experiment.tests,
            check_pool=selector.check_pool,
        )
        given: Mapping[str, GivenStore] = {}
        if isinstance(gradients, GivenGradients) and Need.GRADIENTS in selector.needs:
            inputs, given = open_given(runner, inputs, gradients, selector)
        check_agreement(inputs, processes)
        selector.check_budget(experiment.budget, inputs.candidates.examples)
        overlap = Overlap(inputs)

        before, after, tuned = Measured(), Measured(), None
        if settings.until is not Until.SELECTION:  # at once: what cannot be tested shows before any training
            before = measure(runner, EvaluatedModel(tuned_model, None), inputs, settings.eval_batch_size)
        stores = GradientStores(given.get("pool"), given.get("target"))
        if Need.GRADIENTS in selector.needs and isinstance(gradients, GradientConfig):
            trajectory = warm_up(runner, chooser, inputs.candidates_to_select, gradients)
            mirror_history(journal, "warmup", trajectory)
            rows = rows_with_gradients(inputs, selector)
            stores = collect_all_gradients(runner, chooser, rows, trajectory, gradients)
        sources = SelectionSources(chooser, tuned_model, inputs, stores, reduction_of(gradients))
        selected = select(runner, sources, selector, experiment.budget, settings.seed)
        runner.add_seconds("selection", read_saved_seconds(selected))  # as if it had been computed alone
        selection = read_selection(selected)
        summary = report_selection(journal, directory, inputs, selection) if processes.main else None
        if summary is not None:
            summary = replace(summary, read_beside_rows=read_beside_rows(selected))
        overlap.count("selected", [inputs.candidates.examples[i] for i in selection.indices.tolist()])

        if settings.until is not Until.SELECTION:
            tuned = tune(runner, tuned_model, inputs.candidates, selected, experiment.train, settings.seed)
            mirror_history(journal, "finetune", tuned)
            record = replace(record, training=read_training_length(tuned))
            after = measure(runner, EvaluatedModel(tuned_model, tuned), inputs, settings.eval_batch_size)

        record = replace(record, selection=summary, leakage=overlap.report, tracked_at=journal.tracked_at)
        record = with_measured(with_sources(record, runner, sources), experiment, inputs, before, after)
        if processes.main:
            leave_results(directory, record, after, tuned_model, tuned)
        journal.summary.update(summary_of(record))
    return record


def leave_results(
    directory: Path, record: RunRecord, after: Measured, model: Model, tuned: StageResult | None
) -> None:
    """Write what a run leaves beside its record: what every test row scored, and the tuned model."""
    if after.metrics:
        write_row_results(after.by_row, directory)
    if tuned is None:
        remove_product(directory)
    else:
        write_product(directory, model, tuned.directory / "model", tuned.key, record)


def run_info(job: Mapping[str, Any], directory: Path, record: RunRecord) -> RunInfo:
    """Return what a tracker is told of the job before it begins."""
    options = {group: option for group, option in job.get("names", {}).items() if option}
    return RunInfo(job["name"], job["group"], directory, record.config, options)


def start_processes(launch: Launch) -> tuple[Processes, torch.device]:
    """Return this process among those of the job, and the device that it computes on."""
    device = choose_device(launch.device.value)
    if launch.deterministic:
        be_deterministic(device)
    return connect(launch.num_processes, device), device


def prepare_models(
    tuned: ModelConfig, chooser: ModelConfig | None, cache: Cache, device: torch.device
) -> tuple[Model, Model]:
    """Find the model that is tuned and the one that chooses; with `chooser=None` they are one object."""
    processes = cache.processes
    model = processes.main_first(lambda: prepare(tuned, cache.root, device))
    if chooser is None:
        return model, model
    return model, processes.main_first(lambda: prepare(chooser, cache.root, device))


def shared(tuned: Model, chooser: Model, sharding: Sharding | None) -> tuple[Model, Model]:
    """Return the models as they are loaded where processes share weights; one object stays one."""
    model = replace(tuned, sharding=sharding)
    return model, model if chooser is tuned else replace(chooser, sharding=sharding)


def collect_all_gradients(
    runner: StageRunner,
    chooser: Model,
    rows: Sequence[tuple[str, PreparedRows]],
    trajectory: StageResult,
    settings: GradientConfig,
) -> GradientStores:
    """Collect the gradients of pool and target, as `rows_with_gradients` names them; check that they are
    finite. The engine is compared with autograd once, on the first rows that are not in the cache."""
    stores, proven = [], None
    for split, part in rows:
        stores.append(collect_gradients(runner, chooser, split, part, trajectory, settings, proven))
        proven = proven or proven_engine(stores[-1])
        check_quarantine(split, part, stores[-1], settings)
    return GradientStores(*stores)


def reduction_of(gradients: GradientConfig | GivenGradients) -> Reduction:
    """Return how the losses of a row's tokens make its loss; of given stores it is nowhere read."""
    return gradients.reduction if isinstance(gradients, GradientConfig) else Reduction.MEAN


def report_selection(
    journal: Journal, directory: Path, inputs: Inputs, selection: Selection
) -> SelectionSummary:
    """Write the chosen rows to the run's directory, and return what the leaderboard wants to know of them.

    Only here are hidden labels read.
    """
    candidates = inputs.candidates
    rows = selected_rows(candidates.examples, candidates.tokenized, selection, inputs.pool.hidden)
    export(rows, directory, title=f"{directory.name}: {len(rows)} selected examples")
    # The rows of a store that is a target of its own have no text.
    target = () if inputs.target is None else [row for row in inputs.target.examples if row.messages]
    summary = summarise_selection(rows, inputs.pool, candidates.tokenized, selection, target)
    journal.event("selection", {"n_selected": summary.n_selected, "n_tokens": summary.n_tokens})
    table = [
        [row.rank, row.id, row.weight, row.score, json.dumps(row.messages, ensure_ascii=False)]
        for row in rows[:1000]
    ]
    journal.tracker.table("selected", ["rank", "id", "weight", "score", "messages"], table)
    return summary


def with_measured(
    record: RunRecord, experiment: Experiment, inputs: Inputs, before: Measured, after: Measured
) -> RunRecord:
    """Return the record with what the untuned and the tuned model are worth."""
    validation = None
    if inputs.validation is not None and after.loss is not None and before.loss is not None:
        validation = ValidationSummary(len(inputs.validation.examples), after.loss, before.loss)
    tests = {
        name: FurtherTest(
            answers_of(benchmark), inputs.further_row_counts(name), after.metrics[name], before.metrics[name]
        )
        for name, benchmark in experiment.tests.items()
        if name in after.metrics
    }
    return replace(
        record,
        metrics=after.metrics.get(MAIN, {}),
        untuned=before.metrics.get(MAIN, {}),
        validation=validation,
        answers=answers_of(experiment.benchmark),
        tests=tests,
    )


def with_sources(record: RunRecord, runner: StageRunner, sources: SelectionSources) -> RunRecord:
    """Return the record with what the job was made from: stages, models, and what became of the rows."""
    tuned, chooser = sources.tuned, sources.chooser
    return replace(
        record,
        stages=dict(runner.costs),
        model={**tuned.identity, "device": tuned.device.type},
        selection_model=None if chooser is tuned else dict(chooser.identity),
        pool=sources.inputs.pool_summary(),
        rows=sources.inputs.row_counts(),
    )


def summary_of(record: RunRecord) -> dict[str, float | str]:
    """Return what was measured by "task/metric", of the untuned model by "untuned/task/metric", and the mean
    of the tasks' headline metrics as `headline`."""
    found = {}
    for prefix, tuned in (("", True), ("untuned/", False)):
        measured = dict(record.metrics if tuned else record.untuned)
        for name, test in record.tests.items():
            metrics = test.metrics if tuned else test.untuned
            measured |= {f"{name}/{task}": values for task, values in metrics.items()}
        if record.validation is not None:
            measured[VALIDATION] = asdict(record.validation.tuned if tuned else record.validation.untuned)
        for task, values in measured.items():
            found |= {f"{prefix}{task}/{name}": value for name, value in values.items()}
        if record.metrics:
            of = record if tuned else replace(record, metrics=record.untuned)
            found[f"{prefix}headline"] = headline_mean(of)
    return {name: value for name, value in found.items() if value is not None}
