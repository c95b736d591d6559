"""Extend transformers.Trainer by our loss of a batch, a progress bar, and checked checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from gtp_exp.distributed import Processes
from gtp_exp.errors import UserError
from gtp_exp.model.loss import labelled_nll
from gtp_exp.model.packing import rows_apart
from gtp_exp.training.batches import RowOrder
from gtp_exp.training.hooks import Hooks
from gtp_exp.training.resume import seal_newest


class WeightedTrainer(Trainer):
    """Trains on the loss of `TrainingRows.loss_terms`, in the order of `order`."""

    order: RowOrder
    loss_is_scaled_for_ga = True  # by num_items_in_batch, whatever the model would do with its own loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return self.order

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        # sum_i n_i over accumulation and processes
        total = torch.stack([batch["size"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.reduce(total, "sum") if self.args.world_size > 1 else total

    def training_step(self, model: Any, inputs: dict, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of one pass, forward and backward, and keep rows apart that lie end to end."""
        bounds = inputs.pop("bounds", None)
        if bounds is None:
            return super().training_step(model, inputs, num_items_in_batch)
        without_wrapper: Any = self.model
        with rows_apart(without_wrapper, bounds) as extra:
            return super().training_step(model, {**inputs, **extra}, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ):
        """Return this process's share of a step's loss. Raise UserError where it is not finite."""
        if return_outputs:  # it would have to be those of all positions
            raise NotImplementedError("this Trainer trains, and evaluates nothing")
        weight, labels = inputs.pop("token_weight"), inputs.pop("labels")
        inputs.pop("size")
        nll, row, column = labelled_nll(model, inputs, labels)
        loss = (nll * weight[row, column]).sum() / num_items_in_batch * self.accelerator.num_processes
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss became {loss.item()} at step {self.state.global_step}; "
                "lower train.learning_rate, or set model.precision=fp32"
            )
        return loss


class Progress(TrainerCallback):
    """Shows a progress bar, tells every step, and at the end of an epoch the mean learning rate of its
    segment."""

    def __init__(self, label: str, hooks: Hooks) -> None:
        self.label, self.hooks = label, hooks
        self.bar: tqdm | None = None
        self.rates: list[float] = []

    def on_train_begin(self, args, state, control, **_):
        """Open the bar, at the step from which an interrupted run goes on, and tell the steps before it."""
        for row in state.log_history:
            self._tell(row)
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step")

    def on_pre_optimizer_step(self, args, state, control, **given):
        """Note the learning rate of the step."""
        self.rates.append(given["optimizer"].param_groups[0]["lr"])

    def on_log(self, args, state, control, logs=None, **_):
        """Show the loss beside the bar, and tell the step."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")
        self._tell(state.log_history[-1])

    def _tell(self, row: Mapping[str, Any]) -> None:
        if self.hooks.on_step is not None and "loss" in row:
            self.hooks.on_step(row)

    def on_step_end(self, args, state, control, **_):
        """Move the bar by one step."""
        if self.bar is not None:
            self.bar.update()

    def on_epoch_end(self, args, state, control, **given):
        """Call the hook, and begin the next segment."""
        if self.hooks.on_epoch_end is not None:
            model, optimizer = given["model"], given["optimizer"]
            plain = getattr(optimizer, "optimizer", optimizer)  # under Accelerate's wrapper
            self.hooks.on_epoch_end(model, plain, state.global_step, sum(self.rates) / len(self.rates))
            self.rates = []

    def on_train_end(self, args, state, control, **_):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class SealCheckpoints(TrainerCallback):
    """Seals every checkpoint that is saved; only then are earlier ones removed.

    Trainer's own limit removes the oldest by the clock, which may have been set back since.
    """

    def __init__(self, scratch: Path, processes: Processes) -> None:
        self.scratch, self.processes = scratch, processes

    def on_save(self, args, state, control, **_):
        """Wait for every process, then seal the checkpoint in the main one."""
        self.processes.barrier()  # each writes the state of its own random numbers
        if self.processes.main:
            seal_newest(self.scratch, state.global_step)
