"""Pad sequences that are laid end to end into one rectangle, and back: a GPU does them all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_Move = Callable[[torch.Tensor], torch.Tensor]


class Rectangle:
    """Maps b sequences of T tokens in all between [T, ...] and the padded [b, longest, ...].

    Padding is zero when it is made here, and ignored when a rectangle is mapped back.
    """

    def __init__(self, bounds: Sequence[tuple[int, int]], device: torch.device) -> None:
        lengths = torch.tensor([end - start for start, end in bounds])
        self.rows, self.longest = len(bounds), int(lengths.max())
        row = torch.repeat_interleave(torch.arange(self.rows), lengths)
        first = torch.tensor([start for start, _ in bounds])
        self._slots = (row * self.longest + torch.arange(len(row)) - first[row]).to(device)

    def spread(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens [T, ...] as [b, longest, ...]. Differentiable."""
        if tokens.requires_grad:
            return _Moved.apply(tokens, self._spread, self._gather)
        return self._spread(tokens)

    def gather(self, full: torch.Tensor) -> torch.Tensor:
        """Return the tokens [T, ...] of a rectangle [b, longest, ...]. Differentiable."""
        if full.requires_grad:
            return _Moved.apply(full, self._gather, self._spread)
        return self._gather(full)

    def _spread(self, tokens: torch.Tensor) -> torch.Tensor:
        full = tokens.new_zeros(self.rows * self.longest, *tokens.shape[1:])
        return full.index_copy_(0, self._slots, tokens).view(self.rows, self.longest, *tokens.shape[1:])

    def _gather(self, full: torch.Tensor) -> torch.Tensor:
        return full.flatten(0, 1).index_select(0, self._slots)


class _Moved(torch.autograd.Function):
    """Computes there(values), whose gradient is back(gradient): each is the other's adjoint."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, there: _Move, back: _Move) -> torch.Tensor:
        """Return there(values)."""
        ctx.back = back
        return there(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return back(gradient)."""
        return ctx.back(gradients[0]), None, None
