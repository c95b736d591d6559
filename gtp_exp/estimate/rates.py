"""How much work a stage is, and how long such work took in finished runs of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from gtp_exp.config import build
from gtp_exp.errors import UserError
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.records.record import RECORD_NAME, PoolSummary, RunRecord, SelectionSummary, State, read_record
from gtp_exp.stages import EVALUATION, UNTUNED

WARMUP, POOL, TARGET = "warmup", "gradients: pool", "gradients: target"  # as results.json names them
SELECTION, FINETUNE = "selection", "finetune"
STAGES = (WARMUP, POOL, TARGET, SELECTION, FINETUNE, EVALUATION, UNTUNED)

Job = Mapping[str, Any]  # resolved config: a node per group, and the keys outside any group


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON values, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def node_of_chooser(job: Job) -> Any:
    """Return the node of the model that chooses."""
    return job.get("selection_model") or job["model"]


@dataclass(frozen=True)
class Earlier:
    """Holds a complete run."""

    name: str
    record: RunRecord
    pool: PoolSummary
    selection: SelectionSummary

    @property
    def job(self) -> Job:
        """Return the run's configuration."""
        return self.record.config

    @property
    def row_tokens(self) -> float:
        """Return the mean number of tokens of a chosen row."""
        return self.selection.n_tokens / self.selection.n_selected


def earlier_runs(folder: Path) -> list[Earlier]:
    """Return the complete runs below a folder; a record that cannot be read is no measurement."""
    found = []
    for path in sorted(folder.rglob(RECORD_NAME)) if folder.is_dir() else []:
        with contextlib.suppress(UserError):
            record = read_record(path)
            if record.state is State.COMPLETE and record.pool and record.selection:
                name = path.parent.relative_to(folder).as_posix()
                found.append(Earlier(name, record, record.pool, record.selection))
    return found


def overhead(runs: Iterable[Earlier], jobs: Sequence[Job]) -> float | None:
    """Return the seconds of a job outside its stages (imports, reading the pool, checks): a mean over runs of
    the jobs' models and data sets, None without one."""
    alike = {fingerprint(job["model"], job["dataset"]) for job in jobs}
    spent = []
    for run in runs:
        if fingerprint(run.job.get("model"), run.job.get("dataset")) in alike and run.record.finished:
            began, ended = (datetime.fromisoformat(t) for t in (run.record.started, run.record.finished))
            own = sum(cost.seconds for cost in run.record.stages.values() if not cost.cached)
            spent.append(max(0.0, (ended - began).total_seconds() - own))
    return fmean(spent) if spent else None


@dataclass(frozen=True)
class Counts:
    """Holds the rows and tokens that pass through a job; None where they are unknown."""

    candidates: int
    row_tokens: float  # mean of the candidates, as the model that chooses reads them
    target: int | None
    target_tokens: float | None
    chosen: int
    chosen_tokens: float
    tested: int | None


@dataclass(frozen=True)
class Size:
    """Holds what a stage passes through the model, and the units that its time is proportional to."""

    rows: int | None  # None: unknown
    passes: int  # of every row: epochs or checkpoints
    tokens: float | None  # over all passes
    units: float | None


def sizes(counts: Counts, gradients: GradientConfig, epochs: int) -> dict[str, Size]:
    """Return the size of every stage by name. epochs: of the fine-tuning."""

    def by_tokens(rows: int | None, passes: int, tokens: float | None) -> Size:
        total = None if tokens is None else passes * tokens
        return Size(rows, passes, total, total)

    n, checkpoints = counts.candidates, gradients.warmup.epochs
    warmed = gradients.warmup_rows(n)
    tested = Size(counts.tested, 1, None, counts.tested)
    return {
        WARMUP: by_tokens(warmed, checkpoints, warmed * counts.row_tokens),
        POOL: by_tokens(n, checkpoints, n * counts.row_tokens),
        TARGET: by_tokens(counts.target, checkpoints, counts.target_tokens),
        SELECTION: Size(n, 1, n * counts.row_tokens, n),
        FINETUNE: by_tokens(counts.chosen, epochs, counts.chosen_tokens),
        EVALUATION: tested,
        UNTUNED: tested,
    }


@dataclass(frozen=True)
class Rate:
    """Holds units and seconds of finished stages."""

    units: float
    seconds: float
    runs: frozenset[str]

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.units + other.units, self.seconds + other.seconds, self.runs | other.runs)


def rate_names(stage: str, job: Job, tests: Iterable[str]) -> list[str]:
    """Return the names of a stage's rates in a job, the closest first: with the same settings, and with any.

    tests: the keys of the tested rows.
    """
    gradients = {**job["gradients"], "warmup": None}
    kind = job["selector"]["_target_"]  # one selector says nothing of another
    tested = (sorted(tests), job["benchmark"]["_target_"])
    alike = {
        WARMUP: (job["gradients"]["warmup"], None),
        POOL: (gradients, None),
        TARGET: (gradients, None),
        SELECTION: (kind,),
        FINETUNE: (job["train"], None),
        EVALUATION: tested,
        UNTUNED: tested,
    }
    model = job["model"] if stage in (FINETUNE, EVALUATION, UNTUNED) else node_of_chooser(job)
    name = EVALUATION if stage == UNTUNED else stage
    return [fingerprint(name, model, _without_length(settings)) for settings in alike[stage]]


def _without_length(settings: Any) -> Any:
    """Return settings without the seed, and without what the units count already."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if name not in ("epochs", "seed")}


def measured(runs: Iterable[Earlier], tokens: Mapping[str, float]) -> dict[str, Rate]:
    """Return rates by name. A stage that several runs shared counts once.

    tokens: mean of a row, by the rows' content and the `fingerprint` of the node of the model that reads it.
    """
    rates: dict[str, Rate] = {}
    seen: set[str] = set()
    for run in runs:
        with contextlib.suppress(KeyError, TypeError, UserError):  # an older form of the configuration
            gradients = build(run.job["gradients"], "gradients")
            found = sizes(_counts(run, tokens), gradients, run.job["train"]["epochs"])
            tests = [rows.content for name, rows in run.record.rows.items() if name != "target"]
            for stage, cost in run.record.stages.items():
                units = found[stage].units
                if units and cost.seconds > 0 and cost.key not in seen:
                    seen.add(cost.key)
                    rate = Rate(units, cost.seconds, frozenset({run.name}))
                    for name in rate_names(stage, run.job, tests):
                        rates[name] = rates[name] + rate if name in rates else rate
    return rates


def _counts(run: Earlier, tokens: Mapping[str, float]) -> Counts:
    """Return what passed through a finished run, by its own record."""
    model, rows = fingerprint(node_of_chooser(run.job)), run.record.rows
    target, tested = rows.get("target"), [part.used for name, part in rows.items() if name != "target"]
    target_mean = tokens.get(target.content + model) if target else None
    return Counts(
        candidates=run.pool.candidates,
        row_tokens=tokens.get(run.pool.content + model, run.row_tokens),
        target=target.used if target else None,
        target_tokens=target.used * target_mean if target and target_mean else None,
        chosen=run.selection.n_selected,
        chosen_tokens=run.selection.n_tokens,
        tested=sum(tested) or None,
    )


def price(units: float | None, names: Iterable[str], rates: Mapping[str, Rate]) -> tuple[float, Rate] | None:
    """Return seconds at the closest measured rate, and that rate; None without one."""
    rate = next((rates[name] for name in names if name in rates), None)
    return None if units is None or rate is None else (units * rate.seconds / rate.units, rate)
