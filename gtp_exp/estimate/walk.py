"""The dry run of some jobs: the pipeline's own stages, asked of a cache that makes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gtp_exp.cache import Cache, StageResult
from gtp_exp.distributed import Processes
from gtp_exp.estimate.parts import Data, Parts, unread
from gtp_exp.estimate.rates import (
    EVALUATION,
    FINETUNE,
    POOL,
    SELECTION,
    TARGET,
    UNTUNED,
    WARMUP,
    Counts,
    Earlier,
    Job,
    Size,
    fingerprint,
    node_of_chooser,
    rate_names,
    sizes,
)
from gtp_exp.experiment import Experiment, Until
from gtp_exp.files import MANIFEST, read_sealed
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.shards import shard_tensors
from gtp_exp.gradients.sketch import SketchKind
from gtp_exp.inputs import PreparedTask
from gtp_exp.selection.base import Budget, Need, Unit
from gtp_exp.stages import (
    EvaluatedModel,
    GradientStores,
    SelectionSources,
    StageRunner,
    collect_gradients,
    evaluate_task,
    select,
    tune,
    warm_up,
)
from gtp_exp.tracking import Journal, NoTracker


class Found(NamedTuple):
    """Holds what the cache says of a stage; an evaluation has one for each task."""

    stage: str
    result: StageResult
    task: PreparedTask | None = None


class CacheThatOnlyLooks(Cache):
    """Says of each stage whether its entry is there and what it cost; makes none, and deletes none."""

    def stage(
        self,
        stage: str,
        version: int,
        reads: Mapping[str, Any],
        produce: Callable[[Path], None],
        label: str = "",
        together: bool = False,
    ) -> StageResult:
        """Return where the entry lies, or would lie. Its files are not compared to their checksums."""
        path = self.entry(stage, version, reads).path
        manifest = read_sealed(path / MANIFEST)
        seconds = 0.0 if manifest is None else float(manifest["seconds"])
        return StageResult(path, path.name, seconds, manifest is not None)


@dataclass(frozen=True)
class Work:
    """Holds one distinct stage."""

    stage: str
    cached: bool
    size: Size
    at_most: bool  # whether its tokens are only a bound
    nbytes: int  # of a gradient store
    rates: Sequence[str]  # names of the rates that price it, the closest first


@dataclass
class Plan:
    """Holds the distinct stages of some jobs, and the jobs that share each."""

    works: dict[str, Work] = field(default_factory=dict)  # by the stage's key
    users: dict[str, set[int]] = field(default_factory=dict)  # key -> the jobs that need it
    data: list[Data] = field(default_factory=list)  # of each job
    row_tokens: dict[str, float] = field(default_factory=dict)  # as `measured` takes them

    def of(self, stage: str) -> list[Work]:
        """Return the distinct stages of one name."""
        return [work for work in self.works.values() if work.stage == stage]

    def users_of(self, stage: str) -> set[int]:
        """Return the jobs that need a stage."""
        return set().union(*(self.users[key] for key, work in self.works.items() if work.stage == stage))


def plan(jobs: Sequence[Job], runs: Sequence[Earlier] = ()) -> Plan:
    """Go through the stages of every job. runs: complete ones. Raises UserError for a job that is wrong."""
    parts, planned = Parts(runs), Plan()
    tests: dict[tuple[str | None, int], list[Found]] = {}  # their keys take long where they have many rows
    for i, job in enumerate(jobs):
        experiment = parts.experiment(job)
        data = parts.data(job, experiment)
        planned.data.append(data)
        rows, model = data.inputs, fingerprint(node_of_chooser(job))
        planned.row_tokens[rows.candidates.key + model] = data.row_tokens
        if rows.target is not None:
            planned.row_tokens[rows.target.key + model] = data.target_row_tokens
        size = sizes(_counts(experiment, data), experiment.gradients, experiment.train.epochs)
        for found in walk(experiment, data, tests):
            key = f"{found.stage} {found.result.key}"
            planned.users.setdefault(key, set()).add(i)
            if key not in planned.works:
                planned.works[key] = _work(found, job, experiment, data, size[found.stage])
    return planned


def walk(job: Experiment, data: Data, tests: dict[tuple[str | None, int], list[Found]]) -> Iterator[Found]:
    """Yield what the cache says of each stage of `experiment.run`, in order. tests: those already asked for,
    by the key of the tuned model and the data."""
    cache = CacheThatOnlyLooks(Path(job.settings.outputs) / "cache", Processes(0, job.launch.num_processes))
    runner = StageRunner(cache, Journal(None, NoTracker()))
    chooser, inputs, settings, gradients = data.chooser, data.inputs, job.settings, job.gradients
    stores = GradientStores()
    if Need.GRADIENTS in job.selector.needs:
        candidates, target = inputs.candidates_to_select, inputs.target
        trajectory = warm_up(runner, chooser, candidates, gradients)
        yield Found(WARMUP, trajectory)
        of_pool = collect_gradients(runner, chooser, "pool", candidates, trajectory, gradients)
        yield Found(POOL, of_pool)
        stores = GradientStores(of_pool)
        if target is not None:
            of_target = collect_gradients(runner, chooser, "target", target, trajectory, gradients)
            yield Found(TARGET, of_target)
            stores = GradientStores(of_pool, of_target)
    sources = SelectionSources(chooser, data.tuned, inputs, stores)
    selected = select(runner, sources, job.selector, job.budget, settings.seed)
    yield Found(SELECTION, selected)
    if settings.until is Until.SELECTION:
        return
    tuned = tune(
        runner, data.tuned, inputs.candidates, selected, job.train, gradients.reduction, settings.seed
    )
    yield Found(FINETUNE, tuned)
    for stage, tested in ((EVALUATION, tuned), (UNTUNED, None)):
        key = tested and tested.key, id(data)
        if key not in tests:
            model = EvaluatedModel(data.tuned, tested)
            tests[key] = [
                Found(stage, evaluate_task(runner, model, task, settings.eval_batch_size), task)
                for task in inputs.tasks
            ]
        yield from tests[key]


def _counts(job: Experiment, data: Data) -> Counts:
    """Return what passes through a job."""
    inputs, budget = data.inputs, job.budget
    n = len(inputs.candidates.examples)
    if unread(inputs.candidates.examples) and budget.unit is Unit.ROWS:  # n may be no more than assumed
        budget = Budget(budget.unit, min(budget.amount, n))
    rows, tokens = chosen(budget, n, data.tuned_row_tokens, everything=job.selector.ignores_budget)
    target = None if inputs.target is None else inputs.target.examples
    if target is None or unread(target):
        return Counts(n, data.row_tokens, None, None, rows, tokens, None)
    of_target = len(target) * data.target_row_tokens
    return Counts(n, data.row_tokens, len(target), of_target, rows, tokens, None)


def chosen(budget: Budget, n: int, row_tokens: float, *, everything: bool) -> tuple[int, float]:
    """Return the rows and tokens that a budget takes of n candidates. Raises UserError where they are too
    few."""
    rows = n if everything else budget.rows(n)
    if rows is None:
        return min(n, max(1, round(budget.amount / row_tokens))), float(budget.amount)
    return rows, rows * row_tokens


def _work(found: Found, job: Job, experiment: Experiment, data: Data, size: Size) -> Work:
    """Return a stage with its size and what prices it."""
    stage, inputs, gradients = found.stage, data.inputs, experiment.gradients
    names = rate_names(stage, job, [task.held_out.key for task in inputs.tasks if task.held_out])
    bound = unread(inputs.candidates.examples)
    at_most, nbytes = stage != TARGET and bound is not None and bound.at_most, 0
    if stage in (POOL, TARGET):
        nbytes = store_bytes(size.rows or 0, gradients)
        names += rate_names(POOL, job, ())  # serves the target's few rows where nothing better is known
    elif stage == SELECTION and Need.MODEL not in experiment.selector.needs:
        size = replace(size, passes=0, tokens=None)
    elif stage == FINETUNE and not experiment.selector.ignores_budget:
        at_most = at_most and experiment.budget.unit is not Unit.TOKENS
    elif found.task is not None:
        rows = len(found.task.task.docs or found.task.task.held_out) or None
        size = replace(size, rows=rows, units=rows)
    return Work(stage, found.result.cached, size, at_most, nbytes, names)


def store_bytes(rows: int, gradients: GradientConfig) -> int:
    """Return the bytes of a store of this many rows; 0 where the sketch keeps the model's own dimension."""
    if gradients.sketch.kind is SketchKind.NONE:
        return 0
    names = [direction.value for direction in gradients.directions]
    row = {name: torch.zeros(1, gradients.sketch.dim) for name in names}
    shard = shard_tensors(row, {name: torch.zeros(1) for name in names}, gradients.storage)
    return rows * gradients.warmup.epochs * sum(tensor.nbytes for tensor in shard.values())
