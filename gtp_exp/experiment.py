"""The pipeline: select, fine-tune, evaluate. `run` is the whole of it; each step is one cached stage."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from gtp_exp.cache import Cache, StageResult
from gtp_exp.config import describe
from gtp_exp.data.benchmark import Benchmark, EvalTask, SplitsPool
from gtp_exp.data.examples import Example, Pool, TokenizedExample
from gtp_exp.data.hashing import content_hash
from gtp_exp.data.leakage import TestRows, flagged, leakage
from gtp_exp.data.tokenization import tokenize
from gtp_exp.distributed import ALONE, Processes, connect
from gtp_exp.errors import UserError
from gtp_exp.evaluation import evaluate
from gtp_exp.files import read_json, write_json
from gtp_exp.gradients.checkpoints import load_checkpoint, save_checkpoint
from gtp_exp.gradients.collect import VERSION as GRADIENTS_VERSION
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.store import GradientStore
from gtp_exp.launch.launcher import Launch
from gtp_exp.model.device import be_deterministic, choose_device
from gtp_exp.model.loading import Model, ModelConfig, prepare
from gtp_exp.results import selected
from gtp_exp.results.record import PoolSummary, RowCounts, RunRecord, SelectionSummary, StageCost
from gtp_exp.selection.base import Budget, Need, Selection, SelectionProblem, Selector
from gtp_exp.selection.subset import select_outside_quarantine
from gtp_exp.tracking import METRICS_NAME, Journal, NoTracker, RunInfo, Tracker
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import TrainConfig
from gtp_exp.training.finetune import finetune, save_tuned
from gtp_exp.training.resume import forget_epochs

log = logging.getLogger(__name__)

# Raise a stage's version when the same inputs give another result: old cache entries are then passed over.
VERSIONS = {
    "warmup": 4,
    "gradients": GRADIENTS_VERSION,
    "pass": 2,
    "selection": 2,
    "finetune": 4,
    "evaluation": 2,
}
# Another release of these may give other numbers too.
LIBRARIES = {
    name: importlib.metadata.version(name)
    for name in ("torch", "transformers", "peft", "accelerate", "lm-eval", "numpy")
}


class DatasetSource(Protocol):
    def load(self) -> Pool: ...


class Tracking(Protocol):
    def tracker(self) -> Tracker: ...


class Until(Enum):
    EVALUATION = "evaluation"
    SELECTION = "selection"  # nothing is trained: to look at what selectors choose


@dataclass(frozen=True)
class Settings:
    """The config keys outside any group."""

    seed: int  # of the selector and of fine-tuning; the trajectory has gradients.seed
    outputs: str
    until: Until
    eval_batch_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must lie between 0 and 4294967295")
        if self.eval_batch_size < 1:
            raise UserError(f"eval_batch_size={self.eval_batch_size} must be at least 1; 16 is usual")


@dataclass(frozen=True)
class Experiment:
    """One config group each, as checked objects."""

    model: ModelConfig
    selection_model: ModelConfig | None  # chooses in place of the model that is tuned; None: the same one
    dataset: DatasetSource
    gradients: GradientConfig
    selector: Selector
    budget: Budget
    train: TrainConfig
    benchmark: Benchmark
    tracking: Tracking
    launch: Launch
    settings: Settings

    def __post_init__(self) -> None:
        stored = [direction.value for direction in self.gradients.directions]
        for key in ("direction", "target_direction"):
            asked = getattr(self.selector, key, None)
            if Need.GRADIENTS in self.selector.needs and asked is not None and asked not in stored:
                raise UserError(
                    f"selector.{key}={asked} is not among gradients.directions={stored}; "
                    "add it there or choose one of these"
                )


@dataclass(frozen=True)
class Rows:
    """Examples that carry loss, with their token ids."""

    examples: tuple[Example, ...]
    tokenized: tuple[TokenizedExample, ...]
    excluded: Mapping[str, int]
    cut: int  # rows shortened to the model's context
    key: str  # content hash

    def counts(self) -> RowCounts:
        return RowCounts(len(self.examples), self.excluded, self.cut, self.key)


@dataclass
class Context:
    """What every stage needs: where results go and what they cost."""

    experiment: Experiment
    model: Model
    cache: Cache
    journal: Journal
    costs: dict[str, StageCost] = field(default_factory=dict)

    @property
    def processes(self) -> Processes:
        return self.cache.processes

    def stage(
        self,
        name: str,
        reads: Mapping[str, Any],
        produce: Callable[[Path], None],
        cost: str = "",
        together: bool = True,
    ) -> StageResult:
        """One cached step; `cost` is the name under which its seconds are added up.

        together: every process takes part in `produce`; else the main one does it alone.
        """
        cost = cost or name
        reads = {**reads, "libraries": LIBRARIES}
        result = self.cache.stage(name, VERSIONS[name], reads, produce, label=cost, together=together)
        before = self.costs.get(cost, StageCost("", 0.0, True))
        key = f"{before.key} {result.key}".strip()
        self.costs[cost] = StageCost(key, before.seconds + result.seconds, before.cached and result.cached)
        self.journal.event("stage", {"stage": cost, "seconds": result.seconds, "cached": result.cached})
        return result


class Passes:
    """Keeps a selector's passes of the model over the pool: other budgets and selectors read them too."""

    def __init__(self, c: Context, directory: Path) -> None:
        """directory: of the selection that makes them; an interrupted one notes there what it has made."""
        self.c, self.saved_seconds, self.notes = c, 0.0, directory / "passes_made.json"

    def __call__(
        self, what: str, reads: Mapping[str, Any], compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        def produce(directory: Path) -> None:
            save_file({"values": compute().contiguous()}, directory / "values.safetensors")

        reads = {"what": what, "model": self.c.model.identity, "libraries": LIBRARIES, **reads}
        alone = Cache(self.c.cache.root)  # only the main process selects
        result = alone.stage("pass", VERSIONS["pass"], reads, produce, label=f"{what} pass")
        made = read_json(self.notes) or []
        if not result.cached:
            write_json(self.notes, [*made, result.key])
        elif result.key not in made:  # else its seconds are among those that the selection has spent
            self.saved_seconds += result.seconds
        return load_file(result.directory / "values.safetensors")["values"]


def run(experiment: Experiment, record: RunRecord, directory: Path, job: Mapping[str, Any]) -> RunRecord:
    """One job from data to metrics. `record` comes back with everything that was learned."""
    x = experiment
    device = choose_device(x.launch.device.value)
    if x.launch.deterministic:
        be_deterministic(device)
    processes = connect(x.launch.num_processes, device)
    cache = Cache(Path(x.settings.outputs) / "cache", processes)
    tracker = x.tracking.tracker() if processes.main else NoTracker()
    tracker.start(RunInfo(job["name"], job["group"], directory, record.config))
    try:
        model = processes.main_first(lambda: prepare(x.model, cache.root, device))
        journal = directory / METRICS_NAME if processes.main else None
        c = Context(x, model, cache, Journal(journal, tracker))
        chooser = c  # the same steps with the model that chooses
        if (other := x.selection_model) is not None:
            chooser = replace(c, model=processes.main_first(lambda: prepare(other, cache.root, device)))

        # Everything that can be wrong with the input shows here, before the long work.
        pool, benchmark = x.dataset.load(), x.benchmark
        if isinstance(benchmark, SplitsPool):
            pool, benchmark = benchmark.split(pool)
        candidates = prepare_rows("pool", pool.examples, model)
        target_rows = benchmark.target()
        seen_by_chooser, candidates = as_seen_by(chooser, c, candidates)
        target = None if target_rows is None else prepare_rows("target", target_rows, chooser.model)
        tasks = benchmark.tasks()
        tests = {t.name: prepare_rows(f"test of {t.name}", t.held_out, model) for t in tasks if t.held_out}
        for name, rows in {"pool": candidates, "target": target, **tests}.items():
            if rows is not None:
                check_agreement(processes, name, rows.key)
        x.budget.rows(len(candidates.examples))
        seen = {"target": target.examples} if target else {}
        test_rows = TestRows(tasks)
        leaked = guard(test_rows, {**seen, "pool": candidates.examples})

        pool_gradients = target_gradients = None
        if Need.GRADIENTS in x.selector.needs:
            trajectory = warm_up(chooser, seen_by_chooser)
            pool_gradients = collect_gradients(chooser, "pool", seen_by_chooser, trajectory)
            if target is not None:
                target_gradients = collect_gradients(chooser, "target", target, trajectory)
        chosen, selection = select(chooser, c, candidates, target, pool_gradients, target_gradients)
        summary = report_selection(c, directory, pool, candidates, selection) if processes.main else None

        leaked |= guard(test_rows, {"selected": [candidates.examples[i] for i in selection.indices.tolist()]})
        metrics, untuned = {}, {}
        if x.settings.until is Until.EVALUATION:
            tuned = tune(c, candidates, chosen, selection)
            metrics = evaluate_all(c, tasks, tuned)
            untuned = evaluate_all(c, tasks, None)

        record = replace(
            record,
            stages=dict(c.costs),
            model={**model.identity, "device": model.device.type},
            selection_model=None if chooser is c else dict(chooser.model.identity),
            pool=PoolSummary(
                len(pool.examples) + sum(pool.skipped.values()),
                len(candidates.examples),
                {**pool.skipped, **candidates.excluded},
                candidates.cut,
                candidates.key,
            ),
            rows={name: r.counts() for name, r in {"target": target, **tests}.items() if r is not None},
            selection=summary,
            leakage=leaked,
            metrics=metrics,
            untuned=untuned,
        )
        tracker.finish(_flat(metrics), exit_code=0)
        return record
    except BaseException:
        tracker.finish({}, exit_code=1)
        raise


def prepare_rows(name: str, examples: Sequence[Example], model: Model) -> Rows:
    """Tokenised examples; those without a completion token left are left out, counted and logged."""
    tokens = tokenize(examples, model.tokenizer, max_length=model.config.max_length)
    excluded = {reason: len(ids) for reason, ids in tokens.excluded.items() if ids}
    for reason, count in excluded.items():
        log.warning("%s: left out %d of %d rows (%s)", name, count, len(examples), reason)
    if tokens.truncated:
        limit = f"model.max_length={model.config.max_length}"
        log.warning("%s: cut %d of %d rows to %s", name, len(tokens.truncated), len(examples), limit)
    if not tokens.examples:
        raise UserError(
            f"the {name} has no row with a completion; {len(examples)} rows read, excluded: {excluded}"
        )
    kept = tuple(examples[i] for i in tokens.kept)
    return Rows(kept, tokens.examples, excluded, len(tokens.truncated), content_hash(kept))


def check_agreement(processes: Processes, name: str, key: str) -> None:
    """Every process reads the data for itself; with different rows they would divide different work."""
    if len(set(processes.all_gather(key))) > 1:
        raise UserError(f"the {name} changed while the job's processes read it; start the job again")


def as_seen_by(chooser: Context, c: Context, candidates: Rows) -> tuple[Rows, Rows]:
    """The candidates tokenised for the model that chooses, and for the one that is tuned: the same rows."""
    if chooser is c:
        return candidates, candidates
    seen = prepare_rows("pool of the selection model", candidates.examples, chooser.model)
    if len(seen.examples) == len(candidates.examples):
        return seen, candidates
    kept = prepare_rows("pool", seen.examples, c.model)
    lost = {
        reason: seen.excluded.get(reason, 0) + candidates.excluded.get(reason, 0)
        for reason in {**seen.excluded, **candidates.excluded}
    }
    return seen, replace(kept, excluded=lost, cut=candidates.cut)


def own_masks(c: Context) -> dict[str, int]:
    """What training reads where LoRA has dropout: each process draws its masks for rows of its own."""
    lora = c.model.config.lora
    return {"processes": c.processes.size} if lora is not None and lora.dropout > 0 else {}


def warm_up(c: Context, candidates: Rows) -> StageResult:
    """A short fine-tune on a random subset of the candidates; its epochs are the trajectory's checkpoints."""
    g = c.experiment.gradients

    def produce(directory: Path) -> None:
        loaded = c.model.load_trainable(g.seed)
        generator = torch.Generator().manual_seed(g.seed)
        n = max(1, round(g.warmup_share * len(candidates.examples)))
        subset = torch.randperm(len(candidates.examples), generator=generator)[:n].tolist()
        checkpoints = []

        def on_epoch_end(
            model: Any, optimizer: torch.optim.Optimizer, step: int, learning_rate: float
        ) -> None:
            name = f"checkpoint-{len(checkpoints)}"
            if c.processes.main:
                save_checkpoint(directory / name, model, optimizer, step=step, learning_rate=learning_rate)
            checkpoints.append(name)

        finetune(
            loaded,
            TrainingRows([candidates.tokenized[i] for i in subset]),
            g.warmup,
            directory,
            seed=g.seed,
            label="warm-up",
            on_epoch_end=on_epoch_end,
            processes=c.processes,
        )
        if c.processes.main:
            (directory / "trajectory.json").write_text(json.dumps(checkpoints))
            forget_epochs(directory)

    reads = {
        "model": c.model.identity,
        "pool": candidates.key,
        "share": g.warmup_share,
        "train": describe(g.warmup),
        "seed": g.seed,
        **own_masks(c),
    }
    result = c.stage("warmup", reads, produce)
    _mirror_history(c, "warmup", result)
    return result


def collect_gradients(c: Context, split: str, rows: Rows, trajectory: StageResult) -> StageResult:
    """Sketched per-example gradients at every checkpoint of the trajectory."""
    g = c.experiment.gradients

    def produce(directory: Path) -> None:
        names = json.loads((trajectory.directory / "trajectory.json").read_text())
        collect(
            c.model.load_trainable(g.seed).model,
            rows.tokenized,
            [load_checkpoint(trajectory.directory / name) for name in names],
            directory / "store",
            g,
            label=f"{split} gradients",
        )

    reads = {"warmup": trajectory.key, "split": split, "rows": rows.key, "settings": g.reads()}
    result = c.stage("gradients", reads, produce, cost=f"gradients: {split}")
    check_quarantine(
        split, [rows.examples[i].id for i in quarantined(result).tolist()], len(rows.examples), g
    )
    return result


def gradient_store(result: StageResult) -> GradientStore:
    return GradientStore.open(result.directory / "store")


def quarantined(gradients: StageResult | None) -> torch.Tensor:
    return torch.tensor([], dtype=torch.long) if gradients is None else gradient_store(gradients).quarantined


def check_quarantine(split: str, ids: Sequence[str], n: int, settings: GradientConfig) -> None:
    """Warns of rows whose gradient is not finite; raises UserError above the share that is tolerated."""
    if not ids:
        return
    named = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    found = f"the gradient of {len(ids)} of {n} {split} rows is not finite: {named}"
    if len(ids) > settings.max_quarantined_share * n:
        raise UserError(
            f"{found}; gradients.max_quarantined_share={settings.max_quarantined_share} allows fewer. Check "
            "their text, lower gradients.warmup.learning_rate, or set model.precision=fp32"
        )
    log.warning("%s; they are neither chosen nor aimed at", found)


def select(
    c: Context,
    tuned: Context,
    candidates: Rows,
    target: Rows | None,
    pool_gradients: StageResult | None,
    target_gradients: StageResult | None,
) -> tuple[StageResult, Selection]:
    """`c` has the model that chooses; the rows' tokens are counted as the `tuned` model reads them."""
    x = c.experiment
    distributed = getattr(x.selector, "distributed", False)

    def produce(directory: Path) -> None:
        passes = Passes(c, directory)
        problem = SelectionProblem(
            candidates=candidates.examples,
            n_tokens=torch.tensor([e.n_tokens for e in candidates.tokenized]),
            n_completion_tokens=torch.tensor([e.n_completion_tokens for e in candidates.tokenized]),
            target=None if target is None else target.examples,
            budget=x.budget,
            seed=x.settings.seed,
            pool_gradients=pool_gradients and gradient_store(pool_gradients),
            target_gradients=target_gradients and gradient_store(target_gradients),
            model=replace(c.model.load(), keep=passes) if Need.MODEL in x.selector.needs else None,
            processes=c.processes if distributed else ALONE,
        )
        selection = select_outside_quarantine(
            x.selector, problem, quarantined(pool_gradients), quarantined(target_gradients)
        )
        if not c.processes.main:
            return
        arrays = {"indices": selection.indices, "weights": selection.weights, "scores": selection.scores}
        save_file({k: v.contiguous() for k, v in arrays.items()}, directory / "selection.safetensors")
        (directory / "diagnostics.json").write_text(json.dumps(dict(selection.diagnostics), allow_nan=False))
        passes.notes.unlink(missing_ok=True)
        (directory / "passes.json").write_text(json.dumps({"saved_seconds": passes.saved_seconds}))

    reads = {
        "selector": describe(x.selector),
        "version": x.selector.version,
        # A selector that takes the same rows at every budget is computed, trained and tested once.
        "budget": None if getattr(x.selector, "ignores_budget", False) else describe(x.budget),
        "seed": x.settings.seed,
        "model": c.model.identity,
        "pool": candidates.key,
        "target": None if target is None else target.key,
        "gradients": [g and g.key for g in (pool_gradients, target_gradients)],
    }
    if more := getattr(x.selector, "reads", None):
        reads["more"] = more()
    if tuned is not c:
        reads["tokens counted for"] = tuned.model.identity
    result = c.stage("selection", reads, produce, together=distributed)
    saved = json.loads((result.directory / "passes.json").read_text())["saved_seconds"]
    cost = c.costs["selection"]  # as if it had been computed alone
    c.costs["selection"] = replace(cost, seconds=cost.seconds + saved)
    arrays = load_file(result.directory / "selection.safetensors")
    diagnostics = json.loads((result.directory / "diagnostics.json").read_text())
    return result, Selection(**arrays, diagnostics=diagnostics)


def tune(c: Context, candidates: Rows, chosen: StageResult, selection: Selection) -> StageResult:
    """Fine-tunes the untuned model on the chosen rows."""
    x = c.experiment

    def produce(directory: Path) -> None:
        loaded = c.model.load_trainable(x.settings.seed)
        finetune(
            loaded,
            TrainingRows(
                [candidates.tokenized[i] for i in selection.indices.tolist()],
                selection.weights if x.train.use_weights else None,
                x.gradients.reduction,
            ),
            x.train,
            directory,
            seed=x.settings.seed,
            label="fine-tune",
            processes=c.processes,
        )
        if c.processes.main:
            save_tuned(loaded, directory / "model")
            forget_epochs(directory)

    reads = {
        "selection": chosen.key,
        "model": c.model.identity,
        "train": describe(x.train),
        "reduction": x.gradients.reduction.value if x.train.use_weights else None,
        "seed": x.settings.seed,
        **own_masks(c),
    }
    result = c.stage("finetune", reads, produce)
    _mirror_history(c, "finetune", result)
    return result


def guard(test_rows: TestRows, parts: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """Overlap of what the selector sees and chooses with the test rows, counted and logged."""
    report = leakage(test_rows, parts)
    for line in flagged(report):
        log.warning("overlap with the test: %s", line)
    return report


def evaluate_all(
    c: Context, tasks: Sequence[EvalTask], tuned: StageResult | None
) -> dict[str, dict[str, float | str]]:
    """Metrics by task, tuned or (with None) untuned. The model is loaded only if a task is new."""
    loaded = None
    metrics = {}

    def produce(task: EvalTask, directory: Path) -> None:
        nonlocal loaded
        if loaded is None:
            loaded = c.model.load_tuned(tuned.directory / "model") if tuned else c.model.load()
        values = evaluate(
            task,
            loaded,
            batch_size=c.experiment.settings.eval_batch_size,
            directory=directory,
            processes=c.processes,
        )
        if c.processes.main:
            (directory / "metrics.json").write_text(json.dumps(values, allow_nan=False))

    for task in tasks:
        reads = {"tuned": tuned and tuned.key, "model": c.model.identity, "task": describe(task)}
        cost = "evaluation" if tuned else "evaluation of the untuned model"
        result = c.stage("evaluation", reads, partial(produce, task), cost=cost)
        metrics[task.name] = json.loads((result.directory / "metrics.json").read_text())
        if tuned:
            c.journal.event("evaluation", {"task": task.name, **metrics[task.name]})
    return metrics


def report_selection(
    c: Context, directory: Path, pool: Pool, candidates: Rows, selection: Selection
) -> SelectionSummary:
    """What was chosen, for people and for the leaderboard; only here are hidden labels read."""
    rows = selected.rows(candidates.examples, selection, pool.hidden)
    selected.export(rows, directory, title=f"{directory.name}: {len(rows)} selected examples")
    summary = selected.summarise(rows, pool, [row.n_tokens for row in candidates.tokenized], selection)
    c.journal.event("selection", {"n_selected": summary.n_selected, "n_tokens": summary.n_tokens})
    table = [
        [r.rank, r.id, r.weight, r.score, json.dumps(r.messages, ensure_ascii=False)] for r in rows[:1000]
    ]
    c.journal.tracker.table("selected", ["rank", "id", "weight", "score", "messages"], table)
    return summary


def _mirror_history(c: Context, kind: str, result: StageResult) -> None:
    for line in (result.directory / "history.jsonl").read_text().splitlines():
        row = json.loads(line)
        c.journal.event(
            kind, {k: row[k] for k in ("step", "epoch", "loss", "learning_rate", "grad_norm") if k in row}
        )


def _flat(metrics: Mapping[str, Mapping[str, float | str]]) -> dict[str, float | str]:
    return {f"{task}/{name}": value for task, values in metrics.items() for name, value in values.items()}
