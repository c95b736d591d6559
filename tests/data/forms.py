"""Column names and small files, shared by the tests of data loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gtp_exp.data.forms import ColumnNames

COLUMNS: dict[str, Any] = {
    "id": None,
    "messages": "messages",
    "role": "role",
    "content": "content",
    "prompt": "prompt",
    "completion": "completion",
    "instruction": "instruction",
    "input": "input",
    "output": "output",
}


def columns(**changes: Any) -> ColumnNames:
    return ColumnNames(**{**COLUMNS, **changes})


def chat(id: str, *texts: str, **facts: Any) -> dict[str, Any]:
    """A messages row: user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[k % 2], "content": text} for k, text in enumerate(texts)]
    return {"id": id, "messages": messages, **facts}


def write_lines(path: Path, *rows: Any) -> str:
    """Each row as JSON on its own line; bytes and text as they are."""
    lines = []
    for row in rows:
        if isinstance(row, bytes):
            lines.append(row)
        else:
            lines.append((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)
