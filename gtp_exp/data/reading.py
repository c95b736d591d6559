"""Read local files row by row: JSON lines, a JSON array, cells of text, all also packed; parquet, arrow."""

from __future__ import annotations

import contextlib
import glob
import importlib
import io
import json
import logging
import lzma
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gtp_exp.data.forms import ReadAs, Record, detect_layout
from gtp_exp.data.tables import cell_rows, column_rows, without_folders
from gtp_exp.data.values import TO_UTF8, Place
from gtp_exp.errors import NotHere, UserError, first_line
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)

LINES = (".jsonl", ".ndjson")

CELLS = {".csv": ",", ".tsv": "\t"}  # what is between the cells
COLUMNS = (".parquet", ".arrow")  # these are not read from within a packed file
SUFFIXES = (*LINES, ".json", *CELLS, *COLUMNS)
# What a text file may be packed with, by its last suffix, in the words of fsspec.
PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the files that paths and glob patterns name, a pattern's in sorted order.

    Raises UserError for a pattern that names none, for a folder, for an unknown suffix and for a file named
    twice.
    """
    paths: list[Path] = []
    for pattern in patterns:
        literal = at_home(pattern)
        matches = (
            [literal] if literal.exists() else sorted(map(Path, glob.glob(str(literal), recursive=True)))
        )
        if not matches:
            log.info("looked for %s", literal.absolute())
            raise NotHere(f"no such file: {pattern}; a path is relative to the working directory")
        for path in matches:
            if path.is_dir():
                raise UserError(f"{shown(path)} is a folder; name its files, such as '{_files_in(path)}'")
            check_kind(path, shown(path))
        paths += matches
    given: dict[Path, list[Path]] = {}
    for path in paths:
        given.setdefault(path.resolve(), []).append(path)
    for same in given.values():
        if len(same) > 1:
            raise UserError(f"{shown(same[0])} is named {len(same)} times; name each file once")
    return paths


def _files_in(folder: Path) -> str:
    """Return a pattern of a folder's files of rows; .json comes last, as beside a table it describes that."""
    kinds: set[tuple[str, str]] = set()
    with contextlib.suppress(OSError):  # of a folder that may not be listed
        kinds = {_kind(path) for path in folder.iterdir()}
    known = ((kind, packed) for kind in (*LINES, *COLUMNS, *CELLS, ".json") for packed in ("", *PACKED))
    return f"{shown(folder)}/*{''.join(next((each for each in known if each in kinds), LINES[:1]))}"


def check_kind(path: Path, name: str) -> None:
    """Raise UserError for a file that is not read row by row, with the remedy. name: for messages."""
    kind, packed = _kind(path)
    if kind in SUFFIXES and not (packed and kind in COLUMNS):
        return
    if packed or kind in _ARCHIVES:
        raise UserError(f"{name} is packed: unpack it and name the files that were in it")
    raise UserError(
        f"{name} is none of {', '.join(SUFFIXES)}, nor packed as {', '.join(PACKED)}; convert or rename it"
    )


def _kind(path: Path) -> tuple[str, str]:
    """Return the suffix that tells a file's form, and the one that tells how it is packed: `.json`, `.gz`."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in PACKED else (last, "")


def stem(path: Path) -> str:
    """Return a file's name without the suffixes that tell its form."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def shown(path: Path) -> str:
    """Return a path as messages name it: as it was given, with ~ for the home folder.

    Messages end up in records and on pages that are shared.
    """
    home = Path(os.path.expanduser("~"))
    return (
        str("~" / path.relative_to(home)) if path.is_absolute() and path.is_relative_to(home) else str(path)
    )


def stems(paths: Sequence[Path]) -> list[str]:
    """Return what made-up ids begin with: each file's name, and its number where names repeat.

    No folder is in it, so that ids are the same on every machine.
    """
    names = [stem(path) for path in paths]
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def records_of(
    rows: Iterable[tuple[Place, Mapping[str, Any]]],
    where: str,
    asked: ReadAs,
    *,
    stem: str,
    source: str | None = None,
) -> Iterator[Record]:
    """Yield the rows of one file with their layout, which the first row decides. Raises UserError if there is
    no row."""
    layout = None
    for place, row in rows:
        if layout is None:
            layout = detect_layout(row.keys(), str(place), asked, stem=stem, source=source)
        yield place, row, layout
    if layout is None:
        raise UserError(f"{where} holds no rows")


class FirstSecond:
    """Yields rows for a second and no longer: what is wrong with most files shows in that."""

    SECONDS = 1.0

    def __init__(self, records: Iterable[Record]) -> None:
        """Take the rows to yield; none is read yet."""
        self._records = records
        self.stopped = False  # whether there may be more rows than were yielded

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows until the time is over."""
        end = time.monotonic() + self.SECONDS
        for record in self._records:
            yield record
            if time.monotonic() > end:
                self.stopped = True
                return


def records_of_files(paths: Sequence[Path], asked: ReadAs) -> Iterator[Iterator[Record]]:
    """Yield for each file its rows with their layout; each file may have its own form."""
    for path, made_up in zip(paths, stems(paths), strict=True):
        yield records_of(read_rows(path), shown(path), asked, stem=made_up)


def read_rows(path: Path, name: str | None = None) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the rows of a file with their place.

    name: how messages name the file, for one that the user did not give as a path. Raises UserError where it
    cannot be read.
    """
    name = shown(path) if name is None else name
    check_kind(path, name)
    kind, packed = _kind(path)
    try:
        if kind in COLUMNS:
            yield from column_rows(path, name)
            return
        with _unpacked(path, packed, name) as handle:
            if kind in CELLS:
                yield from cell_rows(handle, CELLS[kind], name)
            elif kind == ".json" and handle.peek(256).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
                yield from _json_array(handle.read(), name)
            else:
                yield from parse_lines(handle, name)
    except OSError as error:
        reason = error.strerror or without_folders(first_line(error))
        raise UserError(f"{name} cannot be read: {reason}") from error
    except (EOFError, *_damages()) as error:  # type: ignore[misc]  # not known before it runs
        raise UserError(f"{name} is cut short or damaged: {first_line(error)}; get it again") from error


@contextlib.contextmanager
def _unpacked(path: Path, packed: str, name: str) -> Iterator[io.BufferedReader]:
    """Open a file and unpack it on the way. Raises UserError where a package is needed for that."""
    with open(path, "rb") as file:
        if not packed:
            yield file
            return
        from fsspec.compression import compr

        openers = cast("dict[str, Any]", compr)
        if PACKED[packed] not in openers:
            raise UserError(
                f"{name} is packed as {packed}, which needs a package (pip install zstandard); "
                "or unpack it (zstd -d)"
            )
        yield io.BufferedReader(openers[PACKED[packed]](file, mode="rb"))


def _damages() -> list[type[Exception]]:
    """Return what a damaged packed file raises, as far as it is no OSError."""
    exceptions: list[type[Exception]] = [zlib.error, lzma.LZMAError]
    with contextlib.suppress(ImportError):
        exceptions.append(importlib.import_module("zstandard").ZstdError)
    return exceptions


def parse_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield one JSON object per line; blank lines are passed over.

    The lines come as bytes because text mode and `splitlines` would also break at characters such as U+2028,
    which JSON texts may hold.
    """
    for number, raw in enumerate(lines, 1):
        place = Place(name, number)
        text = _decode(raw, place)
        if text.strip():
            yield place, _object(_parse(text, place), place)


def read_text(path: Path) -> str:
    """Return the text of a file without the byte order mark. Raises UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8 ({error.reason}); {TO_UTF8}") from error
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from error


def _json_array(raw: bytes, name: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the objects of one JSON array."""
    whole = Place(name, 1)
    for number, value in enumerate(_parse(_decode(raw, whole), whole), 1):
        place = Place(name, number, "row")
        yield place, _object(value, place)


def _decode(raw: bytes, place: Place) -> str:
    """Return a line as text, without the byte order mark. Raises UserError if it is not UTF-8."""
    if place.number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place} is not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}; {TO_UTF8}"
        ) from error


def _parse(text: str, place: Place) -> Any:
    """Return the JSON value of a text. Raises UserError for anything that is not strict JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise UserError(f"{place} is nested too deeply to be read") from None
    except json.JSONDecodeError as error:  # its own line counts within the text
        told = error.msg.removesuffix(" at")
        raise UserError(f"{place} is not JSON: {told} at character {error.pos + 1}") from error
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary. Raises ValueError for a key that occurs twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return values


def _refuse(constant: str) -> Any:
    """Raise ValueError for NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{constant} is no JSON value")


def _object(value: Any, place: Place) -> Mapping[str, Any]:
    """Return the value if it is a JSON object. Raises UserError otherwise."""
    if not isinstance(value, dict):
        hint = "; a whole array belongs into a .json file" if isinstance(value, list) else ""
        raise UserError(f"{place} must hold one JSON object, found {type(value).__name__}{hint}")
    return value
