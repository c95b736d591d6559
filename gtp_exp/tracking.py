"""Write a run's events to metrics.jsonl, and on to a tracker that may fail without harm."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Optional, Protocol

from gtp_exp.errors import first_line

log = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class RunInfo:
    """Tells a tracker which run it follows."""

    name: str
    group: str  # jobs of one multirun share it
    directory: Path
    config: Mapping[str, Any]


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


@dataclass(frozen=True)
class NoTracking:
    """Keeps metrics.jsonl alone: the option `tracking=none`."""

    def tracker(self) -> Tracker:
        """Return a tracker that mirrors nothing."""
        return NoTracker()


class WandbMode(Enum):
    """Says whether W&B is told at once, keeps what it is told for later, or is told nothing."""

    OFFLINE = "offline"
    ONLINE = "online"
    DISABLED = "disabled"


@dataclass(frozen=True)
class WandbTracking:
    """Mirrors the event log to Weights & Biases: the option `tracking=wandb`."""

    project: Optional[str] = None  # null: WANDB_PROJECT, else gtp-exp
    entity: Optional[str] = None  # null: WANDB_ENTITY, else the account's own
    mode: Optional[WandbMode] = None  # null: WANDB_MODE and WANDB_DISABLED, else offline
    timeout_s: float = 30.0  # of a connection attempt; then the run goes on offline

    def tracker(self) -> Tracker:
        """Return a tracker of one run, not yet started."""
        return _WandbTracker(self)


PROJECT = "gtp-exp"
_OTHER_NAMES = {"dryrun": "offline", "run": "online"}  # of the modes, which W&B once had
_YES = {"1", "on", "yes", "true"}


def wandb_mode(settings: WandbTracking, environment: Mapping[str, str]) -> str:
    """Return the mode to start W&B in: that of the settings, else the environment's, else offline.

    A value of the environment that names no mode is told, and does not stop the job.
    """
    if settings.mode is not None:
        return settings.mode.value
    if environment.get("WANDB_DISABLED", "").strip().lower() in _YES:
        log.info("W&B: off (WANDB_DISABLED)")
        return WandbMode.DISABLED.value
    given = environment.get("WANDB_MODE", "").strip().lower()
    mode = _OTHER_NAMES.get(given, given)
    known = [known.value for known in WandbMode]
    if given and mode not in known:
        log.warning("W&B: WANDB_MODE=%s is none of %s; tracking offline", given, ", ".join(known))
    return mode if mode in known else WandbMode.OFFLINE.value


class _WandbTracker:
    """Follows one run in W&B; the first thing that goes wrong ends the mirroring, with a warning."""

    def __init__(self, settings: WandbTracking) -> None:
        self.settings = settings
        self.run: Any = None

    def start(self, run: RunInfo) -> None:
        mode = wandb_mode(self.settings, os.environ)
        if mode == "online" and not _has_key():
            log.warning("W&B: mode online but no API key (WANDB_API_KEY or `wandb login`); tracking offline")
            mode = "offline"
        for attempt in dict.fromkeys([mode, "offline"]):
            try:
                self.run = self._init(run, attempt)
                return
            except Exception as error:  # tracking never fails a run
                log.warning("W&B: %s did not start (%s)", attempt, first_line(error))

    def _init(self, run: RunInfo, mode: Any) -> Any:
        # The library reads the environment by itself, and stops at a mode that it does not know.
        os.environ["WANDB_MODE"] = mode
        import wandb

        folder = os.environ.get("WANDB_DIR") or str(run.directory)
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Staged copies belong to the run, not to the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(run.directory / "wandb"))
        os.environ.setdefault("WANDB_SILENT", "true")
        started = wandb.init(
            project=self.settings.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=self.settings.entity,
            name=run.name,
            group=run.group,
            dir=folder,
            config=dict(run.config),
            mode=mode,
            settings=wandb.Settings(
                init_timeout=self.settings.timeout_s,
                console="off",
                # This machine's folders and names: no one's business, and results.json says what was run.
                x_disable_meta=True,
                x_disable_machine_info=True,
                disable_git=True,
            ),
        )
        for kind in ("warmup", "finetune"):
            started.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        return started

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self._quietly(lambda run: run.log({f"{kind}/{k}": v for k, v in values.items()}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

        self._quietly(send)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        def end(run: Any) -> None:
            run.summary.update(dict(summary))
            run.finish(exit_code=exit_code)
            # W&B's own log: it names folders of this machine, and `wandb sync` does not need it.
            shutil.rmtree(run.settings.log_dir, ignore_errors=True)

        self._quietly(end)

    def _quietly(self, send: Callable[[Any], None]) -> None:
        if self.run is None:
            return
        try:
            send(self.run)
        except Exception as error:  # tracking never fails a run
            log.warning("W&B: stopped tracking (%s)", first_line(error))
            self.run = None


class Journal:
    """Writes the event log metrics.jsonl, and mirrors it to a tracker; without a path it keeps nothing."""

    def __init__(self, path: Path | None, tracker: Tracker) -> None:
        self.path, self.tracker = path, tracker
        self.summary: dict[str, Any] = {}  # of the whole run, for the tracker

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one event. kind: "stage", "selection", "finetune", ..."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), "kind": kind, **values}, ensure_ascii=False) + "\n")
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


def _has_key() -> bool:
    """Return whether W&B could log in."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        import netrc

        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, ValueError, ImportError, netrc.NetrcParseError):
        return False
