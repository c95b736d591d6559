"""Find a model's trained parameters and their width, and put a model back as it was found."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping

import torch

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
    frozen = {id(weight) for weight in _frozen_linears(model).values()}
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters() if id(p) not in frozen)


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Compute in float32 with the same weights inside; put the half-precision tensors back afterwards.

    Frozen linear layers, most of a model, keep theirs: each is widened, or dequantised, when it is read.
    All others are widened for the time inside.
    """
    narrow = _frozen_linears(model)
    kept = {id(weight) for weight in narrow.values()}
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    originals = {tensor: tensor.data for tensor in tensors if id(tensor) not in kept}
    try:
        for tensor, original in originals.items():
            tensor.data = original.float()
        for layer in narrow:
            layer.__class__ = _Widened
        with dequantized_in_float32(model):
            yield
    finally:
        for layer in narrow:
            layer.__class__ = torch.nn.Linear
        for tensor, original in originals.items():
            tensor.data = original


class _Widened(torch.nn.Linear):
    """Computes in float32 with a frozen weight that is held in less, and shows it so to who reads it."""

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the weight in float32, a copy that nothing keeps."""
        return self.dense_weight(torch.float32)

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] in a precision."""
        held = self._parameters["weight"]
        assert held is not None
        return held.to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the layer's output."""
        return FrozenLinear.apply(input, self)


def _frozen_linears(model: torch.nn.Module) -> dict[torch.nn.Linear, torch.Tensor]:
    """Return the plain linear layers that are not trained, without the head, and what is held of each weight
    that no other layer has."""
    owners = collections.Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    head = base_model(model).get_output_embeddings()
    held = {
        module: module._parameters["weight"]
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and type(module) in (torch.nn.Linear, _Widened)
    }
    return {
        layer: weight
        for layer, weight in held.items()
        if weight is not None and not weight.requires_grad and owners[id(weight)] == 1 and layer is not head
    }
