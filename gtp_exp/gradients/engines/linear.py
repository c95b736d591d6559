"""Run linear layers in a packed pass: frozen ones, and LoRA ones that hand over per-example gradients.

For a LoRA layer

    y = W x + s B A x,     g = dL/dy,     u = A x,     v = s B^T g

the gradients of example i are contractions over its own tokens t:

    dL_i/dB = s sum_t g_t u_t^T            dL_i/dA = sum_t v_t x_t^T            dL/dx = W^T g + A^T v

so the only additions to the plain backward pass are two thin products per layer and example.

With DoRA, y = c z, where z = W x + s B A x and c = m / n, n being the row norms of W + s B A, constant to the
gradient: c g takes the place of g in the lines above, and  dL_i/dm = sum_t g_t z_t / n.

W is needed for its products alone, so that a layer may store it in four or eight bits: it is dequantised for
the forward pass and again for the backward pass, and the gradients are exact for the dequantised weight.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from gtp_exp.gradients.engines.adapters import LoraLinear
from gtp_exp.gradients.engines.base import Consume, NotPerExample
from gtp_exp.model.forwards import forwards_replaced
from gtp_exp.model.quantized import FrozenLinear, dense_weight, has_dense_weight
from gtp_exp.model.rectangle import Rectangle


class LinearKernel(Enum):
    """Says how x W^T is computed. On AMD, torch's own choice for float32 (MKL) has half oneDNN's speed."""

    DEFAULT = "default"
    ONEDNN = "onednn"

    def apply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x W^T + bias, [n, out]. x: [n, in], weight: [out, in] in any strides."""
        if self is LinearKernel.ONEDNN:
            # The operation that torch.compile puts in the place of linear layers on a CPU.
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return torch.nn.functional.linear(x, weight, bias)


def fastest_kernel(model: torch.nn.Module) -> LinearKernel:
    """Time both on this machine, in a few milliseconds; return oneDNN only where it is clearly ahead."""
    kinds = {(p.dtype, p.device.type) for p in model.parameters() if not p.requires_grad}
    if kinds != {(torch.float32, "cpu")} or not torch.backends.mkldnn.is_available():
        return LinearKernel.DEFAULT
    x, weight = torch.ones(512, 512), torch.ones(512, 512)
    seconds = dict.fromkeys(LinearKernel, float("inf"))
    for _ in range(16):  # in turn, so that what else the machine does slows neither alone
        for kernel in LinearKernel:
            try:
                taken = _seconds(lambda kernel=kernel: kernel.apply(x, weight))
            except (AttributeError, RuntimeError):
                return LinearKernel.DEFAULT
            seconds[kernel] = min(seconds[kernel], taken)
    return min(seconds, key=lambda kernel: seconds[kernel] * (1 if kernel is LinearKernel.DEFAULT else 1.3))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class _PackedPass:
    """Holds what the layers need to know in one forward and backward pass over packed sequences."""

    bounds: Sequence[tuple[int, int]]
    rectangle: Rectangle | None
    consume: Consume
    kernel: LinearKernel


class _LoraFunction(torch.autograd.Function):
    """Computes y = W x + bias + s B A x, or c (W x + s B A x) + bias; its backward hands per-example
    gradients of A, B and DoRA's m to the consumer and returns none for them: their .grad stays untouched.
    They are inputs only so that autograd comes here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        m: torch.Tensor | None,
        layer: LoraLinear,
        run: _PackedPass,
    ) -> torch.Tensor:
        """Return the layer's output."""
        flat = x.reshape(-1, x.shape[-1])
        a, b = a.to(x.dtype), b.to(x.dtype)
        u = (flat @ a.t()).mul_(layer.scaling)
        weight, bias = dense_weight(layer.base, x.dtype), layer.base.bias
        ctx.layer, ctx.run, ctx.shape = layer, run, x.shape
        if m is None:
            ctx.save_for_backward(flat, u, a, b)
            y = run.kernel.apply(flat, weight, bias).addmm_(u, b.t())
        else:
            z = run.kernel.apply(flat, weight).addmm_(u, b.t())
            norm = torch.linalg.vector_norm(torch.addmm(weight, b, a, alpha=layer.scaling), dim=1)
            c = (m / norm).to(z.dtype)
            ctx.save_for_backward(flat, u, a, b, z, norm, c)
            y = z * c if bias is None else torch.addcmul(bias, z, c)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Hand over the gradients of A, B and m; return the gradient of x."""
        x, u, a, b, *dora = ctx.saved_tensors
        layer: LoraLinear = ctx.layer
        run: _PackedPass = ctx.run
        g = gradients[0].reshape(len(x), -1)
        if dora:
            z, norm, c = dora
            if layer.magnitude_name is not None:
                run.consume(layer.magnitude_name, add_up(g * z, run.bounds, run.rectangle).div_(norm))
            g = g * c
        v = (g @ b).mul_(layer.scaling)
        if layer.b_name is not None:
            run.consume(layer.b_name, contract(g, u, run.bounds, run.rectangle))
        if layer.a_name is not None:
            run.consume(layer.a_name, contract(v, x, run.bounds, run.rectangle))
        if not ctx.needs_input_grad[0]:
            return (None,) * 6
        dx = run.kernel.apply(g, dense_weight(layer.base, g.dtype).t()).addmm_(v, a)
        return dx.view(ctx.shape), None, None, None, None, None


def contract(
    left: torch.Tensor,
    right: torch.Tensor,
    bounds: Sequence[tuple[int, int]],
    rectangle: Rectangle | None,
) -> torch.Tensor:
    """Return sum_t left[t] right[t]^T over each example's tokens, [b, p, q]. left: [T, p], right: [T, q]."""
    if rectangle is not None:
        return torch.bmm(rectangle.spread(left).transpose(1, 2), rectangle.spread(right))
    out = left.new_empty(len(bounds), left.shape[1], right.shape[1])
    for i, (start, end) in enumerate(bounds):
        torch.mm(left[start:end].t(), right[start:end], out=out[i])
    return out


def add_up(
    values: torch.Tensor, bounds: Sequence[tuple[int, int]], rectangle: Rectangle | None
) -> torch.Tensor:
    """Return the sum of values [T, p] over each example's tokens, [b, p]."""
    if rectangle is not None:
        return rectangle.spread(values).sum(dim=1)
    return torch.stack([values[start:end].sum(dim=0) for start, end in bounds])


@contextlib.contextmanager
def packed_linears(
    model: torch.nn.Module,
    layers: Sequence[LoraLinear],
    bounds: Sequence[tuple[int, int]],
    rectangle: Rectangle | None,
    consume: Consume,
    kernel: LinearKernel,
) -> Iterator[None]:
    """Replace the forward of every LoRA and frozen linear layer inside; touch no module and no weight."""
    run = _PackedPass(bounds, rectangle, consume, kernel)
    n_tokens = bounds[-1][1]
    seen: set[str] = set()

    def lora(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        if x.shape[:-1] != (1, n_tokens):
            raise NotPerExample(f"{layer.name} was called with {tuple(x.shape)}, not [1, {n_tokens}, values]")
        if layer.name in seen:
            raise NotPerExample(f"{layer.name} was called twice in one pass")
        seen.add(layer.name)
        trained = (layer.a.weight, layer.b.weight, layer.magnitude)
        return _LoraFunction.apply(x, *trained, layer, run)

    forwards: dict[torch.nn.Module, Callable[..., torch.Tensor]] = {}
    for module in model.modules():
        if has_dense_weight(module) and not module.weight.requires_grad:
            forwards[module] = lambda x, module=module: FrozenLinear.apply(x, module, kernel.apply)
    for layer in layers:
        forwards[layer.module] = lambda x, *args, layer=layer, **kwargs: lora(layer, x)
    with forwards_replaced(forwards):
        yield
