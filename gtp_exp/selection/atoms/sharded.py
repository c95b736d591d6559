"""Divide the pool's rows among processes: each reads its own share, and a row travels when it is asked for.

A pass over the pool is one pass of every process over its own rows. What is sent per iteration is each one's
best 2M rows by index and correlation, and the atoms of the best 2M of all, m numbers each: never the store,
and nothing that grows with the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gtp_exp.distributed import Processes
from gtp_exp.gradients.features import Rows, TensorRows

ALIGNED = 1024  # shares begin at multiples of it, so that sums over blocks of rows are those of one process


def share_of(n: int, part: int, parts: int) -> range:
    """Return part 0, 1, ... of n rows: parts are contiguous and disjoint, and together all rows."""
    unit = ALIGNED if n >= ALIGNED * parts else 1
    units = -(-n // unit)
    return range(*(min(n, units * p // parts * unit) for p in (part, part + 1)))


@dataclass(frozen=True)
class Slice:
    """Give consecutive rows of a larger matrix, counted from 0."""

    of: Rows
    span: range

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""
        return len(self.span), self.of.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are read."""
        return self.of.dtype

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows) in order; a chunk has at most `size` rows."""
        part = self.span if span is None else self.span[span.start : span.stop]
        for start, chunk in self.of.chunks(size, part):
            yield start - self.span.start, chunk

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows by int64 index [k], in that order: [k, d]."""
        return self.of.rows(index + self.span.start)


@dataclass(frozen=True)
class SharedRows:
    """Give all N rows, of which this process holds its own. All processes ask for the same rows at a time."""

    own: Rows
    span: range  # of the own rows among the N
    n: int
    processes: Processes

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""
        return self.n, self.own.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are read."""
        return self.own.dtype

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows) of the own rows only, in order."""
        if span is not None:
            raise ValueError("a process passes over all of its rows")
        for start, chunk in self.own.chunks(size):
            yield self.span.start + start, chunk

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows by int64 index [k], in that order: [k, d]."""
        mine = (index >= self.span.start) & (index < self.span.stop)
        out = torch.zeros(len(index), self.shape[1])
        out[mine] = self.own.rows(index[mine] - self.span.start).float()
        return self.processes.all_reduce(out).to(self.dtype)


def in_memory(rows: Rows) -> bool:
    """Tell whether this process holds its rows in memory."""
    return isinstance(rows, TensorRows) or (isinstance(rows, SharedRows) and in_memory(rows.own))


def own_span(rows: Rows) -> range:
    """Return which of all rows this process holds."""
    return rows.span if isinstance(rows, SharedRows) else range(rows.shape[0])


def own_rows(rows: Rows, index: torch.Tensor) -> torch.Tensor:
    """Return some of this process's rows by int64 index [k] into all rows: nothing is sent."""
    return rows.own.rows(index - rows.span.start) if isinstance(rows, SharedRows) else rows.rows(index)
