"""transformers.Trainer with a completion-only, weighted loss, a progress bar, and whole checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from gtp_exp.distributed import Processes
from gtp_exp.errors import UserError
from gtp_exp.files import checksums, write_sealed
from gtp_exp.model.loss import labelled_logits
from gtp_exp.training.batches import Order
from gtp_exp.training.resume import RECEIPT

# (model, optimizer, global step, mean learning rate since the last call), at the end of every epoch
EpochHook = Callable[[Any, torch.optim.Optimizer, int, float], None]


class WeightedTrainer(Trainer):
    order: Order
    loss_is_scaled_for_ga = True  # by num_items_in_batch, whatever the model would do with its own loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return self.order

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        # sum_i n_i over accumulation and processes
        total = torch.stack([batch["size"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.reduce(total, "sum") if self.args.world_size > 1 else total

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ):
        if return_outputs:  # it would have to be those of all positions
            raise NotImplementedError("this Trainer trains, and evaluates nothing")
        weight, labels = inputs.pop("token_weight"), inputs.pop("labels")
        inputs.pop("size")
        logits, tokens, row = labelled_logits(model, inputs, labels)
        nll = F.cross_entropy(logits.float(), tokens, reduction="none")
        loss = (nll * weight[row]).sum() / num_items_in_batch * self.accelerator.num_processes
        if not torch.isfinite(loss):
            raise UserError(
                f"the training loss became {loss.item()} at step {self.state.global_step}; "
                "lower train.learning_rate, or set model.precision=fp32"
            )
        return loss


class Progress(TrainerCallback):
    """A progress bar, and the end-of-epoch hook with the mean learning rate of its segment."""

    def __init__(self, label: str, on_epoch_end: EpochHook | None) -> None:
        self.label, self.hook, self.bar = label, on_epoch_end, None
        self.rates: list[float] = []

    def on_train_begin(self, args, state, control, **_):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label, unit="step")

    def on_pre_optimizer_step(self, args, state, control, *, optimizer, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_log(self, args, state, control, logs=None, **_):
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_step_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.update()

    def on_epoch_end(self, args, state, control, *, model, optimizer, **_):
        if self.hook is not None:
            plain = getattr(optimizer, "optimizer", optimizer)  # under Accelerate's wrapper
            self.hook(model, plain, state.global_step, sum(self.rates) / len(self.rates))
            self.rates = []

    def on_train_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.close()


class Receipts(TrainerCallback):
    """Marks a checkpoint as whole, by its checksums; only then are earlier ones removed.

    Trainer's own limit removes the oldest by the clock, which may have been set back since.
    """

    def __init__(self, scratch: Path, processes: Processes) -> None:
        self.scratch, self.processes = scratch, processes

    def on_save(self, args, state, control, **_):
        self.processes.barrier()  # each writes the state of its own random numbers
        if self.processes.main:
            whole = self.scratch / f"checkpoint-{state.global_step}"
            write_sealed(whole / RECEIPT, checksums(whole))
            for other in self.scratch.glob("checkpoint-*"):
                if other != whole:
                    shutil.rmtree(other)
