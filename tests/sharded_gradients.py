"""What each process of a test runs: a model whose layers are shared, against a whole copy of it.

It writes the largest relative error of every engine's gradients, and in half precision that of trained
adapters.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from small_models import base, make_examples, trainable_parameters, with_lora

from gtp_exp.distributed import Processes, connect
from gtp_exp.gradients.engines.base import gradients_of
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.launch.sharding import Sharding
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.sharding import is_sharded, local_part, shard
from gtp_exp.training.batches import TrainingRows
from gtp_exp.training.config import TrainConfig
from gtp_exp.training.finetune import finetune
from gtp_exp.training.hooks import Hooks


def main(family: str, reshard: bool, dtype: torch.dtype, file: Path) -> None:
    """Compare row by row; every process has rows of its own, and as many passes as the others."""
    torch.set_num_threads(1)
    processes = connect(2, torch.device("cpu"))
    whole, shared = (with_lora(base(family, dtype)) for _ in range(2))
    shard(shared, Sharding(reshard), torch.device("cpu"), family)
    assert is_sharded(shared) and not is_sharded(whole)
    kept = sum(local_part(p).numel() for p in shared.parameters())
    assert kept < 0.9 * sum(p.numel() for p in whole.parameters())
    assert {p.dtype for p in shared.parameters() if local_part(p) is not p} == {dtype}
    own = make_examples(12)[processes.rank :: processes.size]
    largest = {}
    for kind in (Engine.AUTOGRAD, Engine.HOOKS, Engine.PACKED):
        errors = [e for batch in (own[:4], own[4:]) for e in errors_of(kind, whole, shared, batch, dtype)]
        largest[kind.value] = max(max(part) for part in processes.all_gather(errors))
    if dtype is not torch.float32:
        parts = (trained(model, dtype, processes) for model in (shared, whole))
        largest["trained"] = relative_error(*parts, order=2)
    if processes.main:
        file.write_text(json.dumps(largest))
    processes.barrier()
    os._exit(0)  # as the worker ends: an interpreter that shuts down may find gloo's threads at work


def errors_of(kind, whole, shared, batch, dtype: torch.dtype) -> list[float]:
    """The relative errors of some rows' gradients: from autograd, one row at a time, in float32, or in half
    precision, where another order of sums tells, from the same engine over whole weights."""

    def engine(model):
        parameters = trainable_parameters(model)
        return make_engine(kind, model, parameters, reduction=Reduction.MEAN, kernel=LinearKernel.DEFAULT)

    if dtype is torch.float32:
        parameters = trainable_parameters(whole)
        expected = {e: reference_gradients(whole, parameters, e, Reduction.MEAN) for e in batch}
    else:
        expected = dict(gradients_of(engine(whole), batch))
    found = gradients_of(engine(shared), batch)
    return [relative_error(gradient, expected[row], order=float("inf")) for row, gradient in found]


def trained(model, dtype: torch.dtype, processes: Processes) -> dict[str, torch.Tensor]:
    """Train the model's adapters for four steps, and return them."""
    loaded = LoadedModel(model, SimpleNamespace(pad_token_id=0), 64, dtype)
    config = TrainConfig(epochs=2, batch_size=4, micro_batch_size=4, learning_rate=1e-2)
    hooks = Hooks(on_epoch_end=lambda *told: None)  # with which no checkpoint is written
    with tempfile.TemporaryDirectory() as folder:
        finetune(
            loaded,
            TrainingRows(make_examples(8)),
            config,
            Path(folder),
            seed=0,
            label="training",
            hooks=hooks,
            processes=processes,
        )
    return {name: p.detach() for name, p in trainable_parameters(model).items()}
