"""Find a model's trained parameters and their width, and put a model back as it was found."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping

import torch

from gtp_exp.model.quantized import dequantized_in_float32


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
    """Say whether any parameter is in float16 or bfloat16."""
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Widen the weights to float32 inside; put the half-precision tensors themselves back afterwards.

    What is stored in fewer bits stays so, and is dequantised to float32.
    """
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    originals = [t.data for t in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        with dequantized_in_float32(model):
            yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original
