"""How long stages took in finished runs of this machine, and which stages the cache holds already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from gtp_exp.errors import UserError
from gtp_exp.estimate.plan import (
    EVALUATION,
    FINETUNE,
    POOL,
    SELECTION,
    TARGET,
    UNTUNED,
    WARMUP,
    Facts,
    Job,
    Work,
    chooser,
    evaluation_rates,
    fingerprint,
    rate_names,
    stages,
    store_settings,
    warmup_rows,
)
from gtp_exp.records.record import RECORD_NAME, RunRecord, State, read_record


@dataclass(frozen=True)
class Earlier:
    """A complete run."""

    name: str
    record: RunRecord

    @property
    def job(self) -> Job:
        return self.record.config

    @property
    def tokens_per_row(self) -> float:
        """Of the chosen rows."""
        assert self.record.selection is not None
        return self.record.selection.n_tokens / self.record.selection.n_selected


@dataclass(frozen=True)
class Rate:
    """Units and seconds of finished stages."""

    units: float
    seconds: float
    runs: frozenset[str]

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.units + other.units, self.seconds + other.seconds, self.runs | other.runs)


def earlier_runs(folder: Path) -> list[Earlier]:
    """Complete runs below `folder`; a record that cannot be read is no measurement."""
    found = []
    for path in sorted(folder.rglob(RECORD_NAME)) if folder.is_dir() else []:
        with contextlib.suppress(UserError):
            record = read_record(path)
            if record.state is State.COMPLETE and record.pool and record.selection:
                found.append(Earlier(path.parent.relative_to(folder).as_posix(), record))
    return found


def price(work: Work, rates: Mapping[str, Rate]) -> tuple[float, Rate] | None:
    """Seconds at the closest measured rate, or None."""
    rate = next((rates[name] for name in work.rates if name in rates), None)
    if work.units is None or rate is None:
        return None
    return work.units * rate.seconds / rate.units, rate


def overhead(runs: Iterable[Earlier], jobs: Sequence[Job]) -> float | None:
    """Seconds of a job outside its stages (imports, reading the pool, checks): a mean over runs of the jobs'
    models and data sets, None without one."""
    alike = {fingerprint(job["model"], job["dataset"]) for job in jobs}
    spent = []
    for run in runs:
        if fingerprint(run.job.get("model"), run.job.get("dataset")) in alike and run.record.finished:
            began, ended = (datetime.fromisoformat(t) for t in (run.record.started, run.record.finished))
            own = sum(cost.seconds for cost in run.record.stages.values() if not cost.cached)
            spent.append(max(0.0, (ended - began).total_seconds() - own))
    return fmean(spent) if spent else None


def measured(runs: Iterable[Earlier], facts: Facts) -> dict[str, Rate]:
    """Rate by name. A stage that several runs shared counts once."""
    rates: dict[str, Rate] = {}
    seen: set[str] = set()
    for run in runs:
        for stage, cost in run.record.stages.items():
            if cost.key in seen or cost.seconds <= 0:
                continue
            with contextlib.suppress(KeyError, TypeError):  # a record of an older form of the configuration
                units, names = _units(run, stage, facts)
                if units:
                    seen.add(cost.key)
                    rate = Rate(units, cost.seconds, frozenset({run.name}))
                    for name in names:
                        rates[name] = rates[name] + rate if name in rates else rate
    return rates


def _units(run: Earlier, stage: str, facts: Facts) -> tuple[float | None, tuple[str, ...]]:
    """Units of a finished stage by its own record, and the rates that it tells."""
    job, record = run.job, run.record
    assert record.pool and record.selection
    gradients, n = job["gradients"], record.pool.candidates
    model = job["model"] if stage in (FINETUNE, EVALUATION, UNTUNED) else chooser(job)
    pool = facts.pools.get(fingerprint(job["dataset"], model))
    tokens = pool.tokens if pool and not pool.at_most else run.tokens_per_row
    benchmark = facts.benchmarks.get(fingerprint(job["benchmark"], model))
    checkpoints = gradients["warmup"]["epochs"]
    if stage == WARMUP:
        names = rate_names(WARMUP, model, gradients["warmup"])
        return warmup_rows(gradients, n) * checkpoints * tokens, names
    if stage == POOL:
        return n * checkpoints * tokens, rate_names(POOL, model, store_settings(gradients))
    if stage == SELECTION:
        return float(n), (fingerprint(SELECTION, job["selector"]["_target_"], model),)
    if stage == FINETUNE:
        units = float(record.selection.n_tokens * job["train"]["epochs"])
        return units, rate_names(FINETUNE, model, job["train"])
    if benchmark is None:
        return None, ()
    if stage == TARGET and benchmark.target_rows and benchmark.target_tokens:
        units = benchmark.target_rows * checkpoints * benchmark.target_tokens
        return units, rate_names(TARGET, model, store_settings(gradients))
    if stage in (EVALUATION, UNTUNED) and benchmark.test_rows:
        return float(benchmark.test_rows), evaluation_rates(job, benchmark)
    return None, ()


def finished(runs: Iterable[Earlier], facts: Facts, cache: Path) -> set[str]:
    """Keys of the stages that the cache holds, as far as the records of runs name its entries."""
    from gtp_exp.stages import LIBRARIES, VERSIONS

    there: set[str] = set()
    for run in runs:
        try:
            works = stages(run.job, facts)
        except (KeyError, TypeError):  # its pool, benchmark or selector is none of the jobs'
            continue
        for work in works:
            cost = run.record.stages.get(work.stage)
            if cost is None or not cost.key:
                continue
            kind = work.stage.split(":")[0].split(" ")[0]  # "gradients: pool" lies in gradients/
            with contextlib.suppress(OSError, ValueError, KeyError):
                entries = [
                    json.loads((cache / kind / key / "manifest.json").read_text(encoding="utf-8"))
                    for key in cost.key.split()
                ]
                current = all(
                    entry["version"] == VERSIONS[kind] and entry["reads"]["libraries"] == LIBRARIES
                    for entry in entries
                )
                if kind == SELECTION:
                    current &= entries[0]["reads"]["version"] == facts.selector(run.job).version
                if current:
                    there.add(work.key)
    return there
