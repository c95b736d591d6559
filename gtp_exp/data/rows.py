"""Turn rows of a file or a hub data set into a pool: recognise their form, check them, count what is left
out."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm import tqdm

from gtp_exp.data.conversations import KEY_PAIRS, as_example
from gtp_exp.data.examples import Example, Pool
from gtp_exp.data.fields import NOT_READ_HERE, OF_TRAINING, REASONING, TRAIN, LeftOut
from gtp_exp.data.forms import Ids, Record, RowLayout
from gtp_exp.data.values import Place, as_text
from gtp_exp.errors import UserError

log = logging.getLogger(__name__)

Scalar = str | int | float | bool


def read_pool(
    records: Iterable[Record],
    *,
    seen: dict[str, Place],
    limit: int | None = None,
    strict: bool = False,
    tell: bool = True,
) -> Pool:
    """Return a pool of the rows that hold a completion; the others are counted in `Pool.skipped`.

    seen: every id so far and where it stands, skipped rows included; extended here, so that ids stay unique
    over several calls. limit: stop at this many examples. tell: whether to log what is left out and what is
    not used. Raises UserError on a row that is malformed, and with `strict` on one that would be skipped.
    """
    examples: list[Example] = []
    hidden: dict[str, dict[str, Scalar]] = {}
    skipped: dict[str, list[str]] = {}
    unread: Counter[str] = Counter()
    for place, row, layout in tqdm(records, desc="read data", unit="row", delay=2.0):
        example_id = _id(row, place, layout)
        if example_id in seen:
            raise UserError(
                f"id '{example_id}' occurs twice: {seen[example_id]} and {place}; make ids unique"
                + _remedy(layout, same_file=seen[example_id].name == place.name)
            )
        seen[example_id] = place
        unread.update(_unread(row, layout))
        try:
            examples.append(as_example(example_id, row, place, layout))
        except LeftOut as reason:
            if strict:
                raise UserError(
                    f"{place} cannot be used: {reason}; correct it, or set dataset.strict=false to leave "
                    "such rows out"
                ) from None
            skipped.setdefault(str(reason), []).append(example_id)
            continue
        facts = _facts(row, place, layout)
        if facts:
            hidden[example_id] = facts
        if len(examples) == limit:
            break
    if tell:
        _log_unused(skipped, unread)
    return Pool(tuple(examples), hidden, {reason: len(ids) for reason, ids in skipped.items()})


def _log_unused(skipped: Mapping[str, list[str]], unread: Mapping[str, int]) -> None:
    """Name the rows that are left out, with the reason, and the fields that are not used."""
    for reason, ids in skipped.items():
        log.warning(
            "left out %d rows (%s): %s", len(ids), reason, ", ".join(ids[:3] + ["..."][: len(ids) - 3])
        )
    if unread:
        named = ", ".join(f"{name} ({n} rows)" for name, n in sorted(unread.items()))
        log.warning("these fields of the data are not used: %s", named)


def _remedy(layout: RowLayout, *, same_file: bool) -> str:
    """Return what of the options of `dataset` makes repeated ids unique, to end a message with."""
    if layout.ids is None:
        return ""
    by_file = "" if same_file else "dataset.ids=file to put the file's name before them, "
    return f", or set {by_file}dataset.ids=number to number the rows, or dataset.columns.id to another column"


def join_pools(pools: Iterable[Pool]) -> Pool:
    """Return one pool of several, in their order."""
    examples: list[Example] = []
    hidden: dict[str, Mapping[str, Any]] = {}
    skipped: Counter[str] = Counter()
    for pool in pools:
        examples.extend(pool.examples)
        hidden.update(pool.hidden)
        skipped.update(pool.skipped)
    return Pool(tuple(examples), hidden, dict(skipped))


def subset(pool: Pool, rows: int | None, rng: random.Random, where: str) -> Pool:
    """Return a pool of `rows` random examples in the pool's order, every subset equally likely; all for None.

    Raises UserError if the pool is empty or too small.
    """
    left_out = ", ".join(f"{n} {reason}" for reason, n in pool.skipped.items())
    note = f" ({left_out})" if left_out else ""
    if not pool.examples:
        raise UserError(f"{where} holds no usable row{note}: every row needs a completion")
    if rows is None:
        return pool
    if rows > len(pool.examples):
        raise UserError(
            f"rows={rows} is more than the {len(pool.examples)} usable rows of {where}{note}; "
            "lower it, or set null for all"
        )
    chosen = [pool.examples[i] for i in sorted(rng.sample(range(len(pool.examples)), rows))]
    hidden = {e.id: pool.hidden[e.id] for e in chosen if e.id in pool.hidden}
    return Pool(tuple(chosen), hidden, pool.skipped)


def check_rows(rows: int | None, key: str) -> None:
    """Raise UserError for a number of rows below 1. key: its name in the configuration."""
    if rows is not None and rows < 1:
        raise UserError(f"{key}={rows} leaves no candidates; give a positive number, or null for all rows")


def _id(row: Mapping[str, Any], place: Place, layout: RowLayout) -> str:
    """Return the id of a row: its own, or one made of the file and the row number."""
    if layout.id_column is None:
        if layout.ids is not Ids.NUMBER and row.get("id") is not None:
            raise UserError(
                f"{place} has an 'id', which the file's first row has not; give each row an id, or none"
            )
        return f"{layout.stem}-{place.number:06d}"
    if layout.id_column not in row:
        raise UserError(
            f"{place} has no '{layout.id_column}', which other rows of the file have; give each row an id"
        )
    value = row[layout.id_column]
    if not isinstance(value, int) or isinstance(value, bool):
        value = as_text(value, layout.id_column, place)
    if value == "":
        raise UserError(f"{place} has an empty '{layout.id_column}'; give each row an id")
    return f"{layout.stem}-{value}" if layout.ids is Ids.FILE else str(value)


def _unread(row: Mapping[str, Any], layout: RowLayout) -> set[str]:
    """Return the fields of a row, and of its messages, that say something and are not used for training or
    reports."""
    columns = layout.columns
    own = (layout.id_column, *layout.parts, *NOT_READ_HERE)
    names = {
        str(name)
        for name, value in row.items()
        if name not in own
        and value not in (None, "")
        and (name in OF_TRAINING or (value and isinstance(value, (list, tuple, Mapping))))
    }
    keys = (*KEY_PAIRS[0], *KEY_PAIRS[1], columns.role, columns.content)
    known = (*keys, *REASONING, *TRAIN, *NOT_READ_HERE)
    for column in layout.turns:
        turns = row.get(column)
        for turn in turns if isinstance(turns, (list, tuple)) else ():
            if isinstance(turn, Mapping):
                names |= {f"{column}.{name}" for name, value in turn.items() if name not in known and value}
    return names


def _facts(row: Mapping[str, Any], place: Place, layout: RowLayout) -> dict[str, Scalar]:
    """Return the other columns, for reports: scalars only, without missing values."""
    facts: dict[str, Scalar] = {}
    for name, value in row.items():
        if name in layout.parts or name == layout.id_column:
            continue
        if isinstance(value, str):
            facts[as_text(name, "a column name", place)] = as_text(value, name, place)
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            facts[as_text(name, "a column name", place)] = value
    if layout.source is not None:
        facts["source"] = layout.source
    return facts
