"""Run each norm layer as one kernel, by torch.compile: step by step they read the activations six times."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator

import torch

from gtp_exp.model.forwards import forwards_replaced


@contextlib.contextmanager
def compiled_norms(model: torch.nn.Module) -> Iterator[None]:
    """Run every norm layer of the model compiled inside. The kernels stay for the next time."""
    norms = [m for m in model.modules() if type(m).__name__.endswith("Norm") and "forward" not in vars(m)]
    with forwards_replaced({norm: types.MethodType(_compiled_forward(type(norm)), norm) for norm in norms}):
        yield


_KERNELS: dict[type, types.FunctionType] = {}


def _compiled_forward(kind: type[torch.nn.Module]) -> types.FunctionType:
    if kind not in _KERNELS:
        _KERNELS[kind] = torch.compile(kind.forward, dynamic=True)
    return _KERNELS[kind]
