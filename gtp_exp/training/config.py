"""Check the settings of a fine-tune: epochs, learning rate, schedule, batch sizes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gtp_exp.config import describe
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError


class Schedule(Enum):
    """Says how the learning rate moves after the warm-up steps, by transformers' names."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant_with_warmup"


class BatchLoss(Enum):
    """Says how the loss of a training batch is made of its tokens' losses."""

    EXAMPLE_MEAN = "example_mean"  # the mean over rows of each row's mean: every row counts the same
    TOKEN_MEAN = "token_mean"  # the mean over all completion tokens: a row counts by its length


class Optimizer(Enum):
    """Names the optimizer, by transformers' names."""

    ADAMW_TORCH = "adamw_torch"  # torch's AdamW, in the form that transformers takes by default
    ADAMW_8BIT = "adamw_8bit"  # bitsandbytes's AdamW, whose moments are kept in eight bits
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"  # the same, with moments that leave a full GPU for a while
    ADAFACTOR = "adafactor"

    @property
    def has_moments(self) -> bool:
        """Whether it keeps Adam's two moments of every value."""
        return self is not Optimizer.ADAFACTOR


@dataclass(frozen=True)
class TrainConfig:
    """Holds the train group of the config: what a fine-tune does with its rows."""

    epochs: int = 4
    learning_rate: float = 0.001
    schedule: Schedule = Schedule.LINEAR
    warmup_ratio: float = 0.03  # share of all steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 8  # examples per optimizer step, over all processes
    micro_batch_size: int = 8  # examples per forward pass of one process, at most; end to end
    loss: BatchLoss = BatchLoss.EXAMPLE_MEAN
    use_weights: bool = False  # whether each row's part of the loss is multiplied by the selection's weight
    min_steps: int = 0  # more epochs are trained where `epochs` of them take fewer optimizer steps
    optimizer: Optimizer = Optimizer.ADAMW_TORCH
    gradient_checkpointing: bool = False  # computes activations again in the backward pass: less memory

    def __post_init__(self) -> None:
        check_fields(self, "train")
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
        if self.min_steps < 0:
            raise UserError(f"train.min_steps={self.min_steps} must be 0 (`epochs` alone decide) or more")
        if self.batch_size < 1 or self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise UserError(
                f"batch_size={self.batch_size} must be a multiple of micro_batch_size={self.micro_batch_size}"
            )

    def steps_per_epoch(self, n_rows: int) -> int:
        """Return the optimizer steps of one epoch over this many rows; the last may take fewer rows."""
        return math.ceil(n_rows / self.batch_size)

    def epochs_of(self, n_rows: int) -> int:
        """Return the epochs that are trained on this many rows: `epochs`, or as many whole ones as take
        `min_steps`."""
        return max(self.epochs, math.ceil(self.min_steps / self.steps_per_epoch(n_rows)))

    def reads(self) -> dict[str, Any]:
        """Return what changes the trained model, for the cache key."""
        settings = describe(self)
        if not self.min_steps:
            del settings["min_steps"]
        if self.optimizer is Optimizer.ADAMW_TORCH:
            del settings["optimizer"]
        elif "8bit" in self.optimizer.value:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                settings["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
        if not self.gradient_checkpointing:
            del settings["gradient_checkpointing"]
        return settings


def check_divisible(config: TrainConfig, processes: int, group: str) -> None:
    """Raise UserError for batches that cannot be divided among a job's processes. group: for messages."""
    share, rest = divmod(config.batch_size, processes)
    if rest or not share:
        raise UserError(
            f"{group}.batch_size={config.batch_size} cannot be divided among "
            f"launch.num_processes={processes}; use {max(1, share) * processes} or another multiple"
        )


def micro_batch_size(config: TrainConfig, processes: int) -> int:
    """Return the examples per forward pass of one process: as configured, or fewer that divide its share of a
    batch."""
    check_divisible(config, processes, "train")
    share = config.batch_size // processes
    return max(n for n in range(1, min(config.micro_batch_size, share) + 1) if share % n == 0)
