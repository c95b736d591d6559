"""Hold back rows for `until=validation`, on which a setting is judged before any test is read.

They are rows of the target; in-domain, where the pool is the target, rows of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.questions import drawn_groups
from gtp_exp.errors import UserError

NAME = "validation"
REASON = "held back for validation"  # why pool rows are no candidates


@dataclass(frozen=True)
class Validation:
    """Says how many rows are held back, and which."""

    share: float = 0.5  # of the target's rows, within each subtask as near as whole rows allow
    max_rows: int = 1000  # lowers the share where it would hold back more
    seed: int = 0  # of the draw; not the run's seed, so that every run is measured on the same rows

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"validation.share={self.share} must lie between 0 and 1; 0.5 is usual")
        if self.max_rows < 1:
            raise UserError(f"validation.max_rows={self.max_rows} holds back nothing; use 1000 or so")


def hold_back(
    pool: Pool, target: tuple[Example, ...] | None, validation: Validation
) -> tuple[Pool, tuple[Example, ...] | None, tuple[Example, ...]]:
    """Return pool and target without the rows that are held back, and these.

    Only one of the two loses rows: the target, or without one the pool. Raises UserError where the rows
    cannot be divided.
    """
    examples = pool.examples if target is None else target
    held = held_back_rows(examples, validation, "pool" if target is None else "target")
    rows = tuple(example for i, example in enumerate(examples) if i in held)
    left = tuple(example for i, example in enumerate(examples) if i not in held)
    if target is not None:
        return pool, left, rows
    ids = {row.id for row in rows}
    hidden = {id: facts for id, facts in pool.hidden.items() if id not in ids}
    return Pool(left, hidden, {**pool.skipped, REASON: len(rows)}), None, rows


def held_back_rows(examples: Sequence[Example], validation: Validation, name: str) -> set[int]:
    """Return the positions of the rows to hold back: at least one, and never all.

    Rows that ask the same are on one side. A subtask with several questions is on both sides. name: of the
    rows, for messages. Raises UserError where all of them ask the same.
    """
    drawn = drawn_groups([_asking(example) for example in examples], validation.seed)
    if len(drawn) < 2:
        raise UserError(
            f"until=validation cannot divide the {len(examples)} rows of the {name}: it needs two that ask "
            "different things; give the benchmark more rows"
        )
    share = min(validation.share, validation.max_rows / len(examples))
    by_subtask: dict[str, list[list[int]]] = {}
    for group in drawn:
        by_subtask.setdefault(examples[min(group)].subtask, []).append(group)
    held: set[int] = set()
    wanted = 0.0  # what rounding has left over passes on to the next subtask
    for subtask in sorted(by_subtask):
        wanted += share * sum(map(len, by_subtask[subtask]))
        taken = _taken(by_subtask[subtask], wanted)
        wanted -= len(taken)
        held.update(taken)
    if not held:
        return set(drawn[0])
    return held if len(held) < len(examples) else held - set(drawn[0])


def _taken(groups: Sequence[Sequence[int]], wanted: float) -> list[int]:
    """Return the rows of the first groups that fit a number of rows best; of several groups at least one, and
    not all."""
    taken: list[int] = []
    for group in groups[: max(1, len(groups) - 1)]:
        if abs(len(taken) + len(group) - wanted) < abs(len(taken) - wanted):
            taken += group
    return taken if taken or len(groups) == 1 else list(min(groups, key=len))


def _asking(example: Example) -> Example:
    """Return a row by whose question it is told from others: a row without a prompt asks its answer."""
    if example.prompt.strip():
        return example
    return replace(example, messages=(Message("user", example.completion), example.messages[-1]))
