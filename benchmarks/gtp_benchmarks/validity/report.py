"""Tell which objectives order the subsets as the losses do: report.md to read, report.json for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gtp_benchmarks.validity.agreement import (
    FEWEST,
    Estimate,
    Resamples,
    correlations,
    estimate,
    resamples,
    without,
)
from gtp_benchmarks.validity.facts import TARGET_SHARE
from gtp_benchmarks.validity.measure import CONTENT, LOSS, TEST, VALIDATION
from gtp_benchmarks.validity.objectives import Objective
from gtp_exp.files import write_json, write_whole

REFERENCE = Objective()
OUTCOMES = ((VALIDATION, LOSS), (VALIDATION, CONTENT), (TEST, LOSS), (TEST, CONTENT))
JUDGE = OUTCOMES[0]  # the loss by which objectives are ranked

_HEAD = """# Which objective predicts the loss

{n} of {planned} subsets of {size} rows are trained and measured. A number is Spearman's correlation, over
the subsets, of an objective in the direction in which it is pursued with a loss, lower being better: 1 says
that the objective orders the subsets as the loss does, 0 that it says nothing, below 0 that pursuing it
harms. In brackets is the 95% interval of a bootstrap over subsets. Objectives have seen neither the
{validation} validation rows nor the test rows. The best of many objectives is so partly by chance: look at
the columns of the test, by which nothing is ranked, and at the paired differences from the reference.
All objectives may follow the share of rows that are like the target, in which subsets differ; a partial
correlation is what an objective says of the loss beyond that share.

Validation loss over subsets: {span}. Untuned: {untuned}.
"""


@dataclass(frozen=True)
class Row:
    """Holds what the subsets say of one objective, or of a simple fact about the rows."""

    name: str
    objective: Objective | None  # None for a fact
    found: Mapping[str, Estimate | None]  # "validation nats_per_token", ... -> correlation
    minus_reference: Estimate | None  # of the judging loss
    partial: Mapping[str, Estimate | None]  # as `found`, given the share of target-like rows


@dataclass(frozen=True)
class Progress:
    """Holds what is known of a study so far."""

    objectives: Mapping[Objective, Sequence[float]]  # a value for each subset, measured or not
    facts: Mapping[str, Sequence[float]]  # larger is taken as better
    measured: Sequence[Mapping[str, Mapping[str, float]]]  # of the first subsets, see `measure`
    about: Mapping[str, Any]  # planned, size, validation (numbers), untuned (as `measured`)


def rows_of(progress: Progress) -> list[Row]:
    """Return what the measured subsets say of every objective and fact; the best objective first."""
    n = len(progress.measured)
    drawn = resamples(n)
    losses = {
        f"{part} {name}": drawn.ranks(-np.array([one[part][name] for one in progress.measured]))
        for part, name in OUTCOMES
        if all(name in one[part] for one in progress.measured)
    }
    judge = losses[" ".join(JUDGE)]
    reference = correlations(_ranks(drawn, REFERENCE.sign, progress.objectives[REFERENCE]), judge)
    control = _ranks(drawn, 1, progress.facts[TARGET_SHARE])
    unexplained = {loss: without(of_loss, control) for loss, of_loss in losses.items()}
    rows = []
    named = [(objective.name, objective, values) for objective, values in progress.objectives.items()]
    facts = [(name, None, values) for name, values in progress.facts.items()]
    for name, objective, values in [*named, *facts]:
        ranks = _ranks(drawn, 1 if objective is None else objective.sign, values)
        found = {loss: estimate(correlations(ranks, of_loss)) for loss, of_loss in losses.items()}
        difference = estimate(correlations(ranks, judge) - reference)
        own = without(ranks, control)
        partial = {loss: estimate(correlations(own, left)) for loss, left in unexplained.items()}
        rows.append(Row(name, objective, found, difference, partial))
    return sorted(rows, key=_judged, reverse=True)


def _ranks(drawn: Resamples, sign: int, values: Sequence[float]) -> np.ndarray:
    """Return the ranks of the measured subsets by an objective."""
    n = drawn.index.shape[1]
    return drawn.ranks(sign * np.array(values[:n], dtype=float))


def _judged(row: Row) -> float:
    """Return the correlation with the judging loss; the lowest of all where there is none."""
    found = row.found[" ".join(JUDGE)]
    return -2.0 if found is None else found.value


def write_report(folder: Path, progress: Progress) -> None:
    """Write report.md and report.json into the folder; nothing while there are too few subsets."""
    if len(progress.measured) < FEWEST:
        return
    rows = rows_of(progress)
    write_whole(folder / "report.md", [markdown(rows, progress)])
    told = {
        "subsets": len(progress.measured),
        **progress.about,
        "rows": [
            {
                "name": row.name,
                **({} if row.objective is None else {"objective": asdict(row.objective)}),
                "spearman": {loss: _plain(found) for loss, found in row.found.items()},
                "partial": {loss: _plain(found) for loss, found in row.partial.items()},
                "minus_reference": _plain(row.minus_reference),
            }
            for row in rows
        ],
    }
    write_json(folder / "report.json", told)


def _plain(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def markdown(rows: Sequence[Row], progress: Progress) -> str:
    """Return the report as text: what one change of the reference does, the facts, then every objective."""
    losses = [one[JUDGE[0]][JUDGE[1]] for one in progress.measured]
    head = _HEAD.format(
        n=len(losses),
        span=f"{min(losses):.3f} to {max(losses):.3f} nats per token",
        untuned=f"{progress.about['untuned'][JUDGE[0]][JUDGE[1]]:.3f}",
        **{name: progress.about[name] for name in ("planned", "size", "validation")},
    )
    near = [row for row in rows if row.objective is not None and changes(row.objective) <= 1]
    facts = [row for row in rows if row.objective is None]
    every = [row for row in rows if row.objective is not None]
    parts = [
        head,
        f"## One change from the reference\n\nThe reference is {REFERENCE.name}.\n\n{_table(near)}",
        f"## Facts about the rows, for comparison\n\n{_table(facts)}",
        f"## Every objective\n\n{_table(every)}",
    ]
    return "\n".join(parts)


def changes(objective: Objective) -> int:
    """Count the respects in which an objective differs from the reference; formula and ridge are one."""
    differing = {
        field.name
        for field in fields(Objective)
        if getattr(objective, field.name) != getattr(REFERENCE, field.name)
    }
    return len(differing - {"ridge"})


def _table(rows: Iterable[Row]) -> str:
    """Return a Markdown table, with a column for every loss that all subsets have."""
    rows = list(rows)
    losses = list(rows[0].found) if rows else []
    columns = [
        "objective",
        *losses,
        "minus the reference, validation",
        "partial, validation",
        "partial, test",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row.name, *(_cell(row.found[loss]) for loss in losses), _cell(row.minus_reference)]
        cells += [_cell(row.partial[f"{part} {LOSS}"]) for part in (VALIDATION, TEST)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(found: Estimate | None) -> str:
    """Return a correlation with its interval; a dash where all subsets have the same value."""
    return "\u2013" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
