"""Choose how linear layers are computed, and run frozen ones without keeping their inputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch

Forward = Callable[..., torch.Tensor]


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


class FrozenLinear(torch.autograd.Function):
    """Computes y = W x + bias, keeping nothing: the weight needs no gradient, so x is not needed again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: torch.nn.Linear, kernel: LinearKernel) -> torch.Tensor:
        """Return the layer's output."""
        ctx.layer, ctx.kernel = layer, kernel
        return kernel.apply(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of x."""
        g = gradients[0]
        weight = ctx.layer.weight.t()
        return ctx.kernel.apply(g.reshape(-1, g.shape[-1]), weight).view(*g.shape[:-1], -1), None, None


@contextlib.contextmanager
def frozen_linears(model: torch.nn.Module, kernel: LinearKernel) -> Iterator[None]:
    """Compute every frozen linear layer by this kernel inside."""
    replaced = {} if kernel is LinearKernel.DEFAULT else frozen_forwards(model, kernel)
    with replaced_forwards(replaced):
        yield


def frozen_forwards(model: torch.nn.Module, kernel: LinearKernel) -> dict[torch.nn.Module, Forward]:
    """Return a forward that keeps nothing for every frozen linear layer of a model."""
    return {
        module: lambda x, module=module: FrozenLinear.apply(x, module, kernel)  # pyright: ignore
        for module in model.modules()
        if type(module) is torch.nn.Linear and not module.weight.requires_grad
    }


@contextlib.contextmanager
def replaced_forwards(replaced: Mapping[torch.nn.Module, Forward]) -> Iterator[None]:
    """Give modules other forwards inside; touch no class and no weight."""
    try:
        for module, forward in replaced.items():
            module.forward = forward
        yield
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)  # an instance attribute; the class has the original
