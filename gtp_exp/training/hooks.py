"""What a caller of the training wants to be told while it runs; imports no transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# (model, optimizer, global step, mean learning rate since the last call), at the end of every epoch
EpochHook = Callable[[Any, torch.optim.Optimizer, int, float], None]
# An optimizer step's row of the training curve: step, epoch, loss, learning_rate, grad_norm.
StepHook = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Hooks:
    """Holds functions that the training calls in every process; None for what nobody wants to know."""

    on_epoch_end: EpochHook | None = None
    on_step: StepHook | None = None  # after every step; a run that goes on first tells the earlier ones


NO_HOOKS = Hooks()
