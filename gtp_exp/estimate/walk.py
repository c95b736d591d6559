"""The dry run of some jobs: the pipeline's own stages, asked of a cache that makes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gtp_exp.cache import Cache, StageResult
from gtp_exp.distributed import Processes
from gtp_exp.estimate.parts import Data, Parts, unread
from gtp_exp.estimate.runs import Job, fingerprint
from gtp_exp.experiment import Experiment, Until
from gtp_exp.files import MANIFEST, read_sealed
from gtp_exp.given_stores import match_stores
from gtp_exp.gradients.given import GivenGradients
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.shards import shard_tensors
from gtp_exp.gradients.sketch import SketchKind
from gtp_exp.inputs import Inputs, PreparedRows, PreparedTask
from gtp_exp.paths import at_home
from gtp_exp.selection.base import Budget, Need, Selector, Unit
from gtp_exp.stages.evaluation import (
    EVALUATION,
    UNTUNED,
    UNTUNED_VALIDATION,
    VALIDATION,
    EvaluatedModel,
    evaluate_task,
    validate,
)
from gtp_exp.stages.gradients import Gradients, GradientStores, collect_gradients, rows_with_gradients
from gtp_exp.stages.runner import StageRunner
from gtp_exp.stages.selection import SelectionSources, select
from gtp_exp.stages.training import tune, warm_up
from gtp_exp.tracking import Journal, NoTracker

WARMUP, POOL, TARGET = "warmup", "gradients: pool", "gradients: target"  # as results.json names them
SELECTION, FINETUNE = "selection", "finetune"
MEASURES = (EVALUATION, UNTUNED, VALIDATION, UNTUNED_VALIDATION)
STAGES = (WARMUP, POOL, TARGET, SELECTION, FINETUNE, *MEASURES)

# A stage's name, what the cache says of it, and the task that it tests.
Found = tuple[str, StageResult, PreparedTask | None]


class CacheThatOnlyLooks(Cache):
    """Says of each stage whether its entry is there and what it cost; makes none, and deletes none."""

    def stage(self, stage: str, version: int, reads: Mapping[str, Any], *_: Any, **__: Any) -> StageResult:
        """Return where the entry lies, or would lie. Its files are not compared to their checksums."""
        path = self.entry(stage, version, reads).path
        manifest = read_sealed(path / MANIFEST)
        seconds = 0.0 if manifest is None else float(manifest["seconds"])
        return StageResult(path, path.name, seconds, manifest is not None)


@dataclass(frozen=True)
class Work:
    """Holds one distinct stage: whether it is done, how large it is, and what prices it."""

    stage: str
    cached: bool
    rates: Sequence[str]  # names of its rates, the closest first
    rows: int | None  # None: unknown
    passes: int  # of every row: epochs or checkpoints
    tokens: float | None = None  # over all passes
    at_most: bool = False  # whether `tokens` is only a bound
    nbytes: int = 0  # of a gradient store
    shared: bool = False  # a selection whose passes of the model are made for another one

    @property
    def units(self) -> float | None:
        """Return what the stage's time is proportional to."""
        if self.shared:
            return 0.0
        return self.rows if self.stage in (SELECTION, *MEASURES) else self.tokens


@dataclass
class Plan:
    """Holds the distinct stages of some jobs, and the jobs that share each."""

    works: dict[str, Work] = field(default_factory=dict)  # by the stage's name and key
    users: dict[str, set[int]] = field(default_factory=dict)  # stage -> the jobs that need it
    data: list[Data] = field(default_factory=list)  # of each job

    def of(self, stage: str) -> list[Work]:
        """Return the distinct stages of one name."""
        return [work for work in self.works.values() if work.stage == stage]


def plan(jobs: Sequence[Job], parts: Parts | None = None, share_passes: bool = True) -> Plan:
    """Go through the stages of every job. Raises UserError for a job that is wrong.

    share_passes: passes of the model over the pool cost the first job or run of a selector alone; without it
    every selection is planned as records count it, which say what each would cost by itself.
    """
    parts, planned = parts or Parts(), Plan()
    passed = {passes_of(run.record.config) for run in parts.runs} if share_passes else set[str]()
    tests: dict[tuple[str | None, int], list[Found]] = {}
    for i, job in enumerate(jobs):
        experiment = parts.experiment(job)
        data = parts.data(job, experiment)
        planned.data.append(data)
        for stage, result, task in walk(experiment, data, tests):
            key = f"{stage} {result.key}"
            planned.users.setdefault(stage, set()).add(i)
            if key not in planned.works:
                rates = rate_names(stage, job, _tested(task, data.inputs))
                work = _work(stage, result.cached, rates, experiment, data, task)
                if stage == SELECTION and work.passes and share_passes:
                    if passes_of(job) in passed:
                        work = replace(work, passes=0, tokens=None, shared=True)
                    passed.add(passes_of(job))
                planned.works[key] = work
    return planned


def passes_of(job: Job) -> str:
    """Return what tells apart the passes of the model that selections make over the pool."""
    return fingerprint(*(job.get(part) for part in ("model", "selection_model", "dataset", "selector")))


def _rows_with_gradients(inputs: Inputs, selector: Selector) -> list[tuple[str, PreparedRows]]:
    """Return the rows whose gradients a selector reads; target rows without tokens are taken whole."""
    pool, target = inputs.candidates_to_select, inputs.target
    if target is not None and not all(row.labels for row in target.tokenized):
        return [("pool", pool), ("target", target)]
    return rows_with_gradients(inputs, selector)


def walk(job: Experiment, data: Data, tests: dict[tuple[str | None, int], list[Found]]) -> Iterator[Found]:
    """Yield what the cache says of each stage of `experiment.run`, in order.

    tests: what it has said of evaluations, by the key of the tuned model and the data; those with many rows
    take long to ask for.
    """
    cache = CacheThatOnlyLooks(
        at_home(job.settings.outputs) / "cache", Processes(0, job.launch.num_processes)
    )
    runner = StageRunner(cache, Journal(None, NoTracker()))
    chooser, inputs, settings, gradients = data.chooser, data.inputs, job.settings, job.gradients
    stores: list[Gradients] = []
    if isinstance(gradients, GivenGradients):
        if Need.GRADIENTS in job.selector.needs and not unread(inputs.candidates.examples):
            inputs, given = match_stores(inputs, gradients)
            stores = list(given.values())
    elif Need.GRADIENTS in job.selector.needs:
        trajectory = warm_up(runner, chooser, inputs.candidates_to_select, gradients)
        yield WARMUP, trajectory, None
        for split, rows in _rows_with_gradients(inputs, job.selector):
            collected = collect_gradients(runner, chooser, split, rows, trajectory, gradients)
            stores.append(collected)
            yield f"gradients: {split}", collected, None
    sources = SelectionSources(chooser, data.tuned, inputs, GradientStores(*stores))
    selected = select(runner, sources, job.selector, job.budget, settings.seed)
    yield SELECTION, selected, None
    if settings.until is Until.SELECTION:
        return
    tuned = tune(runner, data.tuned, inputs.candidates, selected, job.train, settings.seed)
    yield FINETUNE, tuned, None
    if inputs.validation is not None:
        for stage, tested in ((VALIDATION, tuned), (UNTUNED_VALIDATION, None)):
            model = EvaluatedModel(data.tuned, tested)
            yield stage, validate(runner, model, inputs.validation, settings.eval_batch_size), None
    if settings.held_back is not None:
        return
    for stage, tested in ((EVALUATION, tuned), (UNTUNED, None)):
        key = None if tested is None else tested.key, id(data)
        if key not in tests:
            model = EvaluatedModel(data.tuned, tested)
            tests[key] = [
                (stage, evaluate_task(runner, model, task, settings.eval_batch_size), task)
                for task in inputs.all_tasks
            ]
        yield from tests[key]


def _tested(task: PreparedTask | None, inputs: Inputs) -> str | None:
    """Return the further benchmark that a task is of; None for one of the main benchmark, and for no task."""
    found = (name for name, tests in inputs.further.items() if any(test is task for test in tests))
    return next(found, None)


def rate_names(stage: str, job: Job, tested: str | None = None) -> list[str]:
    """Return the names of a stage's rates, the closest first: with the same settings, and with any.

    Where a job has further tests, the closest is that of all its tests together, by which alone its records
    measure them. tested: the further benchmark that a task is of; None for the main one.
    """
    kind = stage.split(":")[0].split()[0]  # the same for pool and target, tuned and untuned
    gradients, further = job["gradients"], job.get("tests") or {}
    benchmark = job["benchmark"] if tested is None else further[tested]
    alike: dict[str, Sequence[Any]] = {
        WARMUP: (gradients.get("warmup"), None),
        "gradients": ({**gradients, "warmup": None}, None),
        SELECTION: (job["selector"]["_target_"],),  # one selector says nothing of another
        FINETUNE: (job["train"], None),
        EVALUATION: (benchmark, _kind_of_test(benchmark)),
        VALIDATION: (job["benchmark"], None),
    }
    if further and kind == EVALUATION:
        alike[EVALUATION] = ([job["benchmark"], further], *alike[EVALUATION])
    model = (
        job["model"]
        if kind in (FINETUNE, EVALUATION, VALIDATION)
        else job.get("selection_model") or job["model"]
    )
    counted = {"epochs": None, "min_steps": None, "seed": None}  # by the units, or of no weight
    return [fingerprint(kind, model, {**s, **counted} if isinstance(s, Mapping) else s) for s in alike[kind]]


def _kind_of_test(benchmark: Mapping[str, Any]) -> Any:
    """Return what tells apart benchmarks whose rows take other times: the class, and of lm-eval's suites
    whether answers are chosen or written."""
    target, answers = benchmark["_target_"], benchmark.get("answers")
    return target if answers is None else [target, answers]


def _work(
    stage: str, cached: bool, rates: list[str], job: Experiment, data: Data, task: PreparedTask | None
) -> Work:
    """Return a stage with how much passes through it."""
    rows, target, gradients = data.inputs.candidates.examples, data.inputs.target, job.gradients
    everything, known, nbytes = job.selector.ignores_budget, unread(rows), 0
    n, passes, mean = len(rows), gradients.checkpoints, data.row_tokens
    if task is not None:
        n, passes, mean = len(task.task.docs or task.task.held_out) or None, 1, None
    elif stage in MEASURES and data.inputs.validation is not None:
        n, passes, mean = len(data.inputs.validation.examples), 1, None
    elif stage == WARMUP and isinstance(gradients, GradientConfig):
        n, passes = gradients.warmup_rows(n), gradients.warmup.epochs
    elif stage == TARGET:
        n, mean = (
            None if target is None or unread(target.examples) else len(target.examples),
            data.target_tokens,
        )
    elif stage == SELECTION:
        passes = int(Need.MODEL in job.selector.needs)
        # Nothing is trained after it where until=selection; a budget above the pool is told all the same.
        chosen(job.budget, n, data.tuned_tokens, everything=everything, assumed=known is not None)
    elif stage == FINETUNE:
        n = job.selector.offers(n) if job.budget.whole else n
        n, tokens = chosen(job.budget, n, data.tuned_tokens, everything=everything, assumed=known is not None)
        passes, mean = job.train.epochs_of(n), tokens / n
    if stage in (POOL, TARGET) and isinstance(gradients, GradientConfig):
        nbytes = store_bytes(n or 0, gradients)
    exact = stage == TARGET or (stage == FINETUNE and job.budget.unit is Unit.TOKENS and not everything)
    tokens = None if n is None or mean is None else n * passes * mean
    at_most = known is not None and known.at_most and not exact
    return Work(stage, cached, rates, n, passes, tokens, at_most, nbytes)


def chosen(
    budget: Budget, n: int, row_tokens: float, *, everything: bool, assumed: bool = False
) -> tuple[int, float]:
    """Return the rows and tokens that a budget takes of n candidates.

    Raises UserError where they are too few, unless their number is no more than assumed.
    """
    if assumed and budget.unit is Unit.ROWS:
        budget = Budget(budget.unit, min(budget.amount, n))
    rows = n if everything else budget.rows(n)
    if rows is None:
        return min(n, max(1, round(budget.amount / row_tokens))), float(budget.amount)
    return rows, rows * row_tokens


def store_bytes(rows: int, gradients: GradientConfig) -> int:
    """Return the bytes of a store of this many rows; 0 where the sketch keeps the model's own dimension."""
    if gradients.sketch.kind is SketchKind.NONE:
        return 0
    names = [direction.value for direction in gradients.directions]
    features = {name: torch.zeros(1, gradients.sketch.dim) for name in names}
    shard = shard_tensors(features, {name: torch.zeros(1) for name in names}, gradients.storage)
    return rows * gradients.checkpoints * sum(tensor.nbytes for tensor in shard.values())
