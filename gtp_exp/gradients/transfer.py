"""Make a gradient store of files that other projects have written, and numpy files of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gtp_exp.errors import UserError
from gtp_exp.files import SealedFolder, write_json
from gtp_exp.gradients.arrays import checked_ids
from gtp_exp.gradients.foreign import READERS, ForeignMatrix, equal_groups, read_labels
from gtp_exp.gradients.imported import imported_arrays
from gtp_exp.gradients.manifest import PLAN, STORE
from gtp_exp.gradients.store import GradientStore, write_arrays

CHUNK = 4096  # rows that are exported at a time


@dataclass(frozen=True)
class ImportOptions:
    """Says what the files of another project do not: which rows these are, and what their numbers mean."""

    ids: Path | None = None  # a line, an entry or an `id` for each row; None numbers the rows
    learning_rates: tuple[float, ...] | None = None  # one per checkpoint; None: all weigh the same
    direction: str | None = None  # sgd, adam or less; None: as LESS's folders tell, else sgd
    subtasks: str | None = None  # a file with the label of each row, or a number of equal groups


def import_store(kind: str, paths: Sequence[Path], out: Path, options: ImportOptions) -> GradientStore:
    """Write the store `out` of the files of another project, one path per checkpoint, and return it.

    kind: less, bergson or numpy. Files are mapped and copied shard by shard, never read as a whole; an
    interrupted import goes on where it was. Rows that are not finite at some checkpoint are quarantined, as
    in a store that is collected. Raise UserError, by file, for what cannot be read or does not agree.
    """
    _check_out(out)
    matrices = [READERS[kind](path) for path in paths]
    first = matrices[0]
    for matrix in matrices[1:]:
        if matrix.rows.shape != first.rows.shape:
            raise UserError(
                f"{matrix.file} holds {_shape(matrix)} and {first.file} {_shape(first)}; every checkpoint "
                "holds the same rows in the same dimension"
            )
    n = first.rows.shape[0]
    source = imported_arrays(
        [matrix.rows for matrix in matrices],
        _ids(options.ids, first),
        options.learning_rates,
        options.direction or _direction(matrices),
        _subtasks(options.subtasks, n),
        quarantine=True,
    )
    return write_arrays(out, source)


def _shape(matrix: ForeignMatrix) -> str:
    return "{:,} rows of {:,} values".format(*matrix.rows.shape)


def _check_out(out: Path) -> None:
    """Raise UserError for a place that holds anything but an import that was interrupted."""
    unfinished = (out / PLAN).is_file() and not (out / STORE).is_file()
    if out.exists() and not unfinished and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; choose another folder, or delete it")


def _ids(file: Path | None, first: ForeignMatrix) -> list[str] | None:
    """Return the ids of a file; raise UserError, by file, where they do not fit the rows."""
    if file is None:
        return None
    ids = read_labels(file, "id")
    try:
        return list(checked_ids(ids, first.rows.shape[0]))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _direction(matrices: Sequence[ForeignMatrix]) -> str:
    """Return what the files' names tell of their numbers; sgd, plain gradients, where they tell nothing."""
    told = {matrix.direction for matrix in matrices}
    if len(told) > 1:
        raise UserError(
            f"the checkpoints' folders name several directions ({', '.join(sorted(map(str, told)))}); give "
            "checkpoints of one, or --direction"
        )
    return told.pop() or "sgd"


def _subtasks(given: str | None, n: int) -> list[str] | None:
    """Return the label of each row; raise UserError, by file, where there are more or fewer."""
    if given is None:
        return None
    if given.isdecimal():
        return equal_groups(int(given), n)
    labels = read_labels(Path(given), "subtask")
    if len(labels) != n:
        raise UserError(
            f"{given} has {len(labels):,} labels, and there are {n:,} rows; give one for each row"
        )
    return labels


def export_numpy(store: GradientStore, out: Path) -> list[str]:
    """Write a store's arrays as .npy files into a new folder, and return the names of all files in it.

    For each checkpoint and direction `checkpoint-00.sgd.npy` [N, d] and the norms before the sketch,
    `checkpoint-00.sgd.norm.npy` [N]; ids.json, and subtasks.json where the store has subtasks; manifest.json
    with the rest. float16 stays, all else is float32; a row in quarantine is NaN. Raise UserError for a store
    that is damaged, and for a folder that exists.
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another folder, or delete it")
    if problems := store.verify():
        raise UserError(f"{store.directory} is damaged ({problems[0]}); make it again")
    folder = SealedFolder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = folder.begin(resume=False)
    kind = np.float16 if store.dtype is torch.float16 else np.float32
    for t in range(len(store.learning_rates)):
        for direction in store.directions:
            name = f"checkpoint-{t:02d}.{direction}"
            norms = store.norms(t, direction)
            shape = (store.n, store.dim)
            array = np.lib.format.open_memmap(part / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
            for start, chunk in store.features(t, direction).chunks(CHUNK):
                array[start : start + len(chunk)] = chunk.float().numpy()
            array[store.quarantined.numpy()] = np.nan
            array.flush()
            del array
            np.save(part / f"{name}.norm.npy", norms.float().numpy())
    write_json(part / "ids.json", list(store.ids))
    if store.subtasks is not None:
        write_json(part / "subtasks.json", list(store.subtasks))
    kept = ("rows", "dim", "directions", "checkpoints", "sketch", "seed", "quarantined")
    folder.finish({key: store.about[key] for key in kept})
    return sorted(file.name for file in out.iterdir())
