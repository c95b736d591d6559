"""The gradient of every step that a fine-tune takes, from the optimizer's side; it moves no weight."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.distributed import ALONE, Processes, connect
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import BatchLoss, TrainConfig
from gtp_exp.training.finetune import finetune

# Seven rows in batches of four: the last step is not full, and with two processes no share of it is.
LENGTHS = [(3, 1), (5, 20), (4, 2), (9, 7), (2, 40), (6, 1), (3, 12)]  # of prompt and completion
WEIGHTS = torch.tensor([3.0, 0.2, 0.0, 1.5, 0.3, 1.0, 1.0])
CONFIG = TrainConfig(
    epochs=1, learning_rate=1e-2, warmup_ratio=0.0, max_grad_norm=1e9, batch_size=4, micro_batch_size=1
)
CASES = {
    f"{loss.value}, {name}": (loss, weights)
    for loss in BatchLoss
    for name, weights in (("no weights", None), ("weights", WEIGHTS))
}


def unequal_rows() -> list[TokenizedExample]:
    """Rows of LENGTHS, of random bytes."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i, (prompt, completion) in enumerate(LENGTHS):
        ids = torch.randint(97, 123, (prompt + completion,), generator=generator).tolist()
        rows.append(TokenizedExample(f"row-{i}", tuple(ids), (-100,) * prompt + tuple(ids[prompt:])))
    return rows


def step_gradients(
    prepared, rows: TrainingRows, config: TrainConfig, directory: Path, processes: Processes = ALONE
) -> list[torch.Tensor]:
    """Return the gradient that each step of a fine-tune hands to the optimizer, as one vector."""
    from gtp_exp.training import trainer

    steps = []

    class Recording(trainer.WeightedTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.0)
            self.optimizer.register_step_pre_hook(self._record)
            return self.optimizer

        def _record(self, optimizer, args, kwargs):
            gradients = [p.grad for p in self.model.parameters() if p.requires_grad]
            steps.append(torch.cat([g.flatten() for g in gradients]).clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "WeightedTrainer", Recording)
        directory.mkdir(parents=True, exist_ok=True)
        loaded = prepared.load_trainable(0)
        finetune(loaded, rows, config, directory, seed=0, label="test", processes=processes)
    return steps


def main(folder: Path) -> None:
    """Record every case, as one process with RANK and the like set, in <folder>/<processes>-<rank>.pt."""
    from gtp_exp.model.device import Precision
    from gtp_exp.model.loading import ModelConfig, ModelSource, prepare
    from gtp_exp.model.lora import LoRA

    torch.set_num_threads(1)
    device = torch.device("cpu")
    processes = connect(int(os.environ["WORLD_SIZE"]), device)
    lora = LoRA(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"], last_layers=None)
    config = ModelConfig(ModelSource.TINY, "tiny", None, Precision.FP32, 256, False, None, lora)
    prepared = processes.main_first(lambda: prepare(config, folder / "cache", device))
    found = {
        name: step_gradients(
            prepared,
            TrainingRows(unequal_rows(), weights),
            replace(CONFIG, loss=loss, micro_batch_size=2),
            folder / f"{processes.rank}" / name,
            processes,
        )
        for name, (loss, weights) in CASES.items()
    }
    torch.save(found, folder / f"{processes.size}-{processes.rank}.pt")
    processes.barrier()
    os._exit(0)  # as the worker ends: an interpreter that shuts down may find gloo's threads at work
