"""Read target and test rows of the user's own, in every form that a pool takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import TypeVar

from gtp_exp.data.examples import Example, Pool
from gtp_exp.data.forms import ColumnNames, Format, ReadAs, Record
from gtp_exp.data.reading import FirstSecond, expand, records_of_files
from gtp_exp.data.rows import read_pool
from gtp_exp.errors import UserError

Row = TypeVar("Row")


def check_rows_of(
    pattern: str,
    key: str,
    *,
    format: Format = Format.AUTO,
    columns: ColumnNames | None = None,
) -> None:
    """Read the first row of each file, and then all of them for a second. Raises UserError as `read_examples`
    for what shows in that."""
    for records in _records(pattern, format, columns):
        next(records)
    rows = FirstSecond(chain.from_iterable(_records(pattern, format, columns)))
    _check_usable(read_pool(rows, seen={}, tell=False), pattern, key)


def read_examples(
    pattern: str,
    key: str,
    name: str,
    *,
    format: Format = Format.AUTO,
    columns: ColumnNames | None = None,
) -> list[Example]:
    """Return the rows of a file, or of all that a glob pattern names, each with its `subtask`, by default the
    benchmark's name.

    A row without an id gets one of its file's name and its number. key: the option that names the file, for
    messages. Raises UserError for a row that is malformed or cannot be used.
    """
    pool = read_pool(chain.from_iterable(_records(pattern, format, columns)), seen={})
    _check_usable(pool, pattern, key)
    return [
        replace(e, subtask=_subtask(pool.hidden.get(e.id, {}).get("subtask", name), e.id, key))
        for e in pool.examples
    ]


def _check_usable(pool: Pool, pattern: str, key: str) -> None:
    """Raise UserError where rows were left out."""
    if pool.skipped:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in pool.skipped.items())
        raise UserError(
            f"{pattern} ({key}) holds rows that cannot be used ({reasons}); complete or remove them"
        )


def first_of_each(rows: Iterable[Row], subtask_of: Callable[[Row], str], limit: int | None) -> Iterator[Row]:
    """Yield the first rows of each subtask, in the order of the file; all for None."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(subtask_of(row), []).append(row)
    for group in groups.values():
        yield from islice(group, limit)


def check_limits(target_rows: int | None, test_rows: int | None) -> None:
    """Raise UserError for a limit of rows below 1."""
    for key, limit in (("target_rows", target_rows), ("test_rows", test_rows)):
        if limit is not None and limit < 1:
            raise UserError(
                f"benchmark.{key}={limit} leaves no rows; give a positive number, or null for all"
            )


def task_name(benchmark: str, subtask: str) -> str:
    """Return the name of the task of a subtask."""
    return benchmark if subtask == benchmark else f"{benchmark}_{subtask}"


def _records(pattern: str, format: Format, columns: ColumnNames | None) -> Iterator[Iterator[Record]]:
    """Yield the rows of each file with their layout."""
    return records_of_files(expand([pattern]), ReadAs(format, columns or ColumnNames(), group="benchmark"))


def _subtask(value: object, id: str, key: str) -> str:
    """Return the name of a row's subtask. Raises UserError where it is empty."""
    if not (named := str(value)).strip():
        raise UserError(f"the row '{id}' of {key} has an empty 'subtask'; name it, or leave the column out")
    return named
