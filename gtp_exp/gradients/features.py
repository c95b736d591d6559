"""Say how a selector reads gradient features, whether they lie in memory or in a store on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


class Rows(Protocol):
    """Gives out a matrix [n, dim] by row chunks or by index, never as a whole."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, dim)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which rows are read: float32, bfloat16 or float16."""
        ...

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows) in order, at most `size` rows at a time, of `span` (None: of all rows)."""
        ...

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return the rows [k, dim] of an int64 index [k], in its order."""
        ...


class GradientFeatures(Protocol):
    """Gives out sketched per-example gradients x[t, i] along a trajectory; `GradientStore` does from disk."""

    @property
    def n(self) -> int:
        """Return the number of rows."""
        ...

    @property
    def dim(self) -> int:
        """Return the number of values in a row."""
        ...

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Return the mean learning rate of the segment before each checkpoint, length T."""
        ...

    @property
    def directions(self) -> tuple[str, ...]:
        """Return which of sgd, adam, less were applied before the sketch; each is there."""
        ...

    def features(self, checkpoint: int, direction: str) -> Rows:
        """Return the features at a checkpoint, in one of `directions`."""
        ...


@dataclass(frozen=True)
class TensorRows:
    """Gives out the rows of a matrix in memory."""

    matrix: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, dim)."""
        return (self.matrix.shape[0], self.matrix.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Return the matrix's own type."""
        return self.matrix.dtype

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows) as views."""
        span = range(len(self.matrix)) if span is None else span
        for start in span[::size]:
            yield start, self.matrix[start : min(start + size, span.stop)]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return a copy of the rows of an index."""
        return self.matrix[index]


@dataclass(frozen=True)
class MemoryFeatures:
    """Holds features in memory: matrices[t][direction] is [n, dim]."""

    matrices: tuple[Mapping[str, torch.Tensor], ...]
    learning_rates: tuple[float, ...]

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return next(iter(self.matrices[0].values())).shape[0]

    @property
    def dim(self) -> int:
        """Return the number of values in a row."""
        return next(iter(self.matrices[0].values())).shape[1]

    @property
    def directions(self) -> tuple[str, ...]:
        """Return the directions that each checkpoint holds."""
        return tuple(self.matrices[0])

    def features(self, checkpoint: int, direction: str) -> TensorRows:
        """Return the features at a checkpoint, in one of `directions`."""
        return TensorRows(self.matrices[checkpoint][direction])
