"""What was chosen, judged without training: duplicates, hidden labels, overlap, residuals."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from gtp_exp.leaderboard.board import Board, BoardBlock, BoardLine
from gtp_exp.leaderboard.comparability import Row
from gtp_exp.records.record import RunRecord, SelectionSummary

MIX_VALUES = 12  # values of a label that are shown one by one; the rest are "other"
REST = "other"
YES, NO = ("True", "true", "present"), ("False", "false", "absent")


@dataclass(frozen=True)
class ChoiceFacts:
    """Means over the seeds of a row."""

    n_selected: float
    n_tokens: float
    exact_duplicates: float
    near_duplicates: float
    shares: Mapping[str, float]  # fact -> share of the chosen rows, as columns of the page name them
    numbers: Mapping[str, float]  # scalar diagnostics of the selector itself
    texts: Mapping[str, str]  # its words and short lists, of the first seed: they have no mean
    labels: str = ""  # how many of the target's labels are among the chosen rows, "12 of 16"
    repeats: float | None = None  # chosen rows less their originals; None where no label tells of copies


@dataclass(frozen=True)
class Mix:
    """A label's values, as shares of the pool and of each row of the block."""

    label: str
    values: tuple[str, ...]  # the target's first, then the most frequent in the pool; sizes in their order
    ordered: bool  # whether the values are sizes, such as 32-63 tokens
    target: tuple[str, ...]  # those that the benchmark names as its own
    pool: Mapping[str, float]
    rows: tuple[tuple[BoardLine, Mapping[str, float]], ...]


@dataclass(frozen=True)
class ChoiceOverlap:
    """shared[i][j]: rows in common as a share of the smaller selection, a mean over equal seeds; on the
    diagonal between different seeds of one row. None where no pair of runs exists."""

    lines: tuple[BoardLine, ...]
    shared: tuple[tuple[float | None, ...], ...]
    chance: float | None  # what two uniform draws of this size would share


@dataclass(frozen=True)
class Curve:
    """Hold the relative residual of one pursuit after each iteration."""

    label: str
    values: tuple[float, ...]


def facts(row: Row) -> ChoiceFacts:
    """Return what one row's runs have chosen: copies, shares of labels and lengths, as means."""
    chosen = [(run.record, run.record.selection) for run in row.runs if run.record.selection]
    if not chosen:
        return ChoiceFacts(0.0, 0.0, 0.0, 0.0, {}, {}, {})
    selections = [selection for _, selection in chosen]
    shares = [
        _shares(record, selection, selection.label_mix) | _leaked(record, "selected")
        for record, selection in chosen
    ]
    numbers = [
        {k: float(v) for k, v in s.diagnostics.items() if isinstance(v, (int, float)) and _finite(v)}
        for s in selections
    ]
    counted = [selection.repeats for selection in selections if selection.repeats is not None]
    return ChoiceFacts(
        n_selected=fmean(s.n_selected for s in selections),
        n_tokens=fmean(s.n_tokens for s in selections),
        exact_duplicates=fmean(s.exact_duplicates for s in selections),
        near_duplicates=fmean(s.near_duplicates for s in selections),
        shares=_mean_of_known(shares),
        numbers=_mean_by_key(numbers),
        texts={k: text for k, v in selections[0].diagnostics.items() if (text := _short(v))},
        labels=labels_covered(row),
        repeats=fmean(counted) if counted else None,
    )


def labels_covered(row: Row) -> str:
    """Return how many of the target's labels are among the chosen rows, and how evenly: means over the row's
    seeds, such as `12 of 16, entropy 3.1 of 4.0 bits`; empty where the pool carries no labels."""
    counted = [s for run in row.runs if (s := run.record.selection) and s.target_labels]
    if not counted:
        return ""
    chosen, wanted = fmean(s.labels_chosen for s in counted), fmean(s.target_labels for s in counted)
    told = f"{_rounded(chosen)} of {_rounded(wanted)}"
    bits = [s.labels_entropy for s in counted if s.labels_entropy is not None]
    if len(bits) < len(counted):  # an earlier version's record lacks it
        return told
    return f"{told}, entropy {fmean(bits):.1f} of {math.log2(wanted):.1f} bits"


def _rounded(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def pool_shares(board: Board) -> dict[str, float]:
    """The same shares for the pool: what a uniform draw is expected to hold."""
    for run in board.table.runs:
        selection = run.record.selection
        if selection and selection.pool_mix:
            return _shares(run.record, selection, selection.pool_mix) | _leaked(run.record, "pool")
    return {}


def mixes(block: BoardBlock) -> tuple[Mix, ...]:
    """Labels with three values or more; those with two are columns of the facts."""
    label_mixes: list[Mix] = []
    labels = dict.fromkeys(label for s in _selections(block) for label in s.label_mix)
    for label in labels:
        pool = _mean_by_key([s.pool_mix[label] for s in _selections(block) if label in s.pool_mix])
        chosen = [
            (line, _mean_by_key([s.label_mix[label] for s in _of(line) if label in s.label_mix]))
            for line in block.lines
        ]
        wanted = _target_values(block.lines[0].row.runs[0].record, label)
        values = sorted(
            set(pool).union(*(mix for _, mix in chosen)),
            key=lambda value, pool=pool, wanted=wanted: (value not in wanted, -pool.get(value, 0.0), value),
        )
        if len(values) < 3 or _yes_or_no(dict.fromkeys(values, 0.0)):
            continue
        shown, rest = values[:MIX_VALUES], values[MIX_VALUES:]
        if ordered := all(value[:1].isdigit() for value in values):
            shown.sort(key=_leading_number)

        def folded(mix: Mapping[str, float], shown=shown, rest=rest) -> dict[str, float]:
            folded = {value: mix.get(value, 0.0) for value in shown}
            return folded | ({REST: sum(mix.get(value, 0.0) for value in rest)} if rest else {})

        label_mixes.append(
            Mix(
                label=label,
                ordered=ordered,
                target=tuple(value for value in shown if value in wanted),
                values=(*shown, REST) if rest else tuple(shown),
                pool=folded(pool),
                rows=tuple((line, folded(mix)) for line, mix in chosen if mix),
            )
        )
    return tuple(label_mixes)


def overlap(block: BoardBlock) -> ChoiceOverlap:
    """Return which share of their rows two selectors have in common, a mean over the seeds that both have."""
    lines = tuple(line for line in block.lines if any(_of(line)))
    ids = [
        {
            run.record.seed: set(run.record.selection.indices_ids)
            for run in line.row.runs
            if run.record.selection
        }
        for line in lines
    ]
    shared: list[tuple[float | None, ...]] = []
    for i, a in enumerate(ids):
        of_row: list[float | None] = []
        for j, b in enumerate(ids):
            pairs = (
                [(a[s], a[t]) for s, t in combinations(sorted(a), 2)]
                if i == j
                else [(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())]
            )
            of_row.append(fmean(_shared(x, y) for x, y in pairs) if pairs else None)
        shared.append(tuple(of_row))
    pools = [run.record.pool.candidates for line in lines for run in line.row.runs if run.record.pool]
    # Two uniform draws of M and M' rows from N share M M' / N on average: M' / N of the smaller.
    chance = min(1.0, block.n_selected / pools[0]) if pools and pools[0] else None
    return ChoiceOverlap(lines=lines, shared=tuple(shared), chance=chance)


def residual_curves(line: BoardLine) -> tuple[Curve, ...]:
    """What the selector reports of its residual, of the row's first seed: lists of numbers under a name with
    `residual`, and a `curve` beside the `residual` that it led to."""
    for run in line.row.runs:
        if run.record.selection is None:
            continue
        curves = _curves(run.record.selection.diagnostics, "")
        if curves:
            return tuple(curves)
    return ()


def _curves(value: Any, name: str) -> list[Curve]:
    if isinstance(value, Mapping):
        named = [("residual" if k == "curve" and "residual" in value else k, v) for k, v in value.items()]
        return [curve for key, item in named for curve in _curves(item, f"{name} {key}".strip())]
    if not isinstance(value, (list, tuple)):
        return []
    if any(isinstance(item, (Mapping, list, tuple)) for item in value):
        return [curve for i, item in enumerate(value, 1) for curve in _curves(item, f"{name} {i}")]
    if "residual" not in name:
        return []
    if all(isinstance(v, (int, float)) and _finite(v) for v in value):
        return [Curve(label=name, values=tuple(float(v) for v in value))] if len(value) > 1 else []
    return []


def label_shares(record: RunRecord) -> dict[str, float]:
    """Of the chosen rows: on target, and with each yes/no label."""
    selection = record.selection
    return {} if selection is None else _shares(record, selection, selection.label_mix)


def _shares(
    record: RunRecord, selection: SelectionSummary, mix: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Yes/no labels, and the share on target where the benchmark's settings name the target's values.

    mix: of the chosen rows, or of the pool.
    """
    shares: dict[str, float] = {}
    for label, values in mix.items():
        wanted = _target_values(record, label)
        known = {**selection.pool_mix.get(label, {}), **selection.label_mix.get(label, {})}
        # A label of that name which none of these values has is about something else.
        if any(value in known for value in wanted):
            shares["on target"] = sum(values.get(value, 0.0) for value in wanted)
        if _yes_or_no(known):
            shares[label] = sum(values.get(yes, 0.0) for yes in YES)
    return shares


def _leaked(record: RunRecord, part: str) -> dict[str, float]:
    """Share of rows that ask what a test row asks; absent in records that were not checked."""
    counts = record.leakage.get(part)
    return {"asked in the test": counts["same_prompt"] / max(1, counts["rows"])} if counts else {}


def _target_values(record: RunRecord, label: str) -> list[str]:
    """`benchmark.skills: [a, b]` or `benchmark.skill: a` names the target's values of the label `skill`."""
    benchmark = record.config.get("benchmark")
    if not isinstance(benchmark, Mapping):
        return []
    named = benchmark.get(f"{label}s", benchmark.get(label))
    return [str(value) for value in (named if isinstance(named, list) else [named]) if value is not None]


def _leading_number(value: str) -> tuple[float, str]:
    """`128-255` -> 128, `1.2.3` -> 1.2, and the text itself where numbers are equal."""
    digits = re.match(r"\d[\d,]*(\.\d+)?", value)
    return float(digits.group().replace(",", "")) if digits else math.inf, value


def _yes_or_no(values: Mapping[str, float]) -> bool:
    """A label that only some rows carry has the value None in the others."""
    return bool(set(values) & {*YES, *NO}) and set(values) <= {*YES, *NO, "None"}


def _selections(block: BoardBlock) -> list[SelectionSummary]:
    return [selection for line in block.lines for selection in _of(line)]


def _of(line: BoardLine) -> list[SelectionSummary]:
    return [run.record.selection for run in line.row.runs if run.record.selection]


def _shared(a: set[str], b: set[str]) -> float:
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


def _mean_of_known(items: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each share over the runs that tell it: what a run was not checked for is unknown
    there, not zero."""
    keys = dict.fromkeys(key for item in items for key in item)
    return {key: fmean(item[key] for item in items if key in item) for key in keys}


def _mean_by_key(items: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What is absent from one run is zero there: a label's value that none of its rows has, a count that is
    told where there is something to count."""
    keys = dict.fromkeys(key for item in items for key in item)
    return {key: fmean(item.get(key, 0.0) for item in items) for key in keys}


def _short(value: Any) -> str:
    """A word or a short list as text; empty for anything else."""
    if isinstance(value, str):
        return value if len(value) <= 60 else value[:59] + "…"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)) and 0 < len(value) <= 8:
        parts = [f"{v:g}" if isinstance(v, (int, float)) and _finite(v) else _short(v) for v in value]
        return ", ".join(parts) if all(parts) else ""
    return ""


def _finite(value: float) -> bool:
    return not isinstance(value, bool) and math.isfinite(value)
