"""Finished runs of this machine: what they know of rows that are gone, and of the time around the stages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.files import find_files, json_digest
from gtp_exp.records.record import RECORD_NAME, PoolSummary, RunRecord, SelectionSummary, State, read_record

Job = Mapping[str, Any]  # resolved config: a node per group, and the keys outside any group


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON values, in order."""
    return json_digest(parts)[:16]


@dataclass(frozen=True)
class Earlier:
    """Holds a complete run."""

    name: str
    record: RunRecord
    pool: PoolSummary
    selection: SelectionSummary


def earlier_runs(folder: Path) -> list[Earlier]:
    """Return the complete runs below a folder; a record that cannot be read is no measurement."""
    complete = []
    for path in find_files(folder, RECORD_NAME):
        with contextlib.suppress(UserError):
            record = read_record(path)
            if record.state is State.COMPLETE and record.pool and record.selection:
                name = path.parent.relative_to(folder).as_posix()
                complete.append(Earlier(name, record, record.pool, record.selection))
    return complete


def overhead(runs: Iterable[Earlier], jobs: Sequence[Job]) -> float | None:
    """Return the seconds of a job outside its stages (imports, reading the pool, checks): a mean over runs of
    the jobs' models and data sets, None without one."""
    alike = {fingerprint(job["model"], job["dataset"]) for job in jobs}
    spent = []
    for record in (run.record for run in runs):
        if fingerprint(record.config.get("model"), record.config.get("dataset")) in alike and record.finished:
            began, ended = (datetime.fromisoformat(t) for t in (record.started, record.finished))
            own = sum(cost.spent_here for cost in record.stages.values())
            spent.append(max(0.0, (ended - began).total_seconds() - own))
    return fmean(spent) if spent else None
