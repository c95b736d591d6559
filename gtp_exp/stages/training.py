"""The stages that train: the warm-up, which leaves the trajectory, and the fine-tuning on chosen rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gtp_exp.cache import StageResult
from gtp_exp.distributed import Processes
from gtp_exp.gradients.checkpoints import host_parameters, save_checkpoint, save_untuned
from gtp_exp.gradients.engines.choose import check_adapters
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.inputs import PreparedRows
from gtp_exp.model.loading import Model
from gtp_exp.records.record import TrainingLength
from gtp_exp.stages.runner import StageRunner
from gtp_exp.stages.selection import read_selection
from gtp_exp.tracking import Journal
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import TrainConfig
from gtp_exp.training.finetune import finetune, save_tuned
from gtp_exp.training.hooks import Hooks, StepHook
from gtp_exp.training.resume import forget_epochs

HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")  # of a training step, in the event log


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


def dropout_reads(model: Model, processes: Processes) -> dict[str, int]:
    """Return what training reads besides its settings where values are dropped: the number of processes, for
    each of them draws the masks of its own rows."""
    lora = model.config.lora
    if lora is not None and lora.dropout > 0:
        return {"processes": processes.size}
    return {"processes": processes.size} if model.own_dropout and processes.size > 1 else {}


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
