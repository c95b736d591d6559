"""Read the fields beside role and text that change what a row means; others use them in their training data.

    weight: 0, train: false    of a message: the turn carries no loss
    reasoning_content          of a message: what the assistant thinks before it answers
    system, history, tools     of a row: the system turn, earlier question-answer pairs, the tools on offer
    role, from                 of a message: whose turn it is, by any of the names in `ROLE_NAMES`
    content, value             of a message: a text, or a list of parts that are texts

Where the meaning is not ours to give (calls of tools, pictures, a template's own settings), the row is left
out, with the field's name as the reason. A field that is not read at all is named once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gtp_exp.data.values import half_pair

ROLES = ("system", "user", "assistant", "tool")
# Other names of these. The call of a function is a turn of the assistant, what the function returns is not.
ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")
TRAIN = ("weight", "train", "training", "loss")
# They change what a message or a row says and are not supported, so a row that has one is left out.
NOT_READ_HERE = (
    "tool_calls",
    "function_call",
    "functions",
    "images",
    "image",
    "videos",
    "video",
    "audios",
    "audio",
    "documents",
    "refusal",
    "chat_template_kwargs",
)
# Columns of a row by which other trainers act; a warning names them, as nothing here reads them.
OF_TRAINING = ("weight", "sample_weight", "loss_mask", "mask", "train", "chosen", "rejected", "kto_tag")


class LeftOut(Exception):
    """Tells why a row cannot be used."""


def is_trained(item: Mapping[str, Any]) -> bool:
    """Return whether a message of the assistant may carry loss. Raises LeftOut for other weights than 0 and
    1."""
    trained = True
    for name in TRAIN:
        value = item.get(name)
        if value is None:
            continue
        if value not in (0, 1):
            raise LeftOut(f"a message whose '{name}' is neither 0 nor 1")
        trained = trained and bool(value)
    return trained


def reasoning_of(item: Mapping[str, Any]) -> str:
    """Return the reasoning beside an answer, or an empty text. Raises LeftOut where it is no text."""
    for name in REASONING:
        if value := item.get(name):
            if not isinstance(value, str):
                raise LeftOut(f"'{name}' that is no text")
            return _whole(value, name)
    return ""


def text_of(content: Any) -> Any:
    """Return the text of a message's content where it is a list of parts, else the content as it is.

    Raises LeftOut for a part that is no text.
    """
    if not isinstance(content, (list, tuple)):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in (None, "text") or not isinstance(text, str):
            raise LeftOut(f"a part of a message that is no text ({kind or type(part).__name__})")
        texts.append(text)
    return "".join(texts)


def listed(value: Any) -> Any:
    """Return a list that a cell of a table of texts holds as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def check_known(item: Mapping[str, Any]) -> None:
    """Raise LeftOut for a message or a row with a field that would have to be used and cannot be."""
    for name in NOT_READ_HERE:
        if item.get(name):
            raise LeftOut(f"'{name}' is not supported")


def tools_of(value: Any) -> str:
    """Return a row's tools as JSON, or an empty text. Raises LeftOut where they are no list."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise LeftOut("'tools' that is neither a list nor JSON") from None
    if not value:
        return ""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise LeftOut("'tools' that is no list")
    if not all(isinstance(tool, Mapping) for tool in value):
        raise LeftOut("'tools' that holds something other than objects")
    try:
        text = json.dumps([_without_null(tool) for tool in value], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a date or bytes of a table, or NaN
        raise LeftOut("'tools' that holds a value which JSON has not") from None
    return _whole(text, "tools")


def history_of(value: Any) -> list[tuple[str, str]]:
    """Return earlier questions and answers. Raises LeftOut where they are no pairs of texts."""
    pairs, value = [], listed(value) or []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise LeftOut("'history' that is no list")
    for pair in value:
        # A text of two characters is a sequence of two texts as well.
        texts = [] if isinstance(pair, str) or not isinstance(pair, Sequence) else pair
        if not (len(texts) == 2 and all(isinstance(text, str) for text in texts)):
            raise LeftOut("'history' that holds no pairs of texts")
        pairs.append((_whole(pair[0], "history"), _whole(pair[1], "history")))
    return pairs


def _whole(text: str, name: str) -> str:
    """Return a text as it is. Raises LeftOut for one with half of a surrogate pair."""
    if half_pair(text) is not None:
        raise LeftOut(f"'{name}' that holds half a surrogate pair")
    return text


def _without_null(value: Any) -> Any:
    """Return a value of a table without the keys that other rows have; templates would print them."""
    if isinstance(value, Mapping):
        return {key: _without_null(part) for key, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list) else value
