"""How a selector reads gradient features, whether they lie in memory or in a store on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


class Rows(Protocol):
    """A matrix [n, dim] that is read by row chunks or by index, never as a whole."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are read: float32, bfloat16 or float16."""
        ...

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) in order, of consecutive rows (None: of all); a chunk has at most `size` rows."""
        ...

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows by int64 index [k], in that order: [k, dim]."""
        ...


class GradientFeatures(Protocol):
    """Sketched per-example gradients x[t, i] along a trajectory; `GradientStore` is the one on disk."""

    @property
    def n(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Mean learning rate of the segment before each checkpoint, length T."""
        ...

    @property
    def directions(self) -> tuple[str, ...]:
        """Which of sgd, adam, less were applied before the sketch; each is stored."""
        ...

    def features(self, checkpoint: int, direction: str) -> Rows: ...


@dataclass(frozen=True)
class TensorRows:
    matrix: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.matrix.shape[0], self.matrix.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        span = range(len(self.matrix)) if span is None else span
        for start in span[::size]:
            yield start, self.matrix[start : min(start + size, span.stop)]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        return self.matrix[index]


@dataclass(frozen=True)
class MemoryFeatures:
    """Features held in memory: matrices[t][direction] is [n, dim]."""

    matrices: tuple[Mapping[str, torch.Tensor], ...]
    learning_rates: tuple[float, ...]

    @property
    def n(self) -> int:
        return next(iter(self.matrices[0].values())).shape[0]

    @property
    def dim(self) -> int:
        return next(iter(self.matrices[0].values())).shape[1]

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(self.matrices[0])

    def features(self, checkpoint: int, direction: str) -> TensorRows:
        return TensorRows(self.matrices[checkpoint][direction])
