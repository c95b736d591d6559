"""Keep columns of the pool as numbers beside its rows: scores that others have given them.

They are among the facts that reports read, and a selector sees those that it names, as selector=given does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gtp_exp.data.examples import Example, Pool
from gtp_exp.data.forms import Place
from gtp_exp.errors import UserError


def with_scores(pool: Pool, names: Sequence[str], places: Mapping[str, Place] | None = None) -> Pool:
    """Return the pool with these columns as numbers, in a table of texts, too.

    places: where the row of each id stands, for messages. Raises UserError for a score that is missing or
    not finite, by file, line and id.
    """
    if not names:
        return pool
    hidden = dict(pool.hidden)
    for example in pool.examples:
        facts = dict(hidden.get(example.id, {}))
        for name in names:
            number = _number(facts.get(name))
            if number is None:
                place = f"{places[example.id]}: " if places else ""
                raise UserError(
                    f"{place}the row '{example.id}' has {_shown(facts.get(name))} for the score '{name}' "
                    "(dataset.scores), which must be a finite number in every row; complete it, remove the "
                    "row, or name another column"
                )
            facts[name] = number
        hidden[example.id] = facts
    return replace(pool, hidden=hidden)


def scores_of(
    pool: Pool, candidates: Sequence[Example], names: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """Return the scores of the candidates, in their order, by column."""
    return {name: tuple(pool.hidden[row.id][name] for row in candidates) for name in names}


def _number(value: Any) -> float | None:
    """Return a value as a finite number, a text that holds one included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    """Return a value as a message shows it; values that are no facts, such as NaN, are not kept."""
    return "no number" if value is None else f"{str(value)[:40]!r}"
