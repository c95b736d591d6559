"""The cached stages of a job: warm-up, gradients, selection, fine-tuning, evaluation.

Each function names what its stage reads, which is the key of the cache entry, and how the entry is made; it
returns where the entry lies and opens none of its files, so that a cache that makes nothing can be asked the
same questions. What stands in an entry is read by `read_...` and `check_...`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gtp_exp.cache import Cache, StageResult
from gtp_exp.config import describe
from gtp_exp.data.hashing import digest
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.evaluation.held_out import token_loss
from gtp_exp.evaluation.tasks import evaluate
from gtp_exp.files import MANIFEST, read_json, read_sealed, write_json
from gtp_exp.gradients.checkpoints import host_parameters, load_checkpoint, save_checkpoint, save_untuned
from gtp_exp.gradients.collect import VERSION as GRADIENTS_VERSION
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.end_of_turn import WeighedEndOfTurn, content_of, end_of, shares
from gtp_exp.gradients.engines.choose import Engine, check_adapters
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.given import GivenGradients
from gtp_exp.gradients.manifest import read_manifest
from gtp_exp.gradients.matching import GivenStore
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.store import GradientStore
from gtp_exp.gradients.weight import Balance
from gtp_exp.inputs import Inputs, PreparedRows, PreparedTask
from gtp_exp.model.loading import LoadedModel, Model
from gtp_exp.model.loss import Reduction
from gtp_exp.records.record import StageCost, TokenLoss, TrainingLength
from gtp_exp.records.row_results import TaskRows, read_row_results
from gtp_exp.selection.base import Budget, Need, Selection, SelectionProblem, Selector
from gtp_exp.selection.subset import select_outside_quarantine
from gtp_exp.tracking import Journal
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import TrainConfig
from gtp_exp.training.finetune import finetune, save_tuned
from gtp_exp.training.hooks import Hooks, StepHook
from gtp_exp.training.resume import forget_epochs

log = logging.getLogger(__name__)

# Raise a stage's version when the same inputs give another result: old cache entries are then passed over.
VERSIONS = {
    "warmup": 6,
    "gradients": GRADIENTS_VERSION,
    "pass": 2,
    "selection": 2,
    "finetune": 6,
    "evaluation": 9,
    "validation": 1,
}
# Another release of these may give other numbers too.
LIBRARIES = {
    name: importlib.metadata.version(name)
    for name in ("torch", "transformers", "peft", "accelerate", "lm-eval", "numpy")
}
# Names under which results.json tells the costs of the two evaluations of a job, or of its two validations.
EVALUATION, UNTUNED = "evaluation", "evaluation of the untuned model"
VALIDATION, UNTUNED_VALIDATION = "validation", "validation of the untuned model"
HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")  # of a training step, in the event log


@dataclass
class StageRunner:
    """Finds or makes cached stages, and keeps account of what they cost."""

    cache: Cache
    journal: Journal
    costs: dict[str, StageCost] = field(default_factory=dict)  # by the stage's name in results.json

    @property
    def processes(self) -> Processes:
        """Return the processes that run the job together."""
        return self.cache.processes

    def run_stage(
        self,
        stage: str,
        reads: Mapping[str, Any],
        produce: Callable[[Path], None],
        cost: str = "",
        together: bool = True,
    ) -> StageResult:
        """Return a stage's cache entry; `produce(directory)` makes it where there is none.

        cost: the name under which its seconds are added up, by default the stage's own. together: whether
        every process takes part in `produce`; else the main one does it alone.
        """
        cost = cost or stage
        reads = {**reads, "libraries": LIBRARIES}
        result = self.cache.stage(stage, VERSIONS[stage], reads, produce, label=cost, together=together)
        before = self.costs.get(cost, StageCost("", 0.0, True, 0.0))
        self.costs[cost] = StageCost(
            key=f"{before.key} {result.key}".strip(),
            seconds=before.seconds + result.seconds,
            cached=before.cached and result.cached,
            spent=before.spent_here + (0.0 if result.cached else result.seconds),
        )
        told = {"stage": cost, "key": result.key, "seconds": result.seconds, "cached": result.cached}
        self.journal.event("stage", told)  # gtp-exp-cache reads there what a job uses before its end
        return result

    def note(self, cost: str, key: str) -> None:
        """Name something that was there, and cost nothing, among what the job was made from."""
        self.costs[cost] = StageCost(key, 0.0, cached=True, spent=0.0)

    def add_seconds(self, cost: str, seconds: float) -> None:
        """Count further seconds as part of a stage's cost."""
        self.costs[cost] = replace(self.costs[cost], seconds=self.costs[cost].seconds + seconds)


def warm_up(
    runner: StageRunner, model: Model, candidates: PreparedRows, gradients: GradientConfig
) -> StageResult:
    """Fine-tune briefly on a random subset of the candidates; the epochs' ends, and where it is asked for the
    beginning, are the trajectory's checkpoints."""
    processes = runner.processes

    def produce(directory: Path) -> None:
        loaded = model.load_trainable(gradients.seed)
        check_adapters(loaded.model, gradients.engine)
        generator = torch.Generator().manual_seed(gradients.seed)
        n = gradients.warmup_rows(len(candidates.examples))
        subset = torch.randperm(len(candidates.examples), generator=generator)[:n].tolist()
        untuned = host_parameters(loaded.model) if gradients.untuned_checkpoint else None
        checkpoints: list[str] = []

        def next_directory() -> Path:
            checkpoints.append(f"checkpoint-{len(checkpoints)}")
            return directory / checkpoints[-1]

        def on_epoch_end(
            trained: Any, optimizer: torch.optim.Optimizer, step: int, learning_rate: float
        ) -> None:
            if not processes.main:
                return
            if untuned is not None and not checkpoints:
                save_untuned(next_directory(), untuned, learning_rate=learning_rate)
            save_checkpoint(
                next_directory(),
                trained,
                optimizer,
                step=step,
                learning_rate=learning_rate,
                moments=gradients.warmup.optimizer.has_moments,
            )

        finetune(
            loaded,
            TrainingRows([candidates.tokenized[i] for i in subset]),
            gradients.warmup,
            directory,
            seed=gradients.seed,
            label="warm-up",
            hooks=Hooks(on_epoch_end, live(runner.journal, "warmup")),
            processes=processes,
        )
        if processes.main:
            (directory / "trajectory.json").write_text(json.dumps(checkpoints))
            forget_epochs(directory)

    reads = {
        "model": model.identity,
        "pool": candidates.key,
        "share": gradients.warmup_share,
        "train": gradients.warmup.reads(),
        "seed": gradients.seed,
        **({"untuned_checkpoint": True} if gradients.untuned_checkpoint else {}),
        **dropout_reads(model, processes),
    }
    return runner.run_stage("warmup", reads, produce)


def dropout_reads(model: Model, processes: Processes) -> dict[str, int]:
    """Return what training reads besides its settings where values are dropped: the number of processes, for
    each of them draws the masks of its own rows."""
    lora = model.config.lora
    if lora is not None and lora.dropout > 0:
        return {"processes": processes.size}
    return {"processes": processes.size} if model.own_dropout and processes.size > 1 else {}


def collect_gradients(
    runner: StageRunner,
    model: Model,
    split: str,
    rows: PreparedRows,
    trajectory: StageResult,
    gradients: GradientConfig,
    proven: Engine | None = None,
) -> StageResult:
    """Sketch the gradient of every row at every checkpoint of the trajectory. split: "pool" or "target".

    proven: an engine that needs no comparison with autograd any more, as `proven_engine` finds it.
    """

    def produce(directory: Path) -> None:
        names = json.loads((trajectory.directory / "trajectory.json").read_text())
        collect(
            model.load_trainable(gradients.seed).model,
            rows.tokenized,
            [load_checkpoint(trajectory.directory / name) for name in names],
            directory / "store",
            gradients,
            label=f"{split} gradients",
            proven=proven,
            processes=runner.processes,
        )

    reads = {"warmup": trajectory.key, "split": split, "rows": rows.key, "settings": gradients.reads()}
    return runner.run_stage("gradients", reads, produce, cost=f"gradients: {split}")


def proven_engine(made: StageResult) -> Engine | None:
    """Return the engine that this process has just trusted with a store; None for a store that was there, and
    for rows that were taken one by one, which may be for their length: shorter ones may do with a faster one.
    """
    engine = None if made.cached else Engine(read_manifest(made.directory / "store")["engine"])
    return None if engine is Engine.AUTOGRAD else engine


def check_quarantine(
    split: str, rows: PreparedRows, store: Gradients, gradients: GradientConfig | GivenGradients
) -> None:
    """Warn of rows whose gradient is not finite; raise UserError above the share that is tolerated."""
    ids = [rows.examples[i].id for i in read_quarantined(store).tolist()]
    if not ids:
        return
    n = len(rows.examples)
    named = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    message = f"the gradient of {len(ids)} of {n} {split} rows is not finite: {named}"
    if len(ids) > gradients.max_quarantined_share * n:
        raise UserError(
            f"{message}; gradients.max_quarantined_share={gradients.max_quarantined_share} allows fewer: "
            f"{gradients.remedy}"
        )
    log.warning("%s; they are neither chosen nor aimed at", message)


Gradients = StageResult | GivenStore  # what `collect_gradients` has stored, or a store that was there


def read_store(gradients: Gradients) -> GradientFeatures:
    """Open the gradients of the job's rows."""
    return gradients.features() if isinstance(gradients, GivenStore) else _opened(gradients)


def _opened(result: StageResult) -> GradientStore:
    return GradientStore.open(result.directory / "store")


def read_quarantined(gradients: Gradients | None) -> torch.Tensor:
    """Return the rows whose gradient is not finite, int64; none where there is no store."""
    if gradients is None:
        return torch.tensor([], dtype=torch.long)
    return (gradients if isinstance(gradients, GivenStore) else _opened(gradients)).quarantined


@dataclass(frozen=True)
class GradientStores:
    """Names the gradients of pool and target; None where there are none to read."""

    pool: Gradients | None = None
    target: Gradients | None = None
    end_of_turn: Gradients | None = None  # of the target's rows; `target` is then of their other tokens

    def keys(self) -> list[str | None]:
        """Return the keys of the gradients of pool and target, and of the end of turn where it is apart."""
        apart = [] if self.end_of_turn is None else [self.end_of_turn]
        return [None if store is None else store.key for store in (self.pool, self.target, *apart)]


def rows_with_gradients(inputs: Inputs, selector: Selector) -> list[tuple[str, PreparedRows]]:
    """Return the rows whose gradients a selector reads, each with its split, in GradientStores' order.

    Where the end of turn has another weight than 1 in the target, target rows appear with loss on their other
    tokens and, unless it is left out, once more with loss on the end of turn alone.
    """
    target, weight = inputs.target, selector.target_end_of_turn
    parts: list[PreparedRows] = []
    if target is not None and weight == 1:
        parts = [target]
    elif target is not None:
        parts = [target.with_tokens(content_of(target.tokenized))]
        if weight != 0:
            parts.append(target.with_tokens(end_of(target.tokenized)))
    return [("pool", inputs.candidates_to_select), *(("target", part) for part in parts)]


@dataclass(frozen=True)
class SelectionSources:
    """Holds what a selection is made from."""

    chooser: Model
    tuned: Model  # whose tokens a budget counts
    inputs: Inputs
    gradients: GradientStores
    reduction: Reduction = Reduction.MEAN  # of a row's loss, in its gradient


def select(
    runner: StageRunner, sources: SelectionSources, selector: Selector, budget: Budget, seed: int
) -> StageResult:
    """Choose rows among the candidates within the budget."""
    chooser, inputs, gradients = sources.chooser, sources.inputs, sources.gradients
    scores = {name: inputs.scores.get(name, ()) for name in selector.score_columns()}

    def produce(directory: Path) -> None:
        passes = KeptPasses(runner.cache.root, chooser.identity, directory)
        loaded = replace(chooser.load(), keep=passes) if Need.MODEL in selector.needs else None
        tokenized = inputs.candidates.tokenized
        problem = SelectionProblem(
            candidates=inputs.candidates.examples,
            n_tokens=torch.tensor([row.n_tokens for row in tokenized]),
            n_completion_tokens=torch.tensor([row.n_completion_tokens for row in tokenized]),
            target=None if inputs.target is None else inputs.target.examples,
            budget=budget,
            seed=seed,
            pool_gradients=None if gradients.pool is None else read_store(gradients.pool),
            target_gradients=target_gradients(sources, selector),
            model=loaded,
            candidate_tokens=inputs.candidates_to_select.tokenized,
            target_tokens=() if inputs.target is None else inputs.target.tokenized,
            processes=runner.processes if selector.distributed else ALONE,
            scores={name: torch.tensor(column, dtype=torch.float64) for name, column in scores.items()},
        )
        selection = select_outside_quarantine(
            selector,
            problem,
            read_quarantined(gradients.pool),
            torch.cat([read_quarantined(gradients.target), read_quarantined(gradients.end_of_turn)]).unique(),
        )
        if runner.processes.main:
            _write_selection(selection, directory)
            passes.finish()

    reads = {
        "selector": describe(selector),
        "version": selector.version,
        # A selector that takes the same rows at every budget is computed, trained and tested once.
        "budget": None if selector.ignores_budget else describe(budget),
        "seed": seed,
        "model": chooser.identity,
        "pool": inputs.candidates.key,
        "target": None if inputs.target is None else inputs.target.key,
        "gradients": gradients.keys(),
    }
    if more := {**selector.reads(), **({"scores": digest(scores)} if scores else {})}:
        reads["more"] = more
    if sources.tuned is not chooser:
        reads["tokens counted for"] = sources.tuned.identity
        reads["pool as it chooses"] = inputs.candidates_to_select.key
    return runner.run_stage("selection", reads, produce, together=selector.distributed)


def target_gradients(sources: SelectionSources, selector: Selector) -> GradientFeatures | None:
    """Return the target's gradients with the selector's weight of the end of turn; None without any."""
    stores, target = sources.gradients, sources.inputs.target
    if stores.target is None or target is None:
        return None
    store = read_store(stores.target)
    weight = selector.target_end_of_turn
    if weight == 1 or isinstance(stores.target, GivenStore):
        return store
    return WeighedEndOfTurn(
        content=store,
        end=None if stores.end_of_turn is None else read_store(stores.end_of_turn),
        shares=None if isinstance(weight, Balance) else shares(target.tokenized, sources.reduction, weight),
    )


def _write_selection(selection: Selection, directory: Path) -> None:
    """Write a selection as `read_selection` reads it."""
    arrays = {"indices": selection.indices, "weights": selection.weights, "scores": selection.scores}
    arrays = {name: array.contiguous() for name, array in arrays.items()}
    save_file(arrays, directory / "selection.safetensors")
    (directory / "diagnostics.json").write_text(json.dumps(dict(selection.diagnostics), allow_nan=False))


def read_selection(result: StageResult) -> Selection:
    """Return the choice that `select` has made."""
    arrays = load_file(result.directory / "selection.safetensors")
    diagnostics = json.loads((result.directory / "diagnostics.json").read_text())
    return Selection(**arrays, diagnostics=diagnostics)


def read_beside_rows(selected: StageResult) -> dict[str, Any]:
    """Return what a choice depended on besides its settings, the rows and their gradients, as its cache entry
    tells: JSON values by name, none for most selectors."""
    return (read_sealed(selected.directory / MANIFEST) or {}).get("reads", {}).get("more", {})


class KeptPasses:
    """Keeps a selector's passes of the model over the pool, which other budgets and selectors read too."""

    def __init__(self, cache_root: Path, model_identity: Mapping[str, Any], directory: Path) -> None:
        """Keep the passes of one model in the cache.

        directory: of the selection that makes them; an interrupted one notes there what it has made.
        """
        self.cache = Cache(cache_root)  # of one process: only the main one selects
        self.model_identity, self.directory = model_identity, directory
        self.saved_seconds = 0.0  # what the passes have cost that another selection made
        self._notes = directory / "passes_made.json"

    def __call__(
        self, what: str, reads: Mapping[str, Any], compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """Return what `compute` returns, or what it returned earlier for the same model and reads."""

        def produce(directory: Path) -> None:
            save_file({"values": compute().contiguous()}, directory / "values.safetensors")

        reads = {"what": what, "model": self.model_identity, "libraries": LIBRARIES, **reads}
        result = self.cache.stage("pass", VERSIONS["pass"], reads, produce, label=f"{what} pass")
        made_here = read_json(self._notes) or []
        if not result.cached:
            write_json(self._notes, [*made_here, result.key])
        elif result.key not in made_here:  # else its seconds are among those that the selection has spent
            self.saved_seconds += result.seconds
        return load_file(result.directory / "values.safetensors")["values"]

    def finish(self) -> None:
        """Write the saved seconds beside the selection, and remove the notes on what it made."""
        self._notes.unlink(missing_ok=True)
        (self.directory / "passes.json").write_text(json.dumps({"saved_seconds": self.saved_seconds}))


def read_saved_seconds(selected: StageResult) -> float:
    """Return what the selection would have cost more without passes of the model that others had made."""
    return json.loads((selected.directory / "passes.json").read_text())["saved_seconds"]


def tune(
    runner: StageRunner,
    model: Model,
    candidates: PreparedRows,
    selected: StageResult,
    train: TrainConfig,
    seed: int,
) -> StageResult:
    """Fine-tune the untuned model on the chosen rows."""
    processes = runner.processes

    def produce(directory: Path) -> None:
        selection = read_selection(selected)
        loaded = model.load_trainable(seed)
        rows = TrainingRows(
            [candidates.tokenized[i] for i in selection.indices.tolist()],
            selection.weights if train.use_weights else None,
        )
        finetune(
            loaded,
            rows,
            train,
            directory,
            seed=seed,
            label="fine-tune",
            hooks=Hooks(on_step=live(runner.journal, "finetune")),
            processes=processes,
        )
        if processes.main:
            save_tuned(loaded, directory / "model")
            forget_epochs(directory)

    reads = {
        "selection": selected.key,
        "model": model.identity,
        "train": train.reads(),
        "seed": seed,
        **dropout_reads(model, processes),
    }
    return runner.run_stage("finetune", reads, produce)


def read_training_length(trained: StageResult) -> TrainingLength:
    """Return how long a fine-tune was, by its training curve, which has a row for every optimizer step."""
    *_, last = (trained.directory / "history.jsonl").read_text().splitlines()
    return TrainingLength(epochs=round(json.loads(last)["epoch"]), steps=json.loads(last)["step"])


def live(journal: Journal, kind: str) -> StepHook:
    """Return what puts every step of a warm-up or a fine-tune into the event log."""
    return lambda row: journal.event(kind, {name: row[name] for name in HISTORY if name in row})


def mirror_history(journal: Journal, kind: str, trained: StageResult) -> None:
    """Put the training curve of a warm-up or a fine-tune that was in the cache into the event log; one that
    was not has told its steps as it took them."""
    if not trained.cached:
        return
    for line in (trained.directory / "history.jsonl").read_text().splitlines():
        live(journal, kind)(json.loads(line))


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
