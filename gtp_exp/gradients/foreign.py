"""Map the gradient files of other projects into memory: LESS's, bergson's and numpy's.

LESS (princeton-nlp/LESS, commit 8abf962, less/data_selection/collect_grad_reps.py) writes for each checkpoint
a folder `NAME-ckptC-adam/dim8192`, with all_unormalized.pt and, every row divided by its length, all_orig.pt:
one tensor [N, d] each. What it calls adam is the direction `less` here.
bergson (EleutherAI/bergson 2.5.1, commit 3c66bb5, bergson/data.py) writes a folder with gradients.bin, whose
rows hold the modules' values one after the other, and info.json, which tells their number, sizes and type.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gtp_exp.data.reading import read_rows, read_text
from gtp_exp.data.values import Place
from gtp_exp.errors import UserError, first_line
from gtp_exp.files import read_json
from gtp_exp.gradients.arrays import ArrayRows, as_matrix

LESS_FILES = ("all_unormalized.pt", "all_orig.pt")  # the first that is there stands for the folder
BERGSON_TYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class ForeignMatrix:
    """Holds the gradients [N, d] at one checkpoint, mapped and not read."""

    file: Path
    rows: ArrayRows
    direction: str | None = None  # sgd or less, where the file's name tells


def read_less(path: Path) -> ForeignMatrix:
    """Map a .pt file of LESS, or the one in a folder: dim8192, or the folder that holds a single such."""
    file = _less_file(path)
    if not zipfile.is_zipfile(file):
        raise UserError(
            f"{file} is no whole .pt file (truncated, or written before PyTorch 1.6); copy it again, or "
            "load it and torch.save it anew"
        )
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever the unpickler meets in a file that is not what it should be
        raise UserError(
            f"{file} cannot be read as a tensor ({first_line(error)}); LESS's all_orig.pt and "
            "all_unormalized.pt hold one tensor [rows, dimension] each"
        ) from error
    if not isinstance(tensor, torch.Tensor):
        raise UserError(
            f"{file} holds a {type(tensor).__name__}; LESS's all_orig.pt and all_unormalized.pt hold one "
            "tensor [rows, dimension] each"
        )
    named = re.search(r"-(adam|sgd)(?:/dim\d+)?(?:/[^/]+\.pt)?$", str(file.absolute()))
    direction = {"adam": "less", "sgd": "sgd"}[named[1]] if named else None
    return ForeignMatrix(file, as_matrix(tensor, str(file)), direction)


def _less_file(path: Path) -> Path:
    """Return the file that a path of LESS stands for."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give LESS's .pt file or its folder dim8192")
    folders = [path, *sorted(path.glob("dim*"))]
    found = [file for folder in folders if (file := _first_file(folder)) is not None]
    if len(found) != 1:
        what = "none" if not found else f"several ({', '.join(str(file.parent) for file in found)})"
        raise UserError(f"{path} holds {what} of {' or '.join(LESS_FILES)}; name the .pt file itself")
    return found[0]


def _first_file(folder: Path) -> Path | None:
    return next((folder / name for name in LESS_FILES if (folder / name).is_file()), None)


def read_bergson(path: Path) -> ForeignMatrix:
    """Map the gradients.bin of a folder that bergson has written, by its info.json."""
    file, record = path / "gradients.bin", path / "info.json"
    if not file.is_file() or not record.is_file():
        missing = file if not file.is_file() else record
        raise UserError(
            f"{missing} does not exist; give the folder (run_path) that bergson build has written"
        )
    info = read_json(record)
    try:
        n, sizes, kind, packed = _bergson_layout(info)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{record} is not the record of a bergson index ({type(error).__name__}: {error}); build it again"
        ) from error
    if info.get("attribute_tokens"):
        raise UserError(
            f"{record}: the index has a row for every token (attribute_tokens); build it again with a row "
            "for every example"
        )
    if kind not in BERGSON_TYPES or not packed:
        raise UserError(f"{record}: rows of {kind} cannot be read; build the index in {BERGSON_TYPES[0]}")
    dtype, dim = getattr(torch, kind), sum(sizes)
    expected, size = n * dim * dtype.itemsize, file.stat().st_size
    if size != expected or not expected:
        cut = "it is truncated; copy it again" if size < expected else "build the index again"
        raise UserError(
            f"{file} has {size:,} bytes, and {n:,} rows of {dim:,} {kind} values are {expected:,}: {cut}"
        )
    values = torch.from_file(str(file), shared=False, size=n * dim, dtype=dtype)
    return ForeignMatrix(file, as_matrix(values.view(n, dim), str(file)))


def _bergson_layout(info: Any) -> tuple[int, list[int], str, bool]:
    """Return the number of rows, the sizes of the modules, the type of a value, and whether rows lie without
    gaps. info: of this version, or of one whose rows were structured arrays with a field for each module."""
    n, sizes = int(info["num_grads"]), [int(size) for size in info["grad_sizes"].values()]
    if "base_dtype" in info:
        return n, sizes, str(info["base_dtype"]), True
    fields = info["dtype"]
    kinds = {np.dtype(each).base for each in fields["formats"]}
    if len(kinds) != 1:
        raise ValueError(f"fields of {len(kinds)} types")
    kind = kinds.pop()
    packed = int(fields["itemsize"]) == sum(sizes) * kind.itemsize
    return n, sizes, kind.name, packed


def read_numpy(path: Path) -> ForeignMatrix:
    """Map a .npy file that holds an array [N, d] of numbers."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {state}; give one .npy file for each checkpoint")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is no whole .npy file of numbers ({first_line(error)}); write it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} holds several arrays; save each checkpoint's as a .npy file of its own")
    return ForeignMatrix(path, as_matrix(array, str(path)))


READERS: dict[str, Callable[[Path], ForeignMatrix]] = {
    "less": read_less,
    "bergson": read_bergson,
    "numpy": read_numpy,
}


def read_labels(file: Path, key: str) -> list[str]:
    """Return one text per row: the lines of a text file, a JSON list of texts or numbers, or each row's `key`
    of a JSON list of rows and of .jsonl.

    Raise UserError that names the file, and the line where one is to blame.
    """
    if file.suffix == ".jsonl":
        return [str(_of_entry(place, row, key)) for place, row in read_rows(file)]
    text = read_text(file)
    if file.suffix != ".json":
        return text.removesuffix("\n").split("\n")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON ({error})") from error
    if not isinstance(values, list):
        raise UserError(f"{file} holds no JSON list; give one value for each row")
    places = [Place(str(file), number, "entry") for number in range(1, len(values) + 1)]
    return [str(_of_entry(*entry, key)) for entry in zip(places, values, strict=True)]


def _of_entry(place: Place, value: Any, key: str) -> Any:
    """Return a text or a number of a list, or the value of a key where it is a row."""
    if isinstance(value, dict):
        value = _of_row(place, value, key)
    if not isinstance(value, (str, int, float)):
        raise UserError(f"{place}: {value!r} is neither a text nor a number; give one of these for each row")
    return value


def _of_row(place: Place, row: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key in a row."""
    if row.get(key) is None:
        raise UserError(f"{place}: the row has no '{key}'; give a file with one for every row")
    return row[key]


def equal_groups(count: int, rows: int) -> list[str]:
    """Return the labels of so many groups of consecutive rows, as LESS has its subtasks."""
    if count < 1 or rows % count:
        raise UserError(
            f"--subtasks {count}: {rows} rows are not {count} groups of one size; give a file with the label "
            "of every row"
        )
    width = int(math.log10(count)) + 1
    return [f"subtask-{i * count // rows:0{width}d}" for i in range(rows)]
