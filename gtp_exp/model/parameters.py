"""Find a model's trained parameters and their width, and put a model back as it was found."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gtp_exp.model.forwards import forwards_replaced
from gtp_exp.model.lora import base_model
from gtp_exp.model.quantized import FrozenLinear, dequantized_in_float32


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters with requires_grad, in the order of named_parameters; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextlib.contextmanager
def left_as_found(model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Set evaluation mode and enable gradients inside; restore mode and trained parameters afterwards."""
    modes = {module: module.training for module in model.modules()}
    values = {name: p.detach().clone() for name, p in parameters.items()}
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])


def half_precision(model: torch.nn.Module) -> bool:
    """Say whether the model computes in float16 or bfloat16: what it has beside frozen linear layers, which
    may be held in less than they compute in, says so."""
    narrow = {id(layer.weight) for layer in _frozen_linears(model)}
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters() if id(p) not in narrow)


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Compute in float32 with the same weights inside; put the half-precision tensors back afterwards.

    Frozen linear layers, most of a model, keep theirs: each is widened, or dequantised, while it computes.
    All others are widened for the time inside.
    """
    narrow = _frozen_linears(model)
    kept = {id(layer.weight) for layer in narrow}
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    originals = {tensor: tensor.data for tensor in tensors if id(tensor) not in kept}
    forwards: dict[torch.nn.Module, Any] = {
        layer: functools.partial(_frozen_linear, layer=layer) for layer in narrow
    }
    try:
        for tensor, original in originals.items():
            tensor.data = original.float()
        with dequantized_in_float32(model), forwards_replaced(forwards):
            yield
    finally:
        for tensor, original in originals.items():
            tensor.data = original


def _frozen_linears(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """Return the plain linear layers whose weight is not trained and of no other layer, but for the head."""
    owners = collections.Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    head = base_model(model).get_output_embeddings()
    return [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear
        and module is not head
        and not module.weight.requires_grad
        and owners[id(module.weight)] == 1
    ]


def _frozen_linear(x: torch.Tensor, *, layer: torch.nn.Linear) -> torch.Tensor:
    return FrozenLinear.apply(x, layer)  # pyright: ignore[reportReturnType]
