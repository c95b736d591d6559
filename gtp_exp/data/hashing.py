"""What identifies a data set in cache keys: its content, not its file names or dates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from gtp_exp.data.examples import Example, Pool


def digest(*values: object) -> str:
    """SHA-256 (hex) of JSON values in order."""
    found = hashlib.sha256()
    for value in values:
        found.update(json.dumps(value).encode())
    return found.hexdigest()


def content_hash(data: Pool | Sequence[Example]) -> str:
    """SHA-256 (hex) of the examples in order: ids, roles, texts, subtasks. `Pool.hidden` does not enter,
    because nothing that is cached may depend on it.
    """
    digest = hashlib.sha256()
    for e in data.examples if isinstance(data, Pool) else data:
        row = [e.id, e.subtask, [[m.role, m.content] for m in e.messages]]
        # ASCII JSON holds no raw newline, so the newline separates rows without ambiguity.
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n")
    return digest.hexdigest()
