"""Read the matrix of atoms, one row per candidate, by whole passes or by a few rows; never hold a large one.

    a_i = concat over checkpoints t of  s[t, i] W_t P_t x[t, i]

x[t, i] is the stored sketch, P_t an optional subspace basis [k, d], W_t an optional symmetric metric, s[t, i]
the checkpoint's weight times the normalisation. A correlation pass never builds atoms: a_i . r is the sum
over t of s[t, i] x[t, i] . (P_t^T W_t r_t), so it is one plain read of the store in its own type, accumulated
in float32.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gtp_exp.distributed import ALONE, Processes
from gtp_exp.gradients.features import Rows, TensorRows
from gtp_exp.selection.atoms import fused
from gtp_exp.selection.atoms.metric import Whitening
from gtp_exp.selection.atoms.rounded import Product, RoundedRows
from gtp_exp.selection.atoms.sharded import in_memory, own_rows, own_span
from gtp_exp.selection.atoms.threads import in_threads

BLOCK = 1024  # rows converted to float32 at a time: 8 MB at 2,048 columns, which stays in the cache
WIDEN = 512  # the same for each of several threads
WIDENED = 1 << 19  # numbers of half width that are converted at a time for several columns


class Atoms(Protocol):
    """Give products with the matrix A [N, m] of atoms, and some of its rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of candidates N and of dimensions m."""
        ...

    @property
    def processes(self) -> Processes:
        """The processes that pass over the pool together, each over its own rows."""
        ...

    @property
    def own(self) -> range:
        """The candidates whose rows this process reads."""
        ...

    def correlate(self, residual: torch.Tensor) -> torch.Tensor:
        """Return A R for residual columns R [m, S]: float32 [N, S], in one pass whatever S."""
        ...

    def correlate_own(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the same for this process's rows, with zeros for the others: nothing is sent."""
        ...

    def bounds(self, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return what `correlate_own` lies between, float32 [N, S] each, zeros for other processes' rows,
        without reading the store; None where no rounded rows are in memory.
        """
        ...

    def correlate_some(self, index: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return `correlate_own` of some of this process's rows by int64 index [k]: float32 [k, S]."""
        ...

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return atoms by int64 index [k]: float32 [k, m]."""
        ...

    def combine(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return A^T C for coefficient columns C [N, S]: float64 [m, S], in one pass."""
        ...


@dataclass(frozen=True)
class Block:
    """Hold the atoms' share of one checkpoint: scale_i * metric(basis @ rows_i)."""

    rows: Rows  # [N, d]
    scale: torch.Tensor  # float32 [N]
    basis: torch.Tensor | None  # float32 [k, d] with orthonormal rows, or None for the whole sketch
    metric: Whitening | None = None  # of `dim` numbers; None: the Euclidean one
    rounded: RoundedRows | None = None  # this process's rows in the basis and the metric

    @property
    def dim(self) -> int:
        """The numbers per atom."""
        return self.rows.shape[1] if self.basis is None else self.basis.shape[0]

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [k, d] in the basis and the metric, float32 [k, dim], not scaled."""
        rows = rows.float() if self.basis is None else rows.float() @ self.basis.T
        return rows if self.metric is None else self.metric.apply(rows)

    def lift(self, columns: torch.Tensor) -> torch.Tensor:
        """Return float32 [d, S] whose products with rows are those of columns [dim, S] with `project`'s."""
        columns = columns if self.metric is None else self.metric.apply(columns.T).T
        return columns if self.basis is None else self.basis.T @ columns


@dataclass(frozen=True)
class BlockAtoms:
    """Join one block per checkpoint to atoms; a pass asks for `chunk_rows` rows at a time."""

    blocks: tuple[Block, ...]
    chunk_rows: int
    processes: Processes = ALONE

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of candidates N and of dimensions m."""
        return self.blocks[0].rows.shape[0], sum(block.dim for block in self.blocks)

    @property
    def own(self) -> range:
        """The candidates whose rows this process reads."""
        return own_span(self.blocks[0].rows)

    def _split(self, columns: torch.Tensor) -> Sequence[torch.Tensor]:
        return columns.split([block.dim for block in self.blocks])

    def correlate(self, residual: torch.Tensor) -> torch.Tensor:
        """Return A R for residual columns R [m, S]: float32 [N, S], in one pass whatever S."""
        return self.processes.all_reduce(self.correlate_own(residual))

    def correlate_own(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the same for this process's rows, with zeros for the others: nothing is sent."""
        total = torch.zeros(self.shape[0], residual.shape[1])
        for block, part in zip(self.blocks, self._split(residual.float()), strict=True):
            lifted = block.lift(part)
            whole = in_memory(block.rows)  # there a chunk is a view and costs nothing
            # Beside rounded rows the store is passed over once, which is not worth a kernel.
            product = dot if block.rounded is not None else self._product(block.rows.dtype, lifted)
            for start, chunk in block.rows.chunks(self.shape[0] if whole else self.chunk_rows):
                stop = start + len(chunk)
                total[start:stop] += block.scale[start:stop, None] * product(chunk, lifted)
        return total

    def bounds(self, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return what `correlate_own` lies between, float32 [N, S] each, zeros for other processes' rows,
        without reading the store; None where no rounded rows are in memory.
        """
        middle = torch.zeros(self.shape[0], residual.shape[1])
        squares = torch.zeros_like(middle)  # of how far the products of a checkpoint may be off
        own = slice(self.own.start, self.own.stop)
        for block, part in zip(self.blocks, self._split(residual.float()), strict=True):
            if block.rounded is None:
                return None
            products, off = block.rounded.products(part, self._product(torch.int8, part))
            middle[own] += block.scale[own, None] * products
            squares[own] += block.scale[own, None].square() * off
        off = squares.sqrt_()
        return middle - off, middle + off

    def correlate_some(self, index: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return `correlate_own` of some of this process's rows by int64 index [k]: float32 [k, S]."""
        total = torch.zeros(len(index), residual.shape[1])
        for block, part in zip(self.blocks, self._split(residual.float()), strict=True):
            total += block.scale[index, None] * dot(own_rows(block.rows, index), block.lift(part))
        return total

    def _product(self, dtype: torch.dtype, columns: torch.Tensor) -> Product:
        """Return what multiplies rows of a type with columns [d, S]: a compiled kernel for narrow rows and
        one column, where the pass is large enough to be worth one.
        """
        kernel, dim = None, columns.shape[0]
        large = self.shape[0] * dim * len(self.blocks) >= fused.WORTH
        if columns.shape[1] == 1 and dtype != torch.float32 and large:
            kernel = fused.widen_and_dot(dim, dtype)
        if kernel is None:
            return dot
        return lambda rows, columns: kernel(rows, columns[:, 0].contiguous())[:, None]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return atoms by int64 index [k]: float32 [k, m]."""
        parts = [block.project(block.rows.rows(index)) * block.scale[index, None] for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def combine(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return A^T C for coefficient columns C [N, S]: float64 [m, S], in one pass."""
        parts = []
        for block in self.blocks:
            scaled = coefficients.float() * block.scale[:, None]
            total = torch.zeros(block.rows.shape[1], coefficients.shape[1], dtype=torch.float64)
            for start, chunk in block.rows.chunks(self.chunk_rows):
                for first in range(0, len(chunk), BLOCK):
                    part = chunk[first : first + BLOCK].float()
                    total += (part.T @ scaled[start + first : start + first + len(part)]).double()
            total = total if block.basis is None else block.basis.double() @ total
            parts.append(total if block.metric is None else block.metric.apply(total.T).T)
        return self.processes.all_reduce(torch.cat(parts))


def tensor_atoms(matrix: torch.Tensor, chunk_rows: int = 1 << 20) -> BlockAtoms:
    """Return atoms that are the rows of a matrix in memory, taken as they are."""
    return BlockAtoms((Block(TensorRows(matrix), torch.ones(len(matrix)), None),), chunk_rows)


def dot(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Multiply rows [c, d] of any type with columns float32 [d, S] to float32 [c, S].

    Narrower rows are widened a block at a time inside the cache, which costs less than it saves in reads.
    """
    if columns.shape[1] == 1:
        return _dot_one(rows, columns[:, 0].contiguous())[:, None]
    out, across = torch.empty(len(rows), columns.shape[1]), columns.T.contiguous()
    narrow = rows.dtype != torch.float32
    block = max(1, WIDENED // rows.shape[1]) if narrow else BLOCK
    buffer = torch.empty(min(block, len(rows)), rows.shape[1]) if narrow else None
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        if buffer is not None:
            part = buffer[: len(part)].copy_(part)
        out[start : start + len(part)] = torch.nn.functional.linear(part, across)
    return out


def _dot_one(rows: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Return one dot product per row, float32 [c]: it reads at memory bandwidth, and the result of a row
    depends neither on the chunk it is in nor on the number of threads.
    """
    out = torch.empty(len(rows))

    def share(span: range) -> None:
        products = out[span.start : span.stop]
        if rows.dtype == torch.float32:
            _products(rows[span.start : span.stop], column, products)
            return
        buffer = torch.empty(min(WIDEN, len(span)), rows.shape[1])
        for start in range(0, len(span), WIDEN):
            part = rows[span.start + start : min(span.start + start + WIDEN, span.stop)]
            _products(buffer[: len(part)].copy_(part), column, products[start : start + len(part)])

    in_threads(share, len(rows), WIDEN)
    return out


def _products(rows: torch.Tensor, column: torch.Tensor, out: torch.Tensor) -> None:
    """Write the products of float32 rows [c, d] with a column [d] to out [c]; call it where torch is serial.

    MKL takes four rows at a time and rounds those of an incomplete four differently, so it is given no such.
    """
    if not _mkl_is_quick():
        np.vecdot(rows.numpy(), column.numpy(), out=out.numpy())
        return
    whole = len(rows) // 4 * 4
    torch.mv(rows[:whole], column, out=out[:whole])
    if left := len(rows) - whole:
        four = rows[-4:] if whole else torch.nn.functional.pad(rows, (0, 0, 4 - left, 0))
        out[whole:] = torch.mv(four, column)[-left:]


@functools.cache
def _mkl_is_quick() -> bool:
    """Tell whether torch.mv is MKL's on an Intel processor, where it reads 1.4 times as fast as NumPy's
    vecdot; on others MKL keeps to kernels that read half as fast.
    """
    cpuinfo = Path("/proc/cpuinfo")
    name = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in name
