"""Turn one row of a file into a conversation, whatever its form, or say why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gtp_exp.data.examples import Example, Message
from gtp_exp.data.fields import (
    ROLE_NAMES,
    ROLES,
    LeftOut,
    check_known,
    history_of,
    is_trained,
    listed,
    reasoning_of,
    text_of,
    tools_of,
)
from gtp_exp.data.forms import Format, RowLayout
from gtp_exp.data.values import Place, as_text, kind_of, text_or_blank
from gtp_exp.errors import UserError

KEY_PAIRS = (("role", "content"), ("from", "value"))  # under which a message has its role and its text

EMPTY = "empty completion"
NO_ASSISTANT = "no assistant turn"
OPEN_END = "last turn is not the assistant's"


def as_example(example_id: str, row: Mapping[str, Any], place: Place, layout: RowLayout) -> Example:
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
    if system := text_or_blank(row.get(columns.system), columns.system, place):
        if opening and opening[0].content != system:
            raise LeftOut(f"'{columns.system}' and another system turn")
        opening, messages = [Message("system", system)], messages[len(opening) :]
    elif opening:
        messages = messages[1:]
    return Example(example_id, (*opening, *earlier, *messages), tools=tools_of(row.get(columns.tools)))


def _messages(row: Mapping[str, Any], place: Place, layout: RowLayout) -> tuple[Message, ...]:
    """Return the conversation. Raises LeftOut for one without an answer at its end."""
    columns = layout.columns
    if layout.format in (Format.MESSAGES, Format.SHAREGPT):
        messages = _conversation(row, layout.turns[0], place, layout)
    elif layout.format is Format.PROMPT_COMPLETION:
        messages = _prompt_and_completion(row, place, layout)
    else:
        prompt = as_text(_part(row, columns.instruction, place), columns.instruction, place)
        extra = text_or_blank(row.get(columns.input), columns.input, place)
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
    answer = text_or_blank(_part(row, name, place), name, place)
    return Message("user", prompt), Message("assistant", answer, reasoning_of(row))


def _prompt_and_completion(row: Mapping[str, Any], place: Place, layout: RowLayout) -> tuple[Message, ...]:
    """Return a prompt, which carries no loss, and its completion: two texts, or two lists of messages."""
    columns = layout.columns
    prompt, completion = (_part(row, name, place) for name in (columns.prompt, columns.completion))
    if not any(isinstance(part, (list, tuple)) for part in (prompt, completion)):
        return _single_turn(row, as_text(prompt, columns.prompt, place), columns.completion, place)
    asked = _conversation(row, columns.prompt, place, layout)
    answered = _conversation(row, columns.completion, place, layout)
    if not answered:
        raise LeftOut(EMPTY)
    return (*(replace(m, train=m.role != "assistant") for m in asked), *answered)


def _conversation(
    row: Mapping[str, Any], column: str, place: Place, layout: RowLayout
) -> tuple[Message, ...]:
    """Return the turns of a column that holds a list of messages."""
    columns, value = layout.columns, listed(_part(row, column, place))
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{place}: '{column}' must be a list of messages, found {kind_of(value)}")
    pairs = ((columns.role, columns.content), *KEY_PAIRS)
    return tuple(_message(item, number, place, pairs, layout.group) for number, item in enumerate(value, 1))


def _message(item: Any, number: int, place: Place, pairs: Sequence[tuple[str, str]], group: str) -> Message:
    """Return one turn. pairs: the keys that may hold its role and its text; the first pair is that of the
    options."""
    if not isinstance(item, Mapping):
        raise UserError(
            f"{place}: message {number} must be an object with '{pairs[0][0]}' and '{pairs[0][1]}', "
            f"found {kind_of(item)}"
        )
    keys = next((pair for pair in pairs if all(key in item for key in pair)), None)
    if keys is None:
        missing = next(key for key in pairs[0] if key not in item)
        there = ", ".join(map(str, item)) or "nothing"
        raise UserError(
            f"{place}: message {number} has no '{missing}'; it has {there}. "
            f"Name the keys in {group}.columns.role and {group}.columns.content"
        )
    role = item[keys[0]]
    role = ROLE_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        shown = repr(role[:40]) if isinstance(role, str) else kind_of(role)
        known = ", ".join((*ROLES, *ROLE_NAMES))
        raise UserError(f"{place}: message {number} has the role {shown}; known roles are {known}")
    read = text_or_blank if role == "assistant" else as_text
    check_known(item)
    content = read(text_of(item[keys[1]]), f"{keys[1]} of message {number}", place)
    if role == "assistant":
        return Message(role, content, reasoning_of(item), is_trained(item))
    return Message(role, content)


def _part(row: Mapping[str, Any], name: str, place: Place) -> Any:
    """Return the value of a column. Raises UserError where the row lacks it."""
    if name not in row:
        there = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{place} has no '{name}', which other rows of the file have; it has {there}")
    return row[name]
