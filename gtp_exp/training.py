"""Fine-tuning: settings, the order of rows, what each weighs, and from where an interrupted run goes on."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from gtp_exp.checksums import first_damage, read_sealed
from gtp_exp.data.batching import pad_collate
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.loss import Reduction
from gtp_exp.models import LoadedModel
from gtp_exp.processes import ALONE, Processes

log = logging.getLogger(__name__)

SCRATCH = "trainer"  # folder of the checkpoints from which an interrupted fine-tune goes on
RECEIPT = "receipt.json"  # a checkpoint's checksums; written last


class Schedule(Enum):
    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant_with_warmup"


@dataclass(frozen=True)
class TrainConfig:
    epochs: int
    learning_rate: float
    schedule: Schedule
    warmup_ratio: float  # share of all steps
    weight_decay: float
    max_grad_norm: float
    batch_size: int  # examples per optimizer step, over all processes
    micro_batch_size: int  # examples per forward pass of one process, at most
    use_weights: bool  # train on sum_i w_i (loss of example i), w the selection's weights

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0 or not 0 <= self.warmup_ratio < 1:
            raise UserError(
                "training needs epochs >= 1, learning_rate > 0 and 0 <= warmup_ratio < 1; got "
                f"epochs={self.epochs}, learning_rate={self.learning_rate}, warmup_ratio={self.warmup_ratio}"
            )
        if self.weight_decay < 0 or self.max_grad_norm <= 0:
            raise UserError(
                "training needs weight_decay >= 0 and max_grad_norm > 0; got "
                f"weight_decay={self.weight_decay}, max_grad_norm={self.max_grad_norm}"
            )
        if self.batch_size < 1 or self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise UserError(
                f"batch_size={self.batch_size} must be a multiple of micro_batch_size={self.micro_batch_size}"
            )


# (model, optimizer, global step, mean learning rate since the last call), at the end of every epoch
EpochHook = Callable[[Any, torch.optim.Optimizer, int, float], None]


def finetune(
    loaded: LoadedModel,
    examples: Sequence[TokenizedExample],
    weights: torch.Tensor | None,
    config: TrainConfig,
    directory: Path,
    *,
    reduction: Reduction,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    label: str,
    on_epoch_end: EpochHook | None = None,
    processes: Processes = ALONE,
) -> None:
    """Trains `loaded` in place; writes the training curve to `history.jsonl` in `directory`.

    weights: [len(examples)], >= 0, of mean 1, or None. reduction: of the loss whose gradients the weights
    were fitted to; see `loss_terms`. Accumulation and several processes change nothing but rounding (and the
    masks of dropout): every step sees the same rows. After a kill the run goes on from the last epoch, but
    with an `on_epoch_end` hook it starts over. The hook is called in every process. What it goes on from
    stays until `forget_epochs`.
    """
    # Half of transformers comes along, for seconds that a job whose stages are in the cache need not spend.
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    from gtp_exp.trainer import Progress, Receipts, WeightedTrainer

    scratch = directory / SCRATCH
    if on_epoch_end is not None and processes.main:
        shutil.rmtree(scratch, ignore_errors=True)
    micro_batch = micro_batch_size(config, processes.size)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule.value,
        warmup_steps=int(config.warmup_ratio * config.epochs * math.ceil(len(examples) / config.batch_size)),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch_size // (micro_batch * processes.size),
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no" if on_epoch_end else "epoch",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
    )
    # One device per process: with more, Trainer would multiply the batch size without a word.
    arguments._n_gpu = min(1, arguments.n_gpu)
    progress = Progress(label, on_epoch_end)
    callbacks = [progress, Receipts(scratch, processes)]
    trainer = WeightedTrainer(
        model=loaded.model,
        args=arguments,
        train_dataset=_Terms(
            examples, loss_terms(examples, weights, reduction), loaded.tokenizer.pad_token_id
        ),
        data_collator=lambda rows: _collate(rows, loaded.tokenizer.pad_token_id),
        callbacks=callbacks,
    )
    trainer.order = Order(len(examples), micro_batch * processes.size if processes.size > 1 else 1, seed)
    trainer.remove_callback(PrinterCallback)
    start = processes.share(_resumable(scratch) if processes.main else None)
    try:
        trainer.train(resume_from_checkpoint=start)
    except BaseException:
        if processes.main:
            _drop_unfinished(scratch)  # on a full disk it takes the room that the run's record needs
        raise
    loaded.model.eval()
    history = [row for row in trainer.state.log_history if "loss" in row]
    if processes.main:
        (directory / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))


def forget_epochs(directory: Path) -> None:
    """Removes what an interrupted fine-tune would go on from: once its result is saved, not before."""
    shutil.rmtree(directory / SCRATCH, ignore_errors=True)


def micro_batch_size(config: TrainConfig, processes: int) -> int:
    """Examples per forward pass of one process: as configured, or fewer that divide its share of a batch."""
    share, rest = divmod(config.batch_size, processes)
    if rest or not share:
        raise UserError(
            f"batch_size={config.batch_size} cannot be divided among launch.num_processes={processes}; "
            f"use {max(1, share) * processes} or another multiple"
        )
    return max(n for n in range(1, min(config.micro_batch_size, share) + 1) if share % n == 0)


def save_tuned(loaded: LoadedModel, directory: Path) -> None:
    """The adapter (or the whole model), in the form `from_pretrained` reads."""
    loaded.model.save_pretrained(directory, safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def loss_terms(
    examples: Sequence[TokenizedExample], weights: torch.Tensor | None, reduction: Reduction
) -> list[tuple[float, float]]:
    """(a_i, n_i) of each example, for the loss  sum_i a_i sum_t nll_it / sum_i n_i  of a batch.

    Without weights it is the mean over the batch's completion tokens, as Trainer's own. With weights it is
    sum_i w_i l_i over the batch, l_i being the mean (reduction mean) or the sum of example i's token losses,
    over the batch's unweighted size: so its gradient is the combination of gradients that a selector's
    weights were fitted for, and a batch of small weights takes a small step.
    """
    lengths = [float(e.n_completion_tokens) for e in examples]
    if weights is None:
        return [(1.0, n) for n in lengths]
    if reduction is Reduction.SUM:
        return list(zip(weights.tolist(), lengths, strict=True))
    return [(w / n, 1.0) for w, n in zip(weights.tolist(), lengths, strict=True)]


NO_ROW = -1


class Order(Sampler):
    """A random order of n rows, anew in every epoch, the same for any number of processes.

    With several it is filled up with NO_ROW to a multiple of what one pass of all of them takes, or they
    would repeat rows to come out even.
    """

    def __init__(self, n: int, multiple: int, seed: int) -> None:
        self.n, self.multiple, self.seed, self.epoch = n, multiple, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        yield from torch.randperm(self.n, generator=generator).tolist()
        yield from [NO_ROW] * (len(self) - self.n)


class _Terms(Dataset):
    def __init__(
        self, examples: Sequence[TokenizedExample], terms: Sequence[tuple[float, float]], pad_id: int
    ) -> None:
        self.rows = list(zip(examples, terms, strict=True))
        self.no_row = TokenizedExample("", (pad_id, pad_id), (IGNORE, IGNORE)), (0.0, 0.0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[TokenizedExample, tuple[float, float]]:
        return self.no_row if i == NO_ROW else self.rows[i]


def _collate(
    rows: Sequence[tuple[TokenizedExample, tuple[float, float]]], pad_id: int
) -> dict[str, torch.Tensor]:
    batch = pad_collate([example for example, _ in rows], pad_id)
    token_weight, size = torch.tensor([terms for _, terms in rows]).unbind(1)
    return {**batch, "token_weight": token_weight, "size": size}


def _drop_unfinished(scratch: Path) -> None:
    for checkpoint in scratch.glob("checkpoint-*"):
        if not (checkpoint / RECEIPT).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def _resumable(scratch: Path) -> str | None:
    """The newest whole checkpoint of an interrupted run."""
    found = sorted(scratch.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for checkpoint in found:
        receipt = checkpoint / RECEIPT
        if not receipt.is_file():
            continue  # the run was stopped while this one was being written
        recorded = read_sealed(receipt)
        damage = f"{RECEIPT} is damaged" if recorded is None else first_damage(checkpoint, recorded)
        if not damage:
            return str(checkpoint)
        log.warning("%s: damaged checkpoint (%s); going on from an earlier one, if any", checkpoint, damage)
    return None
