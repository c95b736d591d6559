"""Identify a data set in cache keys by its content, not by file names or dates."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from typing import Any

from gtp_exp.data.examples import Example, Pool, TokenizedExample


def digest(*values: object) -> str:
    """Return the SHA-256 (hex) of JSON values in order."""
    hasher = hashlib.sha256()
    for value in values:
        hasher.update(json.dumps(value).encode())
    return hasher.hexdigest()


def content_hash(data: Pool | Sequence[Example]) -> str:
    """Return the SHA-256 (hex) of the examples in order: ids, roles, texts, subtasks, and
    what else changes the meaning of a row.

    `Pool.hidden` does not enter, because nothing that is cached may depend on it.
    """
    hasher = hashlib.sha256()
    for example in data.examples if isinstance(data, Pool) else data:
        row: list[Any] = [example.id, example.subtask, [[m.role, m.content] for m in example.messages]]
        if example.tools or any(m.reasoning or not m.train for m in example.messages):
            row += [example.tools, [[m.reasoning, m.train] for m in example.messages]]
        # ASCII JSON holds no raw newline, so the newline separates rows without ambiguity.
        hasher.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n")
    return hasher.hexdigest()


def rows_hash(examples: Sequence[Example], tokenized: Sequence[TokenizedExample]) -> str:
    """Return the SHA-256 (hex) of rows as one model reads them: their content, token ids and labels.

    With other ids for the same text, of another tokenizer or another rule for labels, nothing that was
    computed from the old ones is found again.
    """
    hasher = hashlib.sha256(content_hash(examples).encode())
    for row in tokenized:
        told = [row.id, len(row.input_ids), len(row.labels), row.answers, row.cut]
        hasher.update(json.dumps(told).encode() + b"\n")
        hasher.update(array("i", row.input_ids).tobytes() + array("i", row.labels).tobytes())
    return hasher.hexdigest()
