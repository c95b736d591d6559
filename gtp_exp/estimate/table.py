"""The estimate as people read it: a table of stages, and what its numbers rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gtp_exp.estimate.rates import Rate, price
from gtp_exp.estimate.runs import Job
from gtp_exp.estimate.walk import POOL, STAGES, TARGET, Plan, Work
from gtp_exp.leaderboard.comparability import flatten

Names = Mapping[str, str]  # group -> chosen option
HEADS = ("", "jobs", "distinct", "done", "passes", "tokens", "disk", "time")


@dataclass(frozen=True)
class StageLine:
    """Sums up some stages; passes, tokens, disk and time are those of the stages that are not done."""

    label: str
    jobs: int
    works: Sequence[Work]
    rates: Mapping[str, Rate]

    @property
    def left(self) -> list[Work]:
        """Return the stages that are still to be computed."""
        return [work for work in self.works if not work.cached]

    @property
    def prices(self) -> list[tuple[float, Rate] | None]:
        """Return seconds and rate of each of those; None where nothing has been measured."""
        return [price(work, self.rates) for work in self.left]

    def cells(self, around: float = 0.0) -> list[str]:
        """Return the line of the table. around: further seconds."""
        left, prices = self.left, self.prices
        passes = f"{_passes(left):,}" if _passes(left) else ""
        tokens = sum(work.tokens or 0.0 for work in left)
        bound = "\u2264 " if any(work.at_most and work.tokens for work in left) else ""
        nbytes = sum(work.nbytes for work in left)
        time = estimated_time(sum(priced[0] for priced in prices if priced) + around)
        if None in prices:
            time = f"> {time}" if any(prices) else "unknown"
        return [
            self.label,
            f"{self.jobs:,}",
            f"{len(self.works):,}",
            f"{len(self.works) - len(left):,}",
            "unknown" if any(work.rows is None for work in left) else passes,
            f"{bound}{with_unit_prefix(tokens)}" if tokens else "",
            f"{with_unit_prefix(nbytes)}B" if nbytes else "",
            time,
        ]


def estimate_table(
    jobs: Sequence[Job],
    names: Sequence[Names],
    planned: Plan,
    rates: Mapping[str, Rate],
    overhead: float | None,
) -> str:
    """Return the estimate as text. overhead: seconds of a job outside its stages."""
    used = [stage for stage in STAGES if stage in planned.users]
    lines = [StageLine(stage, len(planned.users[stage]), planned.of(stage), rates) for stage in used]
    total = StageLine("total", len(jobs), list(planned.works.values()), rates)
    around = None if overhead is None else overhead * len(jobs)
    outside = ["around the stages", f"{len(jobs):,}", "", "", "", "", ""]
    outside.append("unknown" if around is None else estimated_time(around))
    rows = [list(HEADS), *(line.cells() for line in lines), outside, total.cells(around or 0.0)]
    rows[-1][HEADS.index("passes")] = ""  # training, gradients and tests do not add up
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    out = [f"{len(jobs):,} job{'s' * (len(jobs) > 1)}: {axes(jobs, names)}", ""]
    for row in rows:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        out.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    notes = [*_data(names, planned), *_gradients(jobs, total), *_time(lines, total)]
    return "\n".join([*out, "", *notes, "nothing was started"])


def _passes(works: Sequence[Work]) -> int:
    return sum((work.rows or 0) * work.passes for work in works)


def axes(jobs: Sequence[Job], names: Sequence[Names]) -> str:
    """What differs among the jobs: options of groups, and keys."""
    if len(jobs) == 1:
        groups = ("selector", "budget", "model", "dataset", "benchmark")
        return ", ".join(f"{group}={names[0].get(group)}" for group in groups) + f", seed={jobs[0]['seed']}"
    options = {group: {name[group] for name in names} for group in names[0] if group in jobs[0]}
    varying = {group for group, names_used in options.items() if len(names_used) > 1}
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in flatten({k: v for k, v in job.items() if k not in varying}).items():
            values.setdefault(key, set()).add(value)
    counts = {group: len(names_used) for group, names_used in options.items() if group in varying}
    counts |= {key: len(texts) for key, texts in values.items() if len(texts) > 1}
    return " x ".join(f"{n} {key}{'s' if '.' not in key else ''}" for key, n in counts.items()) or "all alike"


def _data(names: Sequence[Names], planned: Plan) -> list[str]:
    notes = [
        f"{'pool' if group == 'dataset' else group}{f' {name[group]}' if group in name else ''}: "
        + data.notes[group]
        for group in ("dataset", "benchmark", "tests", "model", "selection_model")
        for data, name in zip(planned.data, names, strict=True)
        if data.notes[group]
    ]
    return list(dict.fromkeys(notes))  # most jobs share their data


def _gradients(jobs: Sequence[Job], total: StageLine) -> list[str]:
    stores = [work for work in total.left if work.stage in (POOL, TARGET)]
    notes = [f"gradient passes, rows x checkpoints: {_passes(stores):,}"] if stores else []
    if stores and any(_sketch(job).get("kind") == "none" for job in jobs):
        notes.append("gradients.sketch.kind=none keeps whole gradients: their disk is not counted")
    return notes


def _sketch(job: Job) -> Mapping[str, Any]:
    """Return the settings of a job's sketch; none where its gradients are given."""
    return job["gradients"].get("sketch", {})


def _time(lines: Sequence[StageLine], total: StageLine) -> list[str]:
    if not total.left:
        return ["time: the cache holds every stage"]
    runs = sorted({run for priced in total.prices if priced for run in priced[1].runs})
    if not runs:
        return ["time: no finished run of this model to measure it by; run one small job, then ask again"]
    shown = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    notes = [f"time: one job after the other, at the rates of {shown}"]
    if missing := [line.label for line in lines if None in line.prices]:
        notes.append(f"time: not measured, at least in part: {', '.join(missing)}")
    return notes


def with_unit_prefix(n: float) -> str:
    """Return a count as a short text with its unit prefix."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} "


def estimated_time(seconds: float) -> str:
    """Return seconds as a short text in the unit that fits."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else "< 1 s"
