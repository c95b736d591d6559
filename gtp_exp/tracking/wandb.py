"""Follow runs in Weights & Biases: the option `tracking=wandb`."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Optional

from gtp_exp.errors import UserError, first_line
from gtp_exp.tracking import QuietTracker, RunInfo, Tracker

log = logging.getLogger(__name__)


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
    finish_timeout_s: float = 600.0  # of sending what is left at the end of a run; 0 waits without limit

    def tracker(self) -> Tracker:
        """Return a tracker of one run, not yet started."""
        return _WandbTracker(self)


PROJECT = "gtp-exp"
CURVES = ("warmup", "finetune")  # kinds of events that have a step
LONGEST_TAG = 64  # that W&B takes
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


class _WandbTracker(QuietTracker):
    """Follows one run in W&B."""

    def __init__(self, settings: WandbTracking) -> None:
        super().__init__("W&B")
        self.settings = settings
        self.folder: Path | None = None  # of the run
        self.logged: dict[str, int] = {}  # by kind, the last step that a run which goes on has told earlier

    def start(self, run: RunInfo) -> None:
        self.folder = run.directory
        # A sweep's agent, or a person, may have said which run this is.
        named = os.environ.get("WANDB_RUN_ID") or os.environ.get("WANDB_SWEEP_ID")
        tags = [*os.environ.get("WANDB_TAGS", "").split(","), *run.tags]
        self.to = start_run(
            self.settings,
            run.directory,
            name=run.name,
            group=run.group,
            id=None if named else run.content,
            resume=None if named else "allow",
            tags=[tag for tag in dict.fromkeys(tags) if 0 < len(tag) <= LONGEST_TAG],
            config={**run.shared_config, "options": dict(run.options)},
        )
        self.address = getattr(self.to, "url", None)  # None offline
        self.quietly(self._define_curves)

    def _define_curves(self, started: Any) -> None:
        for kind in CURVES:
            started.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
            if started.resumed:
                self.logged[kind] = started.summary.get(f"{kind}/step") or 0

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        if values.get("step", math.inf) <= self.logged.get(kind, -1):
            return
        self.quietly(lambda run: run.log({f"{kind}/{k}": v for k, v in values.items()}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.quietly(lambda run: log_table(run, name, columns, rows))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        def end(run: Any) -> None:
            run.summary.update(dict(summary))
            end_run(run, self.folder, exit_code)

        self.quietly(end)


def start_run(settings: WandbTracking, folder: Path, **about: Any) -> Any:
    """Start a run of W&B, offline where it cannot be online; return it, or None, with a warning.

    folder: for what W&B writes. about: what the run is, for wandb.init.
    """
    mode = wandb_mode(settings, os.environ)
    for attempt in dict.fromkeys([mode, "offline"]):
        try:
            return _init(settings, folder, attempt, about)
        except Exception as error:  # tracking never fails a run
            log.warning("W&B: %s did not start (%s)", attempt, first_line(error))
            _forget_runs()
    return None


def _forget_runs() -> None:
    """End the library's service, which would hold the id of a run that did not start against the next."""
    try:
        import wandb

        wandb.teardown()
    except Exception as error:  # tracking never fails a run
        log.debug("W&B: %s", error)


def _init(settings: WandbTracking, directory: Path, mode: Any, about: Mapping[str, Any]) -> Any:
    # The library reads the environment by itself, and stops at a mode that it does not know.
    os.environ["WANDB_MODE"] = mode
    import wandb

    folder = os.environ.get("WANDB_DIR") or str(directory)
    Path(folder).mkdir(parents=True, exist_ok=True)
    # What the library keeps for itself belongs to the run, not to the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(directory / "wandb"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(directory))  # it makes a folder `wandb` in there
    os.environ.setdefault("WANDB_SILENT", "true")
    # Else it would ask for a key. It knows whose key is wanted, and every place where one may be.
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError("no API key for its server by WANDB_API_KEY or `wandb login`; tracking offline")
    return wandb.init(
        project=settings.project or os.environ.get("WANDB_PROJECT") or PROJECT,
        entity=settings.entity,
        dir=folder,
        mode=mode,
        settings=wandb.Settings(
            init_timeout=settings.timeout_s,
            finish_timeout=settings.finish_timeout_s,
            finish_timeout_raises=True,
            console="off",
            # This machine's folders, names and packages: no one's business, and results.json says what
            # was run. None would be this machine's name.
            host="",
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            disable_git=True,
        ),
        **about,
    )


def log_table(run: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Log a table as a file of the run.

    Logged unbound it would be an artifact too, whose record names the folder of this machine where a copy
    waits to be sent.
    """
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    table.bind_to_run(run, name, run.step)
    run.log({name: table})


def end_run(run: Any, folder: Path | None, exit_code: int = 0) -> None:
    """End a run, and remove W&B's own logs: they name folders of this machine, and `wandb sync` does not
    need them. What the server does not take in time stays on the disk, and is told."""
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        log.warning(
            "W&B: the server did not take the end of the run within %g seconds; `wandb sync %s` sends it",
            run.settings.finish_timeout,
            Path(run.dir).parent,
        )
    shutil.rmtree(run.settings.log_dir, ignore_errors=True)
    if folder is not None and os.environ["WANDB_CACHE_DIR"] == str(folder):  # not a person's
        shutil.rmtree(folder / "wandb" / "logs", ignore_errors=True)
    for link in Path(run.settings.wandb_dir).glob("debug*.log"):
        link.unlink()
