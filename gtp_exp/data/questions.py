"""Put rows that ask the same together, and draw from the groups in an order that only a seed decides.

Rows that ask the same, copies above all, stay together, whatever system prompt or earlier turn comes first.
Only where all of them ask one thing, such as what a passage is about, do whole prompts tell them apart.
The order of the rows, their ids and their files do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import regex

from gtp_exp.data.examples import Example
from gtp_exp.data.leakage import questions, runs
from gtp_exp.data.links import linked_groups
from gtp_exp.data.words import comparable


def drawn_groups(examples: Sequence[Example], seed: int) -> list[list[int]]:
    """Return the rows in groups that ask one question, sorted by the hash of seed and question.

    Questions are equal if their words are, whatever the case and punctuation.
    """
    asked = [_asked(example) for example in examples]
    groups = _askers(asked)
    if len(groups) == 1:
        asked = [(_words("\n".join(m.content for m in example.messages[:-1])),) for example in examples]
        groups = _askers(asked)
    drawn: dict[str, list[int]] = {}
    for group in groups:
        whole = min("\n".join(asked[i]) for i in group)
        digest = hashlib.sha256(f"{seed}\n{whole}".encode()).hexdigest()
        drawn.setdefault(digest, []).extend(group)
    return [drawn[digest] for digest in sorted(drawn)]


def _askers(asked: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Return the rows in groups, two in one where one asks the other's question, or both are linked through
    others. asked: the user turns of each row."""
    known = {question for turns in asked for question in questions(turns)}
    lengths = sorted({len(question) for question in known})
    home: dict[tuple[str, ...], int] = {}  # a question -> a row that asks it
    pairs = (
        (row, home.setdefault(question, row))
        for row, turns in enumerate(asked)
        for question in known.intersection(runs(turns, lengths))
    )
    return linked_groups(len(asked), pairs)


def _asked(example: Example) -> tuple[str, ...]:
    """Return the words of each user turn; of whatever stands before the answer where there is none."""
    before = example.messages[:-1]
    turns = [m.content for m in before if m.role == "user"] or [example.prompt]
    return tuple(map(_words, turns))


def _words(text: str) -> str:
    """Return the words of a text, in one form of each; a text without any as it is."""
    return " ".join(regex.findall(r"\w+", comparable(text))) or text
