"""Turn rows of a file or a hub data set into a pool: recognise their form, check them, count what is left
out."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Optional

from tqdm import tqdm

from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.fields import (
    NOT_READ_HERE,
    OF_TRAINING,
    REASONING,
    TRAIN,
    LeftOut,
    check_known,
    history_of,
    is_trained,
    reasoning_of,
    tools_of,
)
from gtp_exp.errors import UserError

log = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

EMPTY = "empty completion"
NO_ASSISTANT = "no assistant turn"
OPEN_END = "last turn is not the assistant's"


class Format(Enum):
    """Names the forms in which a row can hold a conversation."""

    AUTO = "auto"  # told by the columns of each file
    MESSAGES = "messages"  # a list of {role, content}
    PROMPT_COMPLETION = "prompt_completion"
    ALPACA = "alpaca"  # instruction, input (may be empty), output


class Ids(Enum):
    """Says what the id of a row is made of."""

    COLUMN = "column"  # columns.id, else a column `id`, else the file's name and the row's number
    FILE = "file"  # the same with the file's name before it: for files that each count their rows from 0
    NUMBER = "number"  # the file's name and the row's number, whatever columns there are


@dataclass(frozen=True)
class ColumnNames:
    """Names the column of each part; only those of the form in use are read."""

    id: Optional[str] = None
    messages: str = "messages"
    role: str = "role"  # key within a message
    content: str = "content"  # key within a message
    prompt: str = "prompt"
    completion: str = "completion"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    system: str = "system"
    history: str = "history"
    tools: str = "tools"


class Place(NamedTuple):
    """Says where a row stands, for messages and for made-up ids."""

    name: str
    number: int  # from 1
    unit: str = ""  # "" for a line of a text file, "row" elsewhere

    def __str__(self) -> str:
        return f"{self.name} {self.unit} {self.number}" if self.unit else f"{self.name}:{self.number}"


Scalar = str | int | float | bool


@dataclass(frozen=True)
class RowLayout:
    """Says how the rows of one file are read."""

    format: Format
    columns: ColumnNames
    id_column: str | None  # None: ids are made of `stem` and the row number
    stem: str
    source: str | None = None  # label of the file in a mixture, kept among the hidden facts
    ids: Ids | None = None  # None: not of a pool, so that the options of `dataset` say nothing of it
    group: str = "dataset"  # whose options describe the file, for messages

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the columns that are the example itself; all others are hidden facts."""
        columns = self.columns
        of_the_form = {
            Format.MESSAGES: (columns.messages,),
            Format.PROMPT_COMPLETION: (columns.prompt, columns.completion, *REASONING),
            Format.ALPACA: (columns.instruction, columns.input, columns.output, *REASONING),
        }[self.format]
        return (*of_the_form, columns.system, columns.history, columns.tools)


def detect_layout(
    present: Collection[str],
    where: str,
    *,
    format: Format,
    columns: ColumnNames,
    stem: str,
    source: str | None = None,
    ids: Ids | None = None,
    group: str = "dataset",
) -> RowLayout:
    """Return how to read a file that has the columns `present`. ids: None for rows that are not of a pool.

    Raises UserError where they do not fit, with the columns that are there.
    """
    needed = {
        Format.MESSAGES: [columns.messages],
        Format.PROMPT_COMPLETION: [columns.prompt, columns.completion],
        Format.ALPACA: [columns.instruction, columns.output],
    }
    listed = ", ".join(sorted(map(str, present))) or "no columns"
    if format is Format.AUTO:
        fitting = [form for form, names in needed.items() if all(name in present for name in names)]
        if len(fitting) != 1:
            forms = " or ".join("+".join(names) for names in needed.values())
            problem = "fit several forms" if fitting else "fit no known form"
            raise UserError(
                f"{where} has the columns {listed}: they {problem}. Known are {forms}; "
                f"set {group}.format, and {group}.columns if yours are named otherwise"
            )
        format = fitting[0]
    for name in needed[format]:
        if name not in present:
            raise UserError(
                f"{where} has no column '{name}', which {group}.format={format.value} reads; it has "
                f"{listed}. Name the right column in {group}.columns"
            )
    if ids is Ids.NUMBER:
        return RowLayout(format, columns, None, stem, source, ids, group)
    if columns.id is not None and columns.id not in present:
        raise UserError(
            f"{where} has no column '{columns.id}' ({group}.columns.id); it has {listed}. "
            f"Name the right column, or set {group}.{'columns.id=null' if ids is None else 'ids=number'}"
        )
    id_column = columns.id if columns.id is not None else ("id" if "id" in present else None)
    return RowLayout(format, columns, id_column, stem, source, ids, group)


Record = tuple[Place, Mapping[str, Any], RowLayout]


def read_pool(
    records: Iterable[Record], *, seen: dict[str, Place], limit: int | None = None, strict: bool = False
) -> Pool:
    """Return a pool of the rows that hold a completion; the others are counted in `Pool.skipped`.

    seen: every id so far and where it stands, skipped rows included; extended here, so that ids stay unique
    over several calls. limit: stop at this many examples. Raises UserError on a row that is malformed, and
    with `strict` on one that would be skipped.
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
            examples.append(_example(example_id, row, place, layout))
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
    for reason, ids in skipped.items():
        log.warning(
            "left out %d rows (%s): %s", len(ids), reason, ", ".join(ids[:3] + ["..."][: len(ids) - 3])
        )
    if unread:
        named = ", ".join(f"{name} ({n} rows)" for name, n in sorted(unread.items()))
        log.warning("these fields of the data are not used: %s", named)
    return Pool(tuple(examples), hidden, {reason: len(ids) for reason, ids in skipped.items()})


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


def _example(example_id: str, row: Mapping[str, Any], place: Place, layout: RowLayout) -> Example:
    """Return a row as an example. Raises LeftOut with the reason why it cannot be one."""
    columns = layout.columns
    check_known(row)
    messages = _messages(row, place, layout)
    earlier = [
        Message(role, text)
        for pair in history_of(row.get(columns.history))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    opening = [m for m in messages[:1] if m.role == "system"]
    if system := _text_or_blank(row.get(columns.system), columns.system, place):
        if opening and opening[0].content != system:
            raise LeftOut(f"'{columns.system}' and another system turn")
        opening, messages = [Message("system", system)], messages[len(opening) :]
    elif opening:
        messages = messages[1:]
    return Example(example_id, (*opening, *earlier, *messages), tools=tools_of(row.get(columns.tools)))


def _messages(row: Mapping[str, Any], place: Place, layout: RowLayout) -> tuple[Message, ...]:
    """Return the conversation. Raises LeftOut for one without an answer at its end."""
    columns = layout.columns
    if layout.format is Format.MESSAGES:
        messages = _conversation(_part(row, columns.messages, place), place, layout)
    elif layout.format is Format.PROMPT_COMPLETION:
        prompt = as_text(_part(row, columns.prompt, place), columns.prompt, place)
        messages = _single_turn(row, prompt, columns.completion, place)
    else:
        prompt = as_text(_part(row, columns.instruction, place), columns.instruction, place)
        extra = _text_or_blank(row.get(columns.input), columns.input, place)
        if extra.strip():
            prompt = f"{prompt}\n\n{extra}"
        messages = _single_turn(row, prompt, columns.output, place)
    if all(m.role != "assistant" for m in messages):
        raise LeftOut(NO_ASSISTANT)
    if messages[-1].role != "assistant":
        raise LeftOut(OPEN_END)
    if not messages[-1].content.strip():
        raise LeftOut(EMPTY)
    return messages


def _single_turn(row: Mapping[str, Any], prompt: str, name: str, place: Place) -> tuple[Message, ...]:
    """Return a conversation of one question and one answer. name: the answer's column."""
    answer = _text_or_blank(_part(row, name, place), name, place)
    return Message("user", prompt), Message("assistant", answer, reasoning_of(row))


def _conversation(value: Any, place: Place, layout: RowLayout) -> tuple[Message, ...]:
    """Return the turns of a list of messages."""
    columns, group = layout.columns, layout.group
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{place}: '{columns.messages}' must be a list of messages, found {_kind(value)}")
    messages = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise UserError(
                f"{place}: message {number} must be an object with '{columns.role}' and '{columns.content}', "
                f"found {_kind(item)}"
            )
        for name in (columns.role, columns.content):
            if name not in item:
                there = ", ".join(map(str, item)) or "nothing"
                raise UserError(
                    f"{place}: message {number} has no '{name}'; it has {there}. "
                    f"Name the keys in {group}.columns.role and {group}.columns.content"
                )
        role = item[columns.role]
        role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
        if role not in ROLES:
            shown = repr(role[:40]) if isinstance(role, str) else _kind(role)
            raise UserError(
                f"{place}: message {number} has the role {shown}; known roles are {', '.join(ROLES)}"
            )
        read = _text_or_blank if role == "assistant" else as_text
        check_known(item)
        content = read(item[columns.content], f"{columns.content} of message {number}", place)
        if role == "assistant":
            messages.append(Message(role, content, reasoning_of(item), is_trained(item)))
        else:
            messages.append(Message(role, content))
    return tuple(messages)


def _part(row: Mapping[str, Any], name: str, place: Place) -> Any:
    """Return the value of a column. Raises UserError where the row lacks it."""
    if name not in row:
        there = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{place} has no '{name}', which other rows of the file have; it has {there}")
    return row[name]


def _unread(row: Mapping[str, Any], layout: RowLayout) -> set[str]:
    """Return the fields of a row, and of its messages, that say something and are not used for training or
    reports."""
    columns = layout.columns
    own = (layout.id_column, *layout.parts, *NOT_READ_HERE)
    names = {
        str(name)
        for name, value in row.items()
        if name not in own
        and value is not None
        and (name in OF_TRAINING or (value and isinstance(value, (list, tuple, Mapping))))
    }
    turns = row.get(columns.messages) if layout.format is Format.MESSAGES else None
    known = (columns.role, columns.content, *REASONING, *TRAIN, *NOT_READ_HERE)
    for turn in turns if isinstance(turns, (list, tuple)) else ():
        if isinstance(turn, Mapping):
            names |= {
                f"{columns.messages}.{name}" for name, value in turn.items() if name not in known and value
            }
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


def _text_or_blank(value: Any, name: str, place: Place) -> str:
    """Return a text, where null stands for an empty one."""
    return "" if value is None else as_text(value, name, place)


def as_text(value: Any, name: str, place: Place) -> str:
    """Return the value if it is a text that a tokenizer takes. Raises UserError for anything else."""
    if not isinstance(value, str):
        raise UserError(f"{place}: '{name}' must be text, found {_kind(value)}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON can escape half of a surrogate pair; no tokenizer takes such a text.
            raise UserError(
                f"{place}: '{name}' holds half a surrogate pair at character {error.start}; "
                "write the whole character or remove it"
            ) from error
    return value


def _kind(value: Any) -> str:
    """Return a value as a message shows it: its kind in JSON, and the value if that is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        shown = str(value) if isinstance(value, float) or abs(value) < 10**18 else "(large)"
        return f"the number {shown}"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return "an object"
    return f"a {type(value).__name__}"
