"""Name the forms in which rows hold a conversation, and recognise the form of a file by its columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

from gtp_exp.data.fields import REASONING
from gtp_exp.data.values import Place
from gtp_exp.errors import UserError


class Format(Enum):
    """Names the forms in which a row can hold a conversation."""

    AUTO = "auto"  # told by the columns of each file
    MESSAGES = "messages"  # a list of {role, content}
    SHAREGPT = "sharegpt"  # `conversations`, a list of {from, value}
    PROMPT_COMPLETION = "prompt_completion"  # two texts, or two lists of messages
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
    conversations: str = "conversations"


@dataclass(frozen=True)
class ReadAs:
    """Says how files are to be read, as the options of a data set or a benchmark have it."""

    format: Format = Format.AUTO
    columns: ColumnNames = field(default_factory=ColumnNames)
    ids: Ids | None = None  # None for rows of a benchmark, to which dataset.ids does not apply
    group: str = "dataset"  # whose options these are, for messages


@dataclass(frozen=True)
class RowLayout:
    """Says how the rows of one file are read."""

    format: Format
    columns: ColumnNames
    id_column: str | None  # None: ids are made of `stem` and the row number
    stem: str
    source: str | None = None  # label of the file in a mixture, kept among the hidden facts
    ids: Ids | None = None  # None for rows of a benchmark, to which dataset.ids does not apply
    group: str = "dataset"  # whose options describe the file, for messages

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the columns that are the example itself; all others are hidden facts."""
        columns = self.columns
        of_the_form = {
            Format.MESSAGES: (columns.messages,),
            Format.SHAREGPT: (columns.conversations,),
            Format.PROMPT_COMPLETION: (columns.prompt, columns.completion, *REASONING),
            Format.ALPACA: (columns.instruction, columns.input, columns.output, *REASONING),
        }[self.format]
        return (*of_the_form, columns.system, columns.history, columns.tools)

    @property
    def turns(self) -> tuple[str, ...]:
        """Return the columns that hold lists of messages, or may do so."""
        lists = {Format.ALPACA: 0, Format.PROMPT_COMPLETION: 2}.get(self.format, 1)
        return self.parts[:lists]


def detect_layout(
    present: Collection[str], where: str, asked: ReadAs, *, stem: str, source: str | None = None
) -> RowLayout:
    """Return how to read a file that has the columns `present`. where: the file, for messages.

    Raises UserError where they do not fit, with the columns that are there.
    """
    format, columns, ids, group = asked.format, asked.columns, asked.ids, asked.group
    needed = {
        Format.MESSAGES: [columns.messages],
        Format.SHAREGPT: [columns.conversations],
        Format.PROMPT_COMPLETION: [columns.prompt, columns.completion],
        Format.ALPACA: [columns.instruction, columns.output],
    }
    listed = ", ".join(sorted(map(str, present))) or "no columns"
    if format is Format.AUTO:
        fitting = [form for form, names in needed.items() if all(name in present for name in names)]
        if columns.messages == columns.conversations and Format.SHAREGPT in fitting:
            fitting.remove(Format.SHAREGPT)  # it reads the same
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
