"""Read the rows of a table: columns of values (parquet, arrow) or cells of text (csv, tsv)."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_exp.data.values import TO_UTF8, Place
from gtp_exp.errors import UserError, first_line

BLOCK = 1024  # rows turned into Python objects at a time


def column_rows(path: Path, name: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the rows of a parquet or an arrow file, a batch at a time. name: of the file, for messages."""
    import pyarrow

    kind, number = path.suffix.lower().removeprefix("."), 0
    try:
        for batch in _parquet(path) if kind == "parquet" else _arrow(path):
            _check_named_once(batch.schema.names, name)
            for row in batch.to_pylist():
                number += 1
                yield Place(name, number, "row"), row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = without_folders(first_line(error))
        raise UserError(f"{name} cannot be read as {kind}, after row {number}: {reason}") from error


def _parquet(path: Path) -> Iterator[Any]:
    """Yield the batches of a parquet file."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BLOCK)


def _arrow(path: Path) -> Iterator[Any]:
    """Yield the batches of an arrow file: a stream, as `datasets` writes it, or one with an index at its
    end."""
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source:
        indexed = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = ipc.open_file(source) if indexed else ipc.open_stream(source)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader
        for batch in batches:
            for start in range(0, batch.num_rows, BLOCK):
                yield batch.slice(start, BLOCK)


def cell_rows(file: io.BufferedReader, between: str, name: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the rows of a table of texts below its header; blank lines are passed over.

    between: what separates cells; a cell in quotes may hold it, and line breaks. Raises UserError for a row
    with more or fewer cells than the header.
    """
    csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)  # by default 128 KiB a cell
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader, number = csv.reader(text, delimiter=between, strict=True), 0
    try:
        header = next(reader, [])
        _check_separated(header, between, name)
        _check_named_once(header, name)
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                raise UserError(
                    f"{name} row {number} (it ends in line {reader.line_num}) has {len(cells)} cells, the "
                    f"header {len(header)}; put a text that holds {between!r} or line breaks into quotes"
                )
            yield Place(name, number, "row"), dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{name}:{reader.line_num} cannot be read as a table: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 after row {number}; {TO_UTF8}") from error
    finally:
        text.detach()


def _check_separated(header: Sequence[str], between: str, name: str) -> None:
    """Raise UserError for a single column whose name shows that something else is between the cells."""
    for other in (",", ";", "\t"):
        if len(header) == 1 and other != between and other in header[0]:
            remedy = f"write it with {between!r}"
            if suffix := {"\t": ".tsv", ",": ".csv"}.get(other):
                remedy += f", or name it {suffix}"
            raise UserError(f"{name} has {other!r} between its cells, and not {between!r}; {remedy}")


def _check_named_once(columns: Sequence[str], name: str) -> None:
    """Raise UserError for two columns of one name, of which a row would hold the last alone."""
    if twice := [column for column, times in Counter(columns).items() if times > 1]:
        raise UserError(f"{name} has two columns '{twice[0]}'; name each once")


def without_folders(text: str) -> str:
    """Return another library's message without the folders of this machine: /home/me/a.json becomes
    …/a.json."""
    return re.sub(r"(?<![\w/:.~…-])/(?:[^\s/'\"]+/)+", "…/", text)
