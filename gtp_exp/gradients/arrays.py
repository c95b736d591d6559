"""A caller's own arrays as gradient features: numpy, torch or memory maps, one [n, dim] per checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gtp_exp.errors import UserError
from gtp_exp.gradients.directions import Direction

CHUNK = 4096  # rows that are checked at a time
DIRECTIONS = tuple(direction.value for direction in Direction)


@dataclass(frozen=True)
class ArrayRows:
    """Read an array [n, dim] by chunks or by index, a memory map never as a whole. Implements `Rows`."""

    array: np.ndarray | torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.array.shape[0], self.array.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Half-width floats stay as they are; everything else is read as float32."""
        name = str(self.array.dtype).removeprefix("torch.")
        return getattr(torch, name) if name in ("float16", "bfloat16") else torch.float32

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows) in order; views where the type allows, copies otherwise."""
        span = range(self.shape[0]) if span is None else span
        for start in span[::size]:
            yield start, self._tensor(self.array[start : min(start + size, span.stop)])

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return the rows of an int64 index [k], in that order: [k, dim] on the CPU."""
        if isinstance(self.array, torch.Tensor):
            return self._tensor(self.array[index.to(self.array.device)])
        return self._tensor(self.array[index.numpy()])

    def _tensor(self, part: np.ndarray | torch.Tensor) -> torch.Tensor:
        if isinstance(part, torch.Tensor):
            return part.detach().to("cpu", self.dtype)
        wanted = np.float16 if self.dtype is torch.float16 else np.float32
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            native = np.ascontiguousarray(part, dtype=wanted)
        # PyTorch warns of arrays that it could write to by mistake, such as a read-only memory map's.
        return torch.from_numpy(native if native.flags.writeable else native.copy())


@dataclass(frozen=True)
class ArrayFeatures:
    """Hold one array per checkpoint, which stands for every direction. Implements `GradientFeatures`."""

    matrices: tuple[ArrayRows, ...]
    learning_rates: tuple[float, ...]

    @property
    def n(self) -> int:
        return self.matrices[0].shape[0]

    @property
    def dim(self) -> int:
        return self.matrices[0].shape[1]

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS

    def features(self, checkpoint: int, direction: str) -> ArrayRows:
        """Return the checkpoint's array, whatever the direction."""
        return self.matrices[checkpoint]


def as_matrices(arrays: Any, name: str) -> tuple[ArrayRows, ...]:
    """Return one matrix per checkpoint, of equal shapes; raise UserError that calls them `name` otherwise."""
    if not isinstance(arrays, (list, tuple)):
        return (as_matrix(arrays, name),)
    if not arrays:
        raise UserError(f"the {name} is an empty list; give one array [rows, dimension] per checkpoint")
    matrices = tuple(as_matrix(array, f"{name}[{t}]") for t, array in enumerate(arrays))
    for t, matrix in enumerate(matrices):
        if matrix.shape != matrices[0].shape:
            raise UserError(
                f"{name}[{t}] has the shape {list(matrix.shape)} and {name}[0] {list(matrices[0].shape)}; "
                "every checkpoint holds the same rows in the same dimension"
            )
    return matrices


def as_matrix(value: Any, name: str) -> ArrayRows:
    """Return one array [n, dim] as rows; raise UserError that calls it `name` for anything else."""
    if isinstance(value, (str, bytes, os.PathLike)):
        raise UserError(
            f"{name}={str(value)!r} is a text, not an array; load it first, with "
            "numpy.load(FILE, mmap_mode='r') or gtp_exp.GradientStore.open(FOLDER)"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise UserError(f"{name} is a masked array; fill or remove what is masked")
    if not isinstance(value, torch.Tensor) and hasattr(value, "__array__"):
        value = np.asarray(value)  # of a memory map a view, not a copy
    if isinstance(value, torch.Tensor):
        real = value.layout is torch.strided and not value.is_complex() and value.dtype is not torch.bool
    elif isinstance(value, np.ndarray):
        real = value.dtype.kind in "fiu"
    else:
        raise UserError(
            f"{name} is a {type(value).__name__}; give an array [rows, dimension] of numpy or torch, "
            "or a list of one array per checkpoint"
        )
    if not real:
        raise UserError(f"{name} holds {value.dtype} values; give a dense array of real numbers")
    if value.ndim != 2:
        remedy = "give a list of one [rows, dimension] array per checkpoint" if value.ndim == 3 else ""
        remedy = remedy or "give an array [rows, dimension]"
        raise UserError(f"{name} has the shape {list(value.shape)}; {remedy}")
    if 0 in value.shape:
        raise UserError(
            f"the {name} has the shape {list(value.shape)}, so it is empty; give at least one row"
        )
    return ArrayRows(value)


def check_finite_rows(matrices: Sequence[ArrayRows], ids: Sequence[str], name: str) -> None:
    """Raise UserError that names the first row with NaN, infinity or numbers whose squares are too large for
    float32, and for rows that are all zero.
    """
    zero = True
    for t, matrix in enumerate(matrices):
        for start, chunk in matrix.chunks(CHUNK):
            zero = zero and not chunk.any()
            finite = torch.isfinite(torch.linalg.vector_norm(chunk.float(), dim=1))
            if not finite.all():
                row = start + int((~finite).nonzero()[0])
                what = "too large for float32" if torch.isfinite(chunk[row - start]).all() else "not finite"
                raise UserError(
                    f"the gradient of example '{ids[row]}' is {what} (row {row} of the {name}, "
                    f"checkpoint {t}); remove the row"
                )
    if zero:
        whose = "every candidate's" if name == "pool" else f"the {name}"
        raise UserError(f"{whose} gradient is zero, so it chooses nothing; check how they were computed")


def checked_rates(rates: Any, checkpoints: int) -> tuple[float, ...]:
    """Return one learning rate per checkpoint, all 1 for None; raise UserError where they do not fit."""
    if rates is None:
        return (1.0,) * checkpoints
    try:
        values = tuple(float(rate) for rate in rates) if not isinstance(rates, str) else ()
    except (TypeError, ValueError):
        values = ()
    if len(values) != checkpoints:
        numbers = "1 number" if checkpoints == 1 else f"{checkpoints} numbers"
        raise UserError(f"learning_rates={rates!r} must be a list of {numbers}, one for each checkpoint")
    if not all(math.isfinite(rate) and rate >= 0 for rate in values) or not sum(values) > 0:
        raise UserError(
            f"the checkpoints' learning rates {list(values)} cannot weight them; "
            "give finite numbers of 0 or more, not all 0"
        )
    return values


def checked_ids(ids: Any, n: int, what: str = "row", prefix: str = "row-") -> tuple[str, ...]:
    """Return n unique ids as texts, the rows' numbers for None; raise UserError where they do not fit."""
    if ids is None:
        return tuple(f"{prefix}{i}" for i in range(n))
    names = () if isinstance(ids, (str, bytes)) else tuple(str(each) for each in ids)
    if len(names) != n:
        raise UserError(f"ids has the length {len(names)}, not {n}; give one id for each {what}")
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name in first:
            raise UserError(f"id '{name}' occurs twice: rows {first[name]} and {i}; make ids unique")
        first[name] = i
    return names
