"""Keep sketched gradients on disk: one array per checkpoint and direction, in shards written once.

    DIRECTORY/plan.json                    what is being computed; written first, checked by whoever goes on
    DIRECTORY/rows.json                    ids and token counts
    DIRECTORY/checkpoint-00/shard-00000.safetensors    a shard, and its checksum in shard-00000.json
    DIRECTORY/store.json                   the finished store; written last

A row whose gradient is not finite is quarantined: its numbers are zeros, its norm is what was found, and
store.json lists it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file

from gtp_exp.errors import UserError
from gtp_exp.files import SealedFile, read_json, read_sealed, sha256_file, write_json, write_sealed
from gtp_exp.gradients.arrays import as_matrices
from gtp_exp.gradients.imported import ImportedArrays, imported_arrays
from gtp_exp.gradients.manifest import FORMAT, PLAN, ROWS, STORE, content_key, read_manifest
from gtp_exp.gradients.shards import (
    ShardedRows,
    StorageType,
    holds_shards,
    n_shards,
    read_tensor,
    shard_name,
    shard_tensors,
)
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)

COARSE = 0.1  # of a row's norm, by which its rounded numbers may be off


class GradientStore:
    """Reads a finished store through memory maps: opening it costs nothing, rows are read when asked for."""

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        """Read nothing yet. about: the content of store.json."""
        self.directory = directory
        self.about = about

    @classmethod
    def open(cls, path: Path | str) -> GradientStore:
        """Open the store in a directory. Raise UserError for one that is unfinished, damaged or of another
        format."""
        directory = at_home(path)
        return cls(directory, read_manifest(directory))

    @classmethod
    def from_arrays(
        cls,
        path: Path | str,
        arrays: Any,
        ids: Sequence[str] | None = None,
        learning_rates: Sequence[float] | None = None,
        direction: str = "sgd",
        subtasks: Sequence[str] | None = None,
    ) -> GradientStore:
        """Write a store of an array [N, d] (numpy, torch or memory map), or of a list of one per checkpoint.

        ids: one text per row, `row-0`, ... for None. learning_rates: one per checkpoint, all 1 for None.
        direction: what the numbers are, sgd (plain gradients), adam or less. subtasks: the group of each row,
        of a target's store that selectors aim at by group. Float16 and bfloat16 are kept,
        all else becomes float32. A folder that holds the same store is left as it is; raises UserError for
        one that holds another, and for arrays that do not fit, repeated ids or a row that is not finite.
        """
        matrices = as_matrices(arrays, "pool")
        source = imported_arrays(matrices, ids, learning_rates, direction, subtasks)
        return write_arrays(at_home(path), source)

    @property
    def key(self) -> str:
        """Return the hash of the store's content, the same wherever it lies."""
        return content_key(self.about)

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return self.about["rows"]

    @property
    def dim(self) -> int:
        """Return the number of values in a row."""
        return self.about["dim"]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which rows are read."""
        return StorageType(self.about["storage"]).dtype

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Return the mean learning rate of the segment before each checkpoint."""
        return tuple(checkpoint["learning_rate"] for checkpoint in self.about["checkpoints"])

    @property
    def directions(self) -> tuple[str, ...]:
        """Return which of sgd, adam, less are stored."""
        return tuple(self.about["directions"])

    @property
    def quarantined(self) -> torch.Tensor:
        """Return the rows whose gradient is not finite at some checkpoint, int64, ascending."""
        return torch.tensor(self.about["quarantined"], dtype=torch.long)

    @cached_property
    def _rows(self) -> Mapping[str, Any]:
        file = self.directory / ROWS
        content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self.about["sha256"][ROWS]:
            raise UserError(f"{file} is missing or damaged; make the store again")
        return json.loads(content)

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the id of each row."""
        return tuple(self._rows["ids"])

    @property
    def subtasks(self) -> tuple[str, ...] | None:
        """Return the group of each row; None where the store was made without."""
        names = self._rows.get("subtasks")
        return None if names is None else tuple(names)

    @property
    def n_tokens(self) -> torch.Tensor:
        """Return the number of completion tokens of each row, int64 [N]."""
        return torch.tensor(self._rows["n_completion_tokens"], dtype=torch.long)

    def features(self, checkpoint: int, direction: str) -> ShardedRows:
        """Return the sketched gradients [N, dim] at a checkpoint, in one of the stored directions."""
        self._check(checkpoint, direction)
        return ShardedRows(
            self._files(checkpoint),
            direction,
            self.about["shard_rows"],
            (self.n, self.dim),
            StorageType(self.about["storage"]),
        )

    def norms(self, checkpoint: int, direction: str) -> torch.Tensor:
        """Return the norm of each gradient after the direction and before the sketch, float32 [N]."""
        self._check(checkpoint, direction)
        return torch.cat([read_tensor(file, f"norm.{direction}") for file in self._files(checkpoint)])

    def verify(self) -> list[str]:
        """Describe damaged and missing files, one line each; return [] when every checksum is right."""
        problems = []
        for name, expected in self.about["sha256"].items():
            file = self.directory / name
            if not file.is_file():
                problems.append(f"{name}: missing")
            elif (actual := sha256_file(file)) != expected:
                problems.append(f"{name}: SHA-256 is {actual[:12]}..., recorded {expected[:12]}...")
        return problems

    @property
    def nbytes(self) -> int:
        """Return the bytes of all files together, but for store.json."""
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
        """Begin a store, or go on with one of the same settings; raise UserError at one of others.

        settings: everything the numbers depend on. rows: ids and token counts.
        resolve: what only the machine can tell (engine, token budget). It is asked once, by the first
        process, and recorded, so that whoever goes on computes the same bytes.
        """
        self.directory, self._ids, self._told_of_small = directory, rows["ids"], False
        if directory.exists() and not directory.is_dir():
            raise UserError(f"'{directory}' is a file, and a store is a folder; give another path")
        directory.mkdir(parents=True, exist_ok=True)
        settings, rows = json.loads(json.dumps([settings, rows]))  # as the files give them: lists for tuples
        with FileLock(str(directory / "plan.lock")):
            plan = self._recorded_plan(settings)
            if plan is None:
                plan = {**settings, **resolve()}
                write_json(directory / ROWS, rows)
                write_sealed(directory / PLAN, plan)
            elif read_json(directory / ROWS) != rows:  # one plan has one set of rows, so this is no choice
                log.warning("%s is damaged; it is written again", directory / ROWS)
                write_json(directory / ROWS, rows)
        self.plan = plan

    def _recorded_plan(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the plan of the store to go on with; None when there is none that can be trusted.

        What an earlier version, or processes that shared the weights, did not record is not compared.
        """
        file = self.directory / PLAN
        plan = read_sealed(file)
        if plan is None:
            self._refuse_files_of_others()
            if file.is_file():
                log.warning("%s is damaged; every shard of the store is computed again", file)
            for shards in [path for path in self.directory.iterdir() if holds_shards(path)]:  # of which plan?
                shutil.rmtree(shards)
        elif different := sorted(key for key in settings if key in plan and plan[key] != settings[key]):
            raise UserError(
                f"{self.directory} holds gradients with other settings ({', '.join(different)}); "
                "choose another directory or delete it"
            )
        return plan

    def _refuse_files_of_others(self) -> None:
        """Raise UserError where the folder, which has no plan, holds what no store has left there."""
        for path in sorted(self.directory.iterdir()):
            ours = path.name in (PLAN, ROWS, STORE) or path.suffix in (".lock", ".part")
            if not ours and not holds_shards(path):
                raise UserError(
                    f"{self.directory} holds {path.name}, which belongs to no gradient store; "
                    "give a new or empty folder"
                )

    @property
    def n_shards(self) -> int:
        """Return the number of shards of each checkpoint."""
        return n_shards(self.plan["rows"], self.plan["shard_rows"])

    def span(self, shard: int) -> range:
        """Return the rows that a shard holds."""
        size = self.plan["shard_rows"]
        return range(shard * size, min((shard + 1) * size, self.plan["rows"]))

    def missing(self) -> list[tuple[int, int]]:
        """Return the (checkpoint, shard) still to be written, with a warning of those that are damaged."""
        return [
            (checkpoint, shard)
            for checkpoint in range(len(self.plan["checkpoints"]))
            for shard in range(self.n_shards)
            if not self.intact(checkpoint, shard)
        ]

    def intact(self, checkpoint: int, shard: int) -> bool:
        """Say whether a shard is written and undamaged; warn of damage."""
        return self._file(checkpoint, shard).intact()

    def _file(self, checkpoint: int, shard: int) -> SealedFile:
        return SealedFile(self.directory / shard_name(checkpoint, shard))

    @contextlib.contextmanager
    def claim(self, checkpoint: int, shard: int, *, wait: bool) -> Iterator[bool]:
        """Hold the shard's lock inside; yield false when another process holds it and `wait` is false."""
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
        """Write a shard. features[d]: float32 [rows, dim]; norms[d]: float32 [rows].

        Raise UserError, by the example's id, for features that exceed the range of the storage type; warn,
        once, of such that are so small that it keeps little of them.
        """
        tensors = shard_tensors(features, norms, StorageType(self.plan["storage"]))
        for direction in features:
            finite = torch.isfinite(tensors[direction])
            if not finite.all():
                row = int((~finite).any(dim=1).nonzero()[0])
                raise UserError(
                    f"the {direction} features of example {self._ids[self.span(shard)[row]]} exceed the "
                    f"range of {self.plan['storage']}; set storage to bfloat16 or float32"
                )
            if not self._told_of_small and (small := _rounded_away(features[direction], tensors[direction])):
                log.warning(
                    "the %s features of example %s, and of %d more rows of its shard, are too small for %s, "
                    "which rounds them by more than a tenth; set storage to bfloat16 or float32",
                    direction,
                    self._ids[self.span(shard)[small[0]]],
                    len(small) - 1,
                    self.plan["storage"],
                )
                self._told_of_small = True
        file = self._file(checkpoint, shard)
        file.path.parent.mkdir(exist_ok=True)
        file.write(lambda partial: save_file(tensors, partial))

    def finish(self) -> GradientStore:
        """Write store.json from the shards' checksums. Every process may; all write the same bytes."""
        digests = {ROWS: sha256_file(self.directory / ROWS)}
        for checkpoint in range(len(self.plan["checkpoints"])):
            for shard in range(self.n_shards):
                name = shard_name(checkpoint, shard)
                checksum = self._file(checkpoint, shard).checksum()
                if checksum is None:
                    record = (self.directory / name).with_suffix(".json")
                    raise UserError(f"{record} was damaged meanwhile; run the same command again")
                digests[name] = checksum
        about = {"format": FORMAT, **self.plan, "sha256": digests}
        unlisted = GradientStore(self.directory, about)
        norms = [
            unlisted.norms(t, direction)
            for t in range(len(self.plan["checkpoints"]))
            for direction in unlisted.directions
        ]
        about["quarantined"] = (~torch.isfinite(torch.stack(norms)).all(0)).nonzero().flatten().tolist()
        with FileLock(str(self.directory / "plan.lock")):
            write_json(self.directory / STORE, about)
        # A process that still holds one of these finds its shard intact, or writes the same bytes again.
        for lock in self.directory.rglob("*.lock"):
            lock.unlink(missing_ok=True)
        return GradientStore.open(self.directory)


def _rounded_away(features: torch.Tensor, stored: torch.Tensor) -> list[int]:
    """Return the rows of features float32 [n, d] that a type of fewer bits keeps with an error of more than a
    tenth of their norm: float16 has no numbers between 0 and 6e-8."""
    if stored.dtype is not torch.float16:
        return []
    norms = torch.linalg.vector_norm(features, dim=1)
    # A number is off by a 2,048th of itself or by 2^-25, whichever is more: only rows of small norms can be
    # off by so much, and they alone are compared.
    small = (norms < features.shape[1] ** 0.5 * 2**-24 / COARSE).nonzero().flatten()
    error = torch.linalg.vector_norm(stored[small].float() - features[small], dim=1)
    return small[error > COARSE * norms[small]].tolist()


def write_arrays(directory: Path, source: ImportedArrays) -> GradientStore:
    """Write the store that checked arrays become, or complete what is there of it; return it."""
    writer = StoreWriter(directory, source.plan, source.rows, dict)
    for checkpoint, shard in writer.missing():
        with writer.claim(checkpoint, shard, wait=True):
            writer.write(checkpoint, shard, *source.shard(checkpoint, writer.span(shard)))
    return writer.finish()
