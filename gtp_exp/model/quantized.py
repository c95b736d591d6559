"""Store frozen linear layers in four or eight bits, and compute with the weights that these bits stand for.

The bits, their layout and their kernels are bitsandbytes's (Dettmers et al.: QLoRA, arXiv 2305.14314, nf4
with double quantisation; LLM.int8(), arXiv 2208.07339, the row-wise int8 of the weights). One function is
computed in every stage, y = W x with W dequantised. LLM.int8()'s own pass also rounds the activations, and
its backward pass is not the gradient of that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch

from gtp_exp.errors import UserError

PACKAGE = "bitsandbytes"  # of the extra `quantization`


class Quantization(Enum):
    """Says how the frozen linear layers of the base model are stored."""

    NONE = "none"  # in the precision of the computation
    NF4 = "nf4"  # four bits on the quantiles of a normal distribution, their scales in eight bits
    INT8 = "int8"  # eight bits and a scale for each output


def package_version() -> str:
    """Return the installed version of bitsandbytes; another one may round in another way."""
    return importlib.metadata.version(PACKAGE)


def loading_options(quantization: Quantization, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what from_pretrained takes to quantise a model onto a device. dtype: of the computation."""
    from transformers import BitsAndBytesConfig

    where = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device
    if quantization is Quantization.INT8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": where}}


def compute_dense(model: torch.nn.Module) -> None:
    """Make a model's quantised layers compute with their dequantised weights, whatever bitsandbytes would do.

    Its pass in eight bits rounds activations; its pass in four bits, on a CPU, repacks the weights for
    bfloat16 the first time that no gradient is asked for, and differentiates no more.
    """
    for module in model.modules():
        layer: Any = module
        kind = _stored_as(layer)
        if kind == "Int8Params":
            layer.__class__ = _dense_int8()
        elif kind == "Params4bit":
            layer.support_avx512bf16_for_cpu = False


@functools.cache
def _dense_int8() -> type[torch.nn.Module]:
    from bitsandbytes.nn import Linear8bitLt

    class DenseInt8(Linear8bitLt):
        """Computes y = W x with the weight that eight bits stand for; activations are not rounded."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return the layer's output."""
            return FrozenLinear.apply(x, self)

    return DenseInt8


class FrozenLinear(torch.autograd.Function):
    """Computes y = W x + bias, keeping nothing: W needs no gradient, so x is not needed again, and
    dL/dx = W^T g dequantises or widens W anew."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layer: Any,
        product: Callable[..., torch.Tensor] = torch.nn.functional.linear,
    ) -> torch.Tensor:
        """Return the layer's output. product: of x [n, in], W [out, in] and optionally the bias, [n, out]."""
        ctx.layer, ctx.product, ctx.dtype = layer, product, x.dtype
        weight = dense_weight(layer, x.dtype)
        y = product(x.reshape(-1, x.shape[-1]), weight, layer.bias)
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of x."""
        g = gradients[0]
        weight = dense_weight(ctx.layer, g.dtype).t()
        dx = ctx.product(g.reshape(-1, g.shape[-1]), weight)
        return dx.view(*g.shape[:-1], weight.shape[0]).to(ctx.dtype), None, None


def has_dense_weight(layer: Any) -> bool:
    """Say whether `dense_weight` knows the weight that a linear layer computes with.

    It does for plain ones, for those of bitsandbytes, and for any that tells it by a method
    `dense_weight(dtype)`.
    """
    return type(layer) is torch.nn.Linear or is_quantized(layer)


def is_quantized(layer: Any) -> bool:
    """Say whether a layer stores its weight in a form that has to be dequantised, which is known here."""
    return _stored_as(layer) is not None or hasattr(layer, "dense_weight")


def dense_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [out, in] that a linear layer computes with, in `dtype`: dequantised where it is
    stored in fewer bits, else the stored one itself if it is of that width."""
    if hasattr(layer, "dense_weight"):
        return layer.dense_weight(dtype)
    kind = _stored_as(layer)
    if kind == "Int8Params":
        scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return layer.weight.data.to(dtype) * (scale / 127).to(dtype).unsqueeze(1)
    if kind == "Params4bit":
        return _dequantize_4bit(layer.weight, dtype)
    return layer.weight.to(dtype)


def _stored_as(layer: Any) -> str | None:
    """Return the class of the weight of a bitsandbytes linear layer, or None for any other layer."""
    name = type(layer.weight).__name__ if isinstance(layer, torch.nn.Linear) else ""
    return name if name in ("Params4bit", "Int8Params") else None


def _dequantize_4bit(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    state = weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise UserError(
            "bitsandbytes has repacked a 4-bit weight for inference on a CPU, and cannot be differentiated "
            "there; load the model anew, and collect its gradients before it is run without them"
        )
    with _dequantized_to(state, dtype if dtype in _KERNEL_DTYPES else torch.float32):
        return dequantize_4bit(weight.data, state).to(dtype)


_KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@contextlib.contextmanager
def _dequantized_to(state: Any, dtype: torch.dtype) -> Iterator[None]:
    before, state.dtype = state.dtype, dtype
    try:
        yield
    finally:
        state.dtype = before


@contextlib.contextmanager
def dequantized_in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Make bitsandbytes's 4-bit layers dequantise and compute in float32 inside."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if _stored_as(module) == "Params4bit":
                layer: Any = module
                stack.enter_context(_dequantized_to(layer.weight.quant_state, torch.float32))
                stack.callback(setattr, layer, "compute_dtype", layer.compute_dtype)
                layer.compute_dtype = torch.float32
        yield


def with_dense_weights(model: Any, dtype: torch.dtype) -> Any:
    """Return a quantised model with plain linear layers of the weights that its bits stand for.

    It computes the same, and can be saved as any other. The model that is given is used up.
    """
    for name, module in list(model.named_modules()):
        if not is_quantized(module):
            continue
        weight = dense_weight(module, dtype)
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        setattr(model, name, False)
    model.hf_quantizer = None
    del model.config.quantization_config
    return model
