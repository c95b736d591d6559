"""Say where a row stands, and check the values of its columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gtp_exp.errors import UserError

# What to do with a text file that is not UTF-8; iconv without -f takes it for the terminal's, which is UTF-8.
TO_UTF8 = "convert the file, naming the encoding that it has: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"


class Place(NamedTuple):
    """Says where a row stands, for messages and for made-up ids."""

    name: str
    number: int  # from 1
    unit: str = ""  # "" for a line of a text file, "row" elsewhere

    def __str__(self) -> str:
        return f"{self.name} {self.unit} {self.number}" if self.unit else f"{self.name}:{self.number}"


def text_or_blank(value: Any, name: str, place: Place) -> str:
    """Return a text, where null stands for an empty one."""
    return "" if value is None else as_text(value, name, place)


def as_text(value: Any, name: str, place: Place) -> str:
    """Return the value if it is a text that a tokenizer takes. Raises UserError for anything else."""
    if not isinstance(value, str):
        raise UserError(f"{place}: '{name}' must be text, found {kind_of(value)}")
    if (half := half_pair(value)) is not None:
        raise UserError(
            f"{place}: '{name}' holds half a surrogate pair at character {half}; "
            "write the whole character or remove it"
        )
    return value


def half_pair(text: str) -> int | None:
    """Return where a text holds half of a surrogate pair, which JSON can escape and no tokenizer takes."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return error.start
    return None


def kind_of(value: Any) -> str:
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
