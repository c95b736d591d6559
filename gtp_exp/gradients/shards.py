"""Define what a shard of a gradient store holds, and read the rows of several shards as one array.

A shard is a safetensors file with, for each direction d, `d` [rows, dim] and `norm.d` [rows]; in int8 also
`scale.d` [rows], what one step of a row's integers is worth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gtp_exp.errors import UserError, first_line


class StorageType(Enum):
    """Names the number type in which features lie on disk."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"  # a scale per row; half the bytes of float16, read back as float32

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which rows are read."""
        return torch.float32 if self is StorageType.INT8 else getattr(torch, self.value)


def shard_tensors(
    features: Mapping[str, torch.Tensor], norms: Mapping[str, torch.Tensor], storage: StorageType
) -> dict[str, torch.Tensor]:
    """Return the tensors of a shard by name. features[d]: float32 [rows, dim]; norms[d]: float32 [rows]."""
    tensors = {}
    for direction, matrix in features.items():
        if storage is StorageType.INT8:
            tensors[direction], tensors[f"scale.{direction}"] = to_int8(matrix)
        else:
            tensors[direction] = matrix.to(storage.dtype)
        tensors[f"norm.{direction}"] = norms[direction]
    return tensors


def to_int8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers [n, d] from -127 to 127, and the float32 scale [n] of each row: its largest
    magnitude / 127."""
    scale = matrix.abs().amax(1) / 127
    steps = matrix / torch.where(scale > 0, scale, 1.0)[:, None]
    return steps.round().to(torch.int8), scale


def from_int8(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return what `to_int8` was given, rounded: float32 [n, d]."""
    return rows * scale[:, None]


def n_shards(rows: int, shard_rows: int) -> int:
    """Return how many shards hold this many rows."""
    return -(-rows // shard_rows)


def shard_name(checkpoint: int, shard: int) -> str:
    """Return the file of a shard, relative to the store's directory."""
    return f"checkpoint-{checkpoint:02d}/shard-{shard:05d}.safetensors"


def holds_shards(path: Path) -> bool:
    """Return whether this is a store's folder of one checkpoint, with nothing but its shards."""
    named = path.is_dir() and re.fullmatch(r"checkpoint-\d{2,}", path.name)
    return bool(named) and all(file.name.startswith("shard-") for file in path.iterdir())


def read_tensor(file: Path, key: str) -> torch.Tensor:
    """Return one tensor of a shard, as a view into the memory-mapped file. Raise UserError for a file that is
    missing or no whole shard."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(key)
    except (FileNotFoundError, SafetensorError) as error:
        told = f"{file} is missing or damaged ({first_line(error)}); make the store again"
        raise UserError(told) from error


@dataclass(frozen=True)
class ShardedRows:
    """Gives out one array [n, dim] that is spread over shards; implements `features.Rows`."""

    files: Sequence[Path]  # the shards, in order
    key: str  # of the array in each
    shard_rows: int
    shape: tuple[int, int]
    storage: StorageType

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which rows are read."""
        return self.storage.dtype

    @cached_property
    def _maps(self) -> list[torch.Tensor]:
        return [read_tensor(file, self.key) for file in self.files]

    @cached_property
    def _scales(self) -> list[torch.Tensor]:
        return [read_tensor(file, f"scale.{self.key}") for file in self.files]

    def _read(self, shard: int, where: slice | torch.Tensor) -> torch.Tensor:
        rows = self._maps[shard][where]
        return rows if self.storage is not StorageType.INT8 else from_int8(rows, self._scales[shard][where])

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows): views into the maps, float32 copies of int8.

        A chunk may be shorter at a shard's end.
        """
        if size < 1:
            raise ValueError(f"chunks of {size} rows")
        span = range(self.shape[0]) if span is None else span
        for shard, rows in enumerate(self._maps):
            first = shard * self.shard_rows
            begin, end = max(span.start, first), min(span.stop, first + len(rows))
            for start in range(begin, end, size):
                yield start, self._read(shard, slice(start - first, min(start + size, end) - first))

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return a copy of the rows [k, dim] of an int64 index [k]. Raise IndexError outside the array."""
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < self.shape[0]):
            raise IndexError(f"row {int(index.max())} or {int(index.min())} of {self.shape[0]}")
        order = index.argsort(stable=True)  # so that the rows of a shard follow each other
        wanted = index[order]
        shards, counts = (wanted // self.shard_rows).unique_consecutive(return_counts=True)
        within = (wanted % self.shard_rows).split(counts.tolist())
        out = torch.empty(len(index), self.shape[1], dtype=self.dtype)
        for shard, where, into in zip(shards.tolist(), within, out.split(counts.tolist()), strict=True):
            into.copy_(self._read(shard, where))
        return out if torch.equal(wanted, index) else out[order.argsort()]
