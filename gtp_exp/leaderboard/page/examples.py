"""The chosen examples for browsing: one card per example, with everyone who chose it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.leaderboard.board import Board
from gtp_exp.leaderboard.records import Run
from gtp_exp.records.record import SELECTED_NAME, SelectedRow, read_selected

MAX_CARDS = 600
MAX_CHARACTERS = 1500  # of one message


@dataclass(frozen=True)
class Choice:
    """One row's choice of an example."""

    selector: str  # the row's label
    budget: str
    rank: int
    weight: float
    score: float


@dataclass(frozen=True)
class ShownTurn:
    """Hold one message of an example, cut to a length that can be read."""

    role: str
    text: str
    left_out: int  # characters


@dataclass(frozen=True)
class Card:
    """Hold one chosen example, and who chose it."""

    id: str
    dataset: str
    turns: tuple[ShownTurn, ...]
    hidden: Mapping[str, Any]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Examples:
    """Hold the chosen examples that the page shows."""

    cards: tuple[Card, ...]
    chosen: int  # distinct examples among the rows read, shown or not
    problems: tuple[str, ...]  # files that could not be read


def examples_by_row(boards: Sequence[Board], *, per_row: int) -> Examples:
    """The first `per_row` examples of each row's first seed that has a list, best rank first.

    The same rows are often chosen on several benchmarks: an example is one card all the same.
    """
    texts: dict[tuple[str, str, str], SelectedRow] = {}
    choices: dict[tuple[str, str, str], dict[tuple[str, str], Choice]] = {}
    best: dict[tuple[str, str, str], int] = {}
    problems: list[str] = []
    for board in boards:
        for line in board.lines:
            run = next((run for run in line.row.runs if (run.directory / SELECTED_NAME).exists()), None)
            if run is None:
                continue
            try:
                for row in read_selected(run.directory / SELECTED_NAME):
                    dataset = run.record.names.dataset
                    key = (dataset, row.id, json.dumps(row.messages, sort_keys=True))
                    who = (_method(board, boards, line.row.label), line.row.budget)
                    choices.setdefault(key, {})[who] = Choice(*who, row.rank, row.weight, row.score)
                    best[key] = min(best.get(key, row.rank), row.rank)
                    if row.rank <= per_row:
                        texts.setdefault(key, row)
            except (UserError, OSError) as error:
                problems.append(_problem(run, error))
    order = sorted(texts, key=lambda key: (best[key], -len(choices[key]), key))[:MAX_CARDS]
    cards = tuple(
        Card(
            id=texts[key].id,
            dataset=key[0],
            turns=tuple(_turn(message) for message in texts[key].messages),
            hidden=texts[key].hidden,
            choices=tuple(choices[key].values()),
        )
        for key in order
    )
    return Examples(cards=cards, chosen=len(choices), problems=tuple(problems))


def _method(board: Board, boards: Sequence[Board], label: str) -> str:
    """Which row chose; with the benchmark where the page has several."""
    return label if len(boards) == 1 else f"{label} on {board.table.label}"


def _turn(message: Mapping[str, str]) -> ShownTurn:
    text = message.get("content", "")
    return ShownTurn(
        role=message.get("role", "?"),
        text=text[:MAX_CHARACTERS],
        left_out=max(0, len(text) - MAX_CHARACTERS),
    )


def _problem(run: Run, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error).rpartition(SELECTED_NAME)[2]
    return f"{run.name}/{SELECTED_NAME}{reason if str(reason).startswith(',') else f': {reason}'}"
