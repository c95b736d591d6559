"""Some rows of gradient features, in an order of the caller's, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from gtp_exp.gradients.features import GradientFeatures, Rows


@dataclass(frozen=True)
class PickedRows:
    """Some rows of a larger matrix, counted from 0."""

    of: Rows
    index: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.of.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.of.dtype

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        span = range(len(self.index)) if span is None else span
        for start in span[::size]:
            yield start, self.of.rows(self.index[start : min(start + size, span.stop)])

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self.of.rows(self.index[index])


@dataclass(frozen=True)
class SomeFeatures:
    """The gradients of some rows; `view` takes them out of a matrix of all."""

    of: GradientFeatures
    n: int
    view: Callable[[Rows], Rows]

    @property
    def dim(self) -> int:
        return self.of.dim

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return self.of.learning_rates

    @property
    def directions(self) -> tuple[str, ...]:
        return self.of.directions

    def features(self, checkpoint: int, direction: str) -> Rows:
        return self.view(self.of.features(checkpoint, direction))


def picked(features: GradientFeatures, index: torch.Tensor) -> SomeFeatures:
    """Return the gradients of some rows, by int64 index, without copying them."""
    return SomeFeatures(features, len(index), partial(PickedRows, index=index))
