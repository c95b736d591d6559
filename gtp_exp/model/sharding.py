"""Share a model's frozen weights among the processes of a job, layer by layer, by PyTorch's FSDP2.

Each process keeps a part of every weight of the decoder layers. The parts of a layer are gathered when it
runs, forward or backward, so that all processes must run the same number of passes. Embeddings, the last norm
and the output head stay whole, and so do adapters: they are trained as in data-parallel training.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.launch.sharding import Sharding
from gtp_exp.model.lora import base_model

log = logging.getLogger(__name__)


def shard(model: torch.nn.Module, sharding: Sharding, device: torch.device, name: str) -> None:
    """Freeze all but the adapters, and keep a part of each layer's weights in this process, on the device.

    model: a causal LM of transformers, with or without adapters, the same in every process; name: for
    messages. Raises UserError for a model that does not say which of its modules are layers.
    """
    from torch.distributed.fsdp import fully_shard

    base = base_model(model)
    backbone = getattr(base, base.base_model_prefix, None)
    kinds = set(getattr(base, "_no_split_modules", None) or ())
    layers = [] if backbone is None else [m for m in backbone.modules() if type(m).__name__ in kinds]
    if backbone is None or not layers:
        raise UserError(
            f"the weights of {name} cannot be shared (FSDP), for {type(base).__name__} names no layers in "
            "_no_split_modules; set launch.config_file to one with distributed_type: MULTI_GPU"
        )
    options: dict[str, Any] = {
        "mesh": _all_processes(device.type),
        "reshard_after_forward": sharding.reshard_after_forward,
    }
    adapters = set(_adapters(model))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in adapters)
    inside = {p for layer in layers for p in layer.parameters()}
    for layer in layers:
        fully_shard(layer, ignored_params=adapters, **options)
    # Owns no weight: it lets the layers begin and end a pass together.
    fully_shard(backbone, ignored_params=adapters | ({*backbone.parameters()} - inside), **options)
    log.info("of each layer's weights, this process keeps 1 part in %d", distributed.get_world_size())
    shared = [key for key, p in model.named_parameters() if _is_part(p)]
    # Data-parallel training of the adapters would send these from the main process to the others.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, shared)


def _adapters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of the model's adapters, trained or not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = []
    for layer in (m for m in model.modules() if isinstance(m, BaseTunerLayer)):
        parts = (getattr(layer, name, None) for name in layer.adapter_layer_names)
        found += [p for part in parts if isinstance(part, torch.nn.Module) for p in part.parameters()]
    return found


def is_sharded(model: torch.nn.Module) -> bool:
    """Say whether other processes hold parts of the model's weights."""
    return any(_is_part(p) for p in model.parameters())


def dividing(processes: Processes, model: torch.nn.Module) -> Processes:
    """Return the processes that divide rows to be answered among themselves: all, or just this one.

    Those that share its weights cannot, for answers end at other places: they all run the same passes.
    """
    return ALONE if is_sharded(model) else processes


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: all of it, unless the weights are shared."""
    return tensor.to_local() if _is_part(tensor) else tensor  # type: ignore[attr-defined]


def _is_part(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is shared among processes."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@functools.cache
def _all_processes(kind: str) -> Any:
    """Return the mesh of all the job's processes on devices of this kind."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(kind, (distributed.get_world_size(),))
