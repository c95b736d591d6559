"""Sketched gradients on disk: one array per checkpoint and direction, in shards that are written once.

    DIRECTORY/plan.json                    what is being computed; written first, checked by whoever goes on
    DIRECTORY/rows.json                    ids and token counts
    DIRECTORY/checkpoint-00/shard-00000.safetensors    and its receipt shard-00000.json with the checksum
    DIRECTORY/store.json                   the finished store; written last

A shard holds for each direction d: `d` [rows, dim] and `norm.d` [rows]; in int8 also `scale.d` [rows], what
one step of a row's integers is worth. A row whose gradient is not finite is quarantined: its numbers are
zeros, its norm is what was found, and store.json lists it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from gtp_exp.errors import UserError
from gtp_exp.files import read_json, read_sealed, sha256_file, write_json, write_sealed
from gtp_exp.gradients.arrays import imported_arrays

log = logging.getLogger(__name__)

FORMAT = 2
PLAN, ROWS, STORE = "plan.json", "rows.json", "store.json"


class StorageType(Enum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"  # a scale per row; half the bytes of float16, read back as float32

    @property
    def dtype(self) -> torch.dtype:
        """The type in which rows are read."""
        return torch.float32 if self is StorageType.INT8 else getattr(torch, self.value)


class GradientStore:
    """A finished store, read through memory maps: opening it costs nothing, rows are read when asked for."""

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        self.directory = directory
        self.about = about

    @classmethod
    def open(cls, path: Path | str) -> GradientStore:
        directory = Path(path)
        file = directory / STORE
        if not file.is_file():
            state = (
                "is not finished; run the same command again to go on"
                if (directory / PLAN).is_file()
                else ("is not a gradient store")
            )
            raise UserError(f"{directory} {state}: {STORE} is missing")
        about = read_json(file)
        if not isinstance(about, dict):
            raise UserError(f"{file} is damaged; collect the store again")
        if about.get("format") != FORMAT:
            raise UserError(
                f"{file} has format {about.get('format')}, this version reads {FORMAT}; collect it again"
            )
        return cls(directory, about)

    @classmethod
    def from_arrays(
        cls,
        path: Path | str,
        arrays: Any,
        ids: Sequence[str] | None = None,
        learning_rates: Sequence[float] | None = None,
        direction: str = "sgd",
    ) -> GradientStore:
        """Write a store of an array [N, d] (numpy, torch or memory map), or of a list of one per checkpoint.

        ids: one text per row, `row-0`, ... for None. learning_rates: one per checkpoint, all 1 for None.
        direction: what the numbers are, sgd (plain gradients), adam or less. Float16 and bfloat16 are kept,
        all else becomes float32. A folder that holds the same store is left as it is; raises UserError for
        one that holds another, and for arrays that do not fit, repeated ids or a row that is not finite.
        """
        source = imported_arrays(arrays, ids, learning_rates, direction)
        writer = StoreWriter(Path(path), source.plan, source.rows, dict)
        for checkpoint, shard in writer.missing():
            with writer.claim(checkpoint, shard, wait=True):
                writer.write(checkpoint, shard, *source.shard(checkpoint, writer.span(shard)))
        return writer.finish()

    @property
    def n(self) -> int:
        return self.about["rows"]

    @property
    def dim(self) -> int:
        return self.about["dim"]

    @property
    def dtype(self) -> torch.dtype:
        return StorageType(self.about["storage"]).dtype

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return tuple(c["learning_rate"] for c in self.about["checkpoints"])

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(self.about["directions"])

    @property
    def quarantined(self) -> torch.Tensor:
        """Rows whose gradient is not finite at some checkpoint, int64, ascending."""
        return torch.tensor(self.about["quarantined"], dtype=torch.long)

    @cached_property
    def _rows(self) -> Mapping[str, Any]:
        return json.loads((self.directory / ROWS).read_text())

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._rows["ids"])

    @property
    def n_tokens(self) -> torch.Tensor:
        """Completion tokens of each row, int64 [N]."""
        return torch.tensor(self._rows["n_completion_tokens"], dtype=torch.long)

    def features(self, checkpoint: int, direction: str) -> ShardedRows:
        self._check(checkpoint, direction)
        return ShardedRows(
            self._files(checkpoint),
            direction,
            self.about["shard_rows"],
            (self.n, self.dim),
            StorageType(self.about["storage"]),
        )

    def norms(self, checkpoint: int, direction: str) -> torch.Tensor:
        """Norm of each gradient after the direction and before the sketch, float32 [N]."""
        self._check(checkpoint, direction)
        return torch.cat([_tensor(file, f"norm.{direction}").clone() for file in self._files(checkpoint)])

    def verify(self) -> list[str]:
        """Damaged or missing files, one line each; empty when every checksum is right."""
        problems = []
        for name, expected in self.about["sha256"].items():
            file = self.directory / name
            if not file.is_file():
                problems.append(f"{name}: missing")
            elif (found := sha256_file(file)) != expected:
                problems.append(f"{name}: SHA-256 is {found[:12]}..., recorded {expected[:12]}...")
        return problems

    @property
    def nbytes(self) -> int:
        return sum((self.directory / name).stat().st_size for name in self.about["sha256"])

    def _files(self, checkpoint: int) -> list[Path]:
        return [
            self.directory / shard_name(checkpoint, shard)
            for shard in range(n_shards(self.n, self.about["shard_rows"]))
        ]

    def _check(self, checkpoint: int, direction: str) -> None:
        if direction not in self.directions:
            raise UserError(
                f"{self.directory} holds the directions {', '.join(self.directions)}, not {direction}; "
                "add it to the gradient settings and collect again"
            )
        if not 0 <= checkpoint < len(self.about["checkpoints"]):
            raise IndexError(f"checkpoint {checkpoint} of {len(self.about['checkpoints'])}")


@dataclass(frozen=True)
class ShardedRows:
    """One array [n, dim] spread over shards; implements `Rows`."""

    files: Sequence[Path]
    key: str
    shard_rows: int
    shape: tuple[int, int]
    storage: StorageType

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @cached_property
    def _maps(self) -> list[torch.Tensor]:
        return [_tensor(file, self.key) for file in self.files]

    @cached_property
    def _scales(self) -> list[torch.Tensor]:
        return [_tensor(file, f"scale.{self.key}") for file in self.files]

    def _read(self, shard: int, where: slice | torch.Tensor) -> torch.Tensor:
        rows = self._maps[shard][where]
        if self.storage is StorageType.INT8:
            return from_int8(rows, self._scales[shard][where])
        return rows

    def chunks(self, size: int, span: range | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Views into the maps, float32 copies of int8; chunks may be shorter at a shard's end."""
        if size < 1:
            raise ValueError(f"chunks of {size} rows")
        span = range(self.shape[0]) if span is None else span
        for shard, rows in enumerate(self._maps):
            first = shard * self.shard_rows
            begin, end = max(span.start, first), min(span.stop, first + len(rows))
            for start in range(begin, end, size):
                yield start, self._read(shard, slice(start - first, min(start + size, end) - first))

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(index), self.shape[1], dtype=self.dtype)
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < self.shape[0]):
            raise IndexError(f"row {int(index.max())} or {int(index.min())} of {self.shape[0]}")
        shard = index // self.shard_rows
        for s in shard.unique().tolist():
            here = (shard == s).nonzero().squeeze(1)
            out[here] = self._read(s, index[here] - s * self.shard_rows)
        return out


class StoreWriter:
    """Writes a store shard by shard. Any number of processes may hold a writer on one directory: each shard
    is claimed by a file lock, so a process that dies leaves its shard to the others.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any],
        rows: Mapping[str, Any],
        resolve: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Goes on with a store of the same settings, refuses another.

        settings: everything the numbers depend on. rows: ids and token counts.
        resolve: what only the machine can tell (engine, token budget). It is asked once, by the first
        process, and recorded, so that whoever goes on computes the same bytes.
        """
        self.directory, self._ids = directory, rows["ids"]
        directory.mkdir(parents=True, exist_ok=True)
        settings, rows = json.loads(json.dumps([settings, rows]))  # as the files give them: lists for tuples
        with FileLock(str(directory / "plan.lock")):
            plan = self._begun(settings)
            if plan is None:
                plan = {**settings, **resolve()}
                write_json(directory / ROWS, rows)
                write_sealed(directory / PLAN, plan)
            elif read_json(directory / ROWS) != rows:  # one plan has one set of rows, so this is no choice
                log.warning("%s is damaged; it is written again", directory / ROWS)
                write_json(directory / ROWS, rows)
        self.plan = plan

    def _begun(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The plan of the store to go on with; None when there is none, or none that can be trusted."""
        file = self.directory / PLAN
        plan = read_sealed(file)
        if plan is None:
            if file.is_file():
                log.warning("%s is damaged; every shard of the store is computed again", file)
            for shards in self.directory.glob("checkpoint-*"):  # of which plan?
                shutil.rmtree(shards)
        elif different := sorted(k for k in settings if plan.get(k) != settings[k]):
            raise UserError(
                f"{self.directory} holds gradients with other settings ({', '.join(different)}); "
                "choose another directory or delete it"
            )
        return plan

    @property
    def n_shards(self) -> int:
        return n_shards(self.plan["rows"], self.plan["shard_rows"])

    def span(self, shard: int) -> range:
        size = self.plan["shard_rows"]
        return range(shard * size, min((shard + 1) * size, self.plan["rows"]))

    def missing(self) -> list[tuple[int, int]]:
        """(checkpoint, shard) still to be written; a shard with a wrong checksum is warned of and counts."""
        return [
            (checkpoint, shard)
            for checkpoint in range(len(self.plan["checkpoints"]))
            for shard in range(self.n_shards)
            if not self.intact(checkpoint, shard)
        ]

    def intact(self, checkpoint: int, shard: int) -> bool:
        file = self.directory / shard_name(checkpoint, shard)
        receipt = file.with_suffix(".json")
        if not (file.is_file() and receipt.is_file()):
            return False
        if read_sealed(receipt) == {"sha256": sha256_file(file)}:
            return True
        log.warning("%s is damaged, or its receipt %s; it is computed again", file, receipt.name)
        return False

    @contextlib.contextmanager
    def claim(self, checkpoint: int, shard: int, *, wait: bool) -> Iterator[bool]:
        """Holds the shard's lock inside; false when another process holds it and `wait` is false."""
        path = (self.directory / shard_name(checkpoint, shard)).with_suffix(".lock")
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(str(path))
        try:
            lock.acquire(blocking=wait)
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def write(
        self,
        checkpoint: int,
        shard: int,
        features: Mapping[str, torch.Tensor],
        norms: Mapping[str, torch.Tensor],
    ) -> None:
        """features[d]: float32 [rows, dim]; norms[d]: float32 [rows]."""
        storage = StorageType(self.plan["storage"])
        tensors = {}
        for direction, matrix in features.items():
            if storage is StorageType.INT8:
                tensors[direction], tensors[f"scale.{direction}"] = to_int8(matrix)
            else:
                tensors[direction] = matrix.to(storage.dtype)
            if not torch.isfinite(tensors[direction]).all():
                row = int((~torch.isfinite(tensors[direction])).any(dim=1).nonzero()[0])
                raise UserError(
                    f"the {direction} features of example {self._ids[self.span(shard)[row]]} exceed the "
                    f"range of {self.plan['storage']}; set storage to bfloat16 or float32"
                )
            tensors[f"norm.{direction}"] = norms[direction]
        file = self.directory / shard_name(checkpoint, shard)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".part")
        save_file(tensors, partial)
        digest = sha256_file(partial)
        _sync(partial)
        os.replace(partial, file)
        write_sealed(file.with_suffix(".json"), {"sha256": digest})

    def finish(self) -> GradientStore:
        """Collect the receipts into store.json. Every process may call it; all write the same bytes."""
        digests = {ROWS: sha256_file(self.directory / ROWS)}
        for checkpoint in range(len(self.plan["checkpoints"])):
            for shard in range(self.n_shards):
                name = shard_name(checkpoint, shard)
                file = (self.directory / name).with_suffix(".json")
                receipt = read_sealed(file)
                if receipt is None:
                    raise UserError(f"{file} was damaged meanwhile; run the same command again")
                digests[name] = receipt["sha256"]
        about = {"format": FORMAT, **self.plan, "sha256": digests}
        unlisted = GradientStore(self.directory, about)
        norms = [
            unlisted.norms(t, d) for t in range(len(self.plan["checkpoints"])) for d in unlisted.directions
        ]
        about["quarantined"] = (~torch.isfinite(torch.stack(norms)).all(0)).nonzero().flatten().tolist()
        with FileLock(str(self.directory / "plan.lock")):
            write_json(self.directory / STORE, about)
        # A process that still holds one of these finds its shard intact, or writes the same bytes again.
        for lock in self.directory.rglob("*.lock"):
            lock.unlink(missing_ok=True)
        return GradientStore.open(self.directory)


def to_int8(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers [n, d] from -127 to 127 and the float32 scale [n] of each row: its largest magnitude / 127."""
    scale = matrix.abs().amax(1) / 127
    steps = matrix / torch.where(scale > 0, scale, 1.0)[:, None]
    return steps.round().to(torch.int8), scale


def from_int8(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return rows * scale[:, None]


def n_shards(rows: int, shard_rows: int) -> int:
    return -(-rows // shard_rows)


def shard_name(checkpoint: int, shard: int) -> str:
    return f"checkpoint-{checkpoint:02d}/shard-{shard:05d}.safetensors"


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _tensor(file: Path, key: str) -> torch.Tensor:
    """A view into the memory-mapped file."""
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(key)


def describe(store: GradientStore) -> str:
    about = store.about
    sketch = about["sketch"]
    lines = [
        f"{store.directory}",
        f"rows         {store.n} ({int(store.n_tokens.sum())} completion tokens)",
        f"dimension    {store.dim}, {about['storage']}, sketch {sketch['kind']}, seed {about['seed']}",
        f"gradients    {about['reduction']} completion loss, {about['n_parameters']} parameters, "
        f"engine {about['engine']}",
        f"shards       {n_shards(store.n, about['shard_rows'])} of {about['shard_rows']} rows a checkpoint, "
        f"{store.nbytes / 1e6:.1f} MB in all",
    ]
    if len(store.quarantined):
        ids = [store.ids[i] for i in store.quarantined[:5].tolist()]
        lines.append(f"quarantined  {len(store.quarantined)} rows, not finite: {', '.join(ids)}")
    for t, checkpoint in enumerate(about["checkpoints"]):
        for direction in store.directions:
            norms = store.norms(t, direction)
            norms = norms[norms.isfinite()]
            lines.append(
                f"checkpoint {t} step {checkpoint['step']}, learning rate {checkpoint['learning_rate']:.3g}, "
                f"{direction}: norm median {norms.median():.4g}, min {norms.min():.4g}, max {norms.max():.4g}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gtp-exp-store", description="Show and verify gradient stores.")
    parser.add_argument("path", nargs="+", type=Path, help="directory of a store")
    arguments = parser.parse_args(argv)
    damaged = False
    for path in arguments.path:
        try:
            store = GradientStore.open(path)
            problems = store.verify()
            # Checksums first: a description of damaged files would mislead or crash.
            print(
                "\n".join(problems) if problems else f"{describe(store)}\nverified: every checksum is right"
            )
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        damaged |= bool(problems)
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
