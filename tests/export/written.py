"""A run's folder with chosen rows of every kind, without a run."""

from __future__ import annotations

import json
from pathlib import Path

from gtp_exp.records.record import Names, RunRecord, SelectedRow, State, write_record, write_selected

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]


def turn(role: str, content: str, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


PLAIN = (turn("user", "One?"), turn("assistant", "Yes."))
SYSTEM = (turn("system", "Be brief."), turn("user", "Two?"), turn("assistant", "No."))
SEVERAL = (*PLAIN, turn("user", "And three?"), turn("assistant", "Perhaps."))
LAST_ONLY = (turn("user", "One?"), turn("assistant", "BAD", weight=0), *SEVERAL[2:])
FIRST_ONLY = (*PLAIN, turn("user", "And three?"), turn("assistant", "BAD", weight=0))
REASONS = (turn("user", "Four?"), turn("assistant", "Five.", reasoning_content="One more."))


def row(name: str, messages: tuple[dict[str, object], ...], tools: str = "") -> SelectedRow:
    return SelectedRow(1, name, 1.5, 0.25, messages, {"skill": "hidden"}, tools)


def write_run(folder: Path, rows: list[SelectedRow], state: State = State.COMPLETE, **fields: object) -> Path:
    """Write the record and the chosen rows of a run into a folder, and return it."""
    folder.mkdir(parents=True)
    names = Names("gtp", "rows", "jsonl", "jsonl", "tiny", "lora_trajectory", "lora")
    record = RunRecord(state, names, 0, "group", {}, (), None, {}, "2026-01-01T00:00:00+00:00", **fields)
    write_record(record, folder)
    if rows:
        write_selected(rows, folder)
    return folder


def read_rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
