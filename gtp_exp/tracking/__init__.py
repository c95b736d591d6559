"""Write a run's events to metrics.jsonl, and on to a tracker that may fail without harm."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gtp_exp.config import without_folders
from gtp_exp.errors import first_line
from gtp_exp.files import json_digest
from gtp_exp.records.address import public_address

log = logging.getLogger(__name__)

NOT_THE_JOB = ("tracking", "launch", "outputs")


@dataclass(frozen=True)
class RunInfo:
    """Tells a tracker which run it follows."""

    name: str
    group: str  # jobs of one multirun share it
    directory: Path
    config: Mapping[str, Any]
    options: Mapping[str, str] = field(default_factory=dict)  # the chosen option of each config group

    @property
    def content(self) -> str:
        """Return the hash of what the job is, wherever it writes, runs and is followed: 16 hex digits, the
        same when the same job is started again."""
        return json_digest(self._job)[:16]

    @property
    def shared_config(self) -> dict[str, Any]:
        """Return the configuration for others to see: without what only says where the job runs, and of an
        absolute path no more than its last part."""
        return {key: without_folders(value) for key, value in self._job.items()}

    @property
    def _job(self) -> dict[str, Any]:
        return {key: value for key, value in self.config.items() if key not in NOT_THE_JOB}

    @property
    def tags(self) -> list[str]:
        """Return the chosen options as GROUP=OPTION."""
        return [f"{group}={option}" for group, option in self.options.items()]


class Tracker(Protocol):
    """Mirrors metrics.jsonl. Nothing is ever read back from it."""

    def start(self, run: RunInfo) -> None:
        """Begin to follow a run."""
        ...

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Take what `Journal.event` has written."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table of the run; `columns` names the values of each row."""
        ...

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """End with the run's final numbers; exit_code: 0 for a complete run."""
        ...


class NoTracker:
    """Mirrors nothing."""

    def start(self, run: RunInfo) -> None: ...

    def event(self, kind: str, values: Mapping[str, Any]) -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None: ...


class QuietTracker:
    """Tells one run to something that may fail: the first failure ends the mirroring, with a warning."""

    def __init__(self, name: str) -> None:
        """Follow nothing yet. name: of the tracker, for messages."""
        self.name = name
        self.to: Any = None  # what takes the run; None before it begins and after a failure
        self.address: str | None = None  # of the run's page, where it has one on the web

    def quietly(self, send: Callable[[Any], None]) -> None:
        """Call `send` with what takes the run, while that works."""
        if self.to is None:
            return
        try:
            send(self.to)
        except Exception as error:  # tracking never fails a run
            log.warning("%s: stopped tracking (%s)", self.name, first_line(error))
            self.to = None


@dataclass(frozen=True)
class NoTracking:
    """Keeps metrics.jsonl alone: the option `tracking=none`."""

    def tracker(self) -> Tracker:
        """Return a tracker that mirrors nothing."""
        return NoTracker()


class Journal:
    """Writes the event log metrics.jsonl, and mirrors it to a tracker; without a path it keeps nothing."""

    def __init__(self, path: Path | None, tracker: Tracker) -> None:
        self.path, self.tracker = path, tracker
        self.summary: dict[str, Any] = {}  # of the whole run, for the tracker

    @property
    def tracked_at(self) -> str | None:
        """Return the address of the run's page, if the tracker has one on the web."""
        return public_address(getattr(self.tracker, "address", None))

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one event; what is not finite is null. kind: "stage", "selection", "finetune", ..."""
        if self.path is None:
            return
        lost = {k: None for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
        told = {"time": time.time(), "kind": kind, **values, **lost}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told, ensure_ascii=False) + "\n")
        self.tracker.event(kind, values)


@contextlib.contextmanager
def tracked(journal: Journal, run: RunInfo) -> Iterator[None]:
    """Start the journal's tracker for a run, and end it with the journal's summary, or as failed."""
    journal.tracker.start(run)
    try:
        yield
    except BaseException:
        journal.tracker.finish({}, exit_code=1)
        raise
    journal.tracker.finish(journal.summary, exit_code=0)
