"""The estimate as people read it: a table of stages, and what its numbers rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gtp_exp.estimate.plan import POOL, STAGES, TARGET, Facts, Job, Planned, Work, fingerprint
from gtp_exp.estimate.rates import Rate, price
from gtp_exp.leaderboard.comparability import flatten

Names = Mapping[str, str]  # group -> chosen option
HEADS = ("", "jobs", "distinct", "done", "passes", "tokens", "disk", "time")


@dataclass(frozen=True)
class Line:
    """Some stages, summed over those that are still to be computed."""

    label: str
    jobs: int
    works: Sequence[Work]
    done: Sequence[Work]
    rates: Mapping[str, Rate]

    @property
    def left(self) -> list[Work]:
        done = {work.key for work in self.done}
        return [work for work in self.works if work.key not in done]

    @property
    def prices(self) -> list[tuple[float, Rate] | None]:
        return [price(work, self.rates) for work in self.left]

    @property
    def seconds(self) -> float:
        return sum(found[0] for found in self.prices if found)

    def cells(self, around: float = 0.0) -> list[str]:
        """around: further seconds."""
        left, seconds = self.left, self.seconds + around
        unknown = any(work.rows is None for work in left)
        passes = sum((work.rows or 0) * work.passes for work in left)
        tokens = sum(work.tokens or 0.0 for work in left)
        bound = "\u2264 " if any(work.at_most and work.tokens for work in left) else ""
        nbytes = sum(work.nbytes for work in left)
        time = duration(seconds)
        if None in self.prices:
            time = f"> {time}" if any(self.prices) else "unknown"
        return [
            self.label,
            f"{self.jobs:,}",
            f"{sum(work.parts for work in self.works):,}",
            f"{sum(work.parts for work in self.done):,}",
            "unknown" if unknown else f"{passes:,}" if passes else "",
            f"{bound}{short(tokens)}" if tokens else "",
            f"{short(nbytes)}B" if nbytes else "",
            time,
        ]


def table(
    jobs: Sequence[Job],
    names: Sequence[Names],
    facts: Facts,
    planned: Planned,
    there: set[str],
    rates: Mapping[str, Rate],
    overhead: float | None,
) -> str:
    """there: keys of stages that the cache holds. overhead: seconds of a job outside its stages."""
    lines = []
    for stage in STAGES:
        if works := planned.of(stage):
            users = set().union(*(planned.jobs[work.key] for work in works))
            lines.append(Line(stage, len(users), works, [w for w in works if w.key in there], rates))
    every = list(planned.works.values())
    total = Line("total", len(jobs), every, [work for work in every if work.key in there], rates)
    around = None if overhead is None else overhead * len(jobs)
    outside = ["around the stages", f"{len(jobs):,}", "", "", "", "", ""]
    outside.append("unknown" if around is None else duration(around))
    rows = [list(HEADS), *(line.cells() for line in lines), outside, total.cells(around or 0.0)]
    rows[-1][HEADS.index("passes")] = ""  # training, gradients and tests do not add up
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    out = [f"{len(jobs):,} job{'s' * (len(jobs) > 1)}: {axes(jobs, names)}", ""]
    for row in rows:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        out.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join([*out, "", *_notes(jobs, names, facts, lines, total)])


def axes(jobs: Sequence[Job], names: Sequence[Names]) -> str:
    """What differs among the jobs: options of groups, and keys."""
    if len(jobs) == 1:
        groups = ("selector", "budget", "model", "dataset", "benchmark")
        return ", ".join(f"{group}={names[0].get(group)}" for group in groups) + f", seed={jobs[0]['seed']}"
    options = {group: {name[group] for name in names} for group in names[0] if group in jobs[0]}
    varying = {group for group, found in options.items() if len(found) > 1}
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in flatten({k: v for k, v in job.items() if k not in varying}).items():
            values.setdefault(key, set()).add(value)
    counts = {group: len(found) for group, found in options.items() if group in varying}
    counts |= {key: len(found) for key, found in values.items() if len(found) > 1}
    return " x ".join(f"{n} {key}{'s' if '.' not in key else ''}" for key, n in counts.items()) or "all alike"


def _notes(
    jobs: Sequence[Job], names: Sequence[Names], facts: Facts, lines: Sequence[Line], total: Line
) -> list[str]:
    notes = []
    for job, name in _distinct(jobs, names, "dataset"):
        pool = facts.pool(job)
        notes.append(
            f"pool {name['dataset']}: {pool.rows:,} rows ({pool.rows_from}), {pool.tokens:,.0f} tokens a row "
            f"({pool.tokens_from})"
        )
    for job, name in _distinct(jobs, names, "benchmark"):
        known = facts.benchmark(job)
        said = f"its rows are unknown and left out of the sums ({known.unknown})"
        if not known.unknown:
            target = "the pool is the target" if known.in_domain else f"{known.target_rows:,} target rows"
            tests = (
                "as many test rows as lm-eval holds"
                if known.test_rows is None
                else f"{known.test_rows:,} test rows"
            )
            said = f"{target}, {tests} in {known.tasks} task{'s' * (known.tasks != 1)}"
        notes.append(f"benchmark {name['benchmark']}: {said}")
    if stores := [work for work in total.left if work.stage in (POOL, TARGET)]:
        passes = sum((work.rows or 0) * work.passes for work in stores)
        notes.append(f"gradient passes, rows x checkpoints: {passes:,}")
        if any(job["gradients"]["sketch"]["kind"] == "none" for job in jobs):
            notes.append("gradients.sketch.kind=none keeps whole gradients: their disk is not counted")
    notes = list(dict.fromkeys(notes))  # pools that differ in their seed alone read alike
    return [*notes, *_time(lines, total), "nothing was started"]


def _time(lines: Sequence[Line], total: Line) -> list[str]:
    if not total.left:
        return ["time: the cache holds every stage"]
    runs = sorted({run for found in total.prices if found for run in found[1].runs})
    if not runs:
        return ["time: no finished run of this model to measure it by; run one small job, then ask again"]
    shown = ", ".join(runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    notes = [f"time: one job after the other, at the rates of {shown}"]
    if missing := [line.label for line in lines if None in line.prices]:
        notes.append(f"time: not measured, at least in part: {', '.join(missing)}")
    return notes


def _distinct(jobs: Sequence[Job], names: Sequence[Names], group: str) -> list[tuple[Job, Names]]:
    pairs = zip(jobs, names, strict=True)
    return list({fingerprint(job[group], job["model"]): (job, name) for job, name in pairs}.values())


def short(n: float) -> str:
    """Return a count as a short text with its unit prefix."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} "


def duration(seconds: float) -> str:
    """Return seconds as a short text in the unit that fits."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else "< 1 s"
