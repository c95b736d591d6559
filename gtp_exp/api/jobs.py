"""A job of the command line, started from Python: composed here by Hydra, run by a worker process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

from hydra import compose, initialize_config_dir, version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from gtp_exp.api.search_path import searched_as_well
from gtp_exp.api.start import (
    check_arguments,
    check_not_in_a_worker,
    conf_dir,
    folder_key,
    prepare_job,
    reason_of_failure,
    run_job,
    with_home_folder,
)
from gtp_exp.errors import UserError, first_line
from gtp_exp.launch.claim import claimed
from gtp_exp.launch.faults import storage_fault
from gtp_exp.launch.launcher import TIMED_OUT
from gtp_exp.paths import at_home
from gtp_exp.records.record import RECORD_NAME, WORKER_LOG, RunRecord, read_record

_COMPOSING = threading.Lock()  # Hydra keeps what it composes in variables of the process
INTERRUPTED = 130  # a worker's exit status after Ctrl-C


def run(overrides: Sequence[str], config_dir: str | os.PathLike[str] | None = None) -> RunRecord:
    """Run the one job that `gtp-exp OVERRIDES` runs and return its record, results.json as an object.

    The job runs in a worker process of its own, writes to the same folders and uses the same cache. On Linux
    the first call starts a process that imports everything once and then forks every job that follows: it
    holds half a GiB until this process ends.
    config_dir: a folder with options of your own, as the command line's --config-dir.

    Raises UserError for whatever the command line refuses, with the same words, and for a job that fails for
    such a reason or exceeds its limits; RuntimeError for a worker that crashes; KeyboardInterrupt for one
    that is interrupted. A multirun is refused: call this once for each job, or use `gtp-exp -m`.
    """
    overrides = _checked(overrides)
    with contextlib.ExitStack() as held:
        with _COMPOSING, _hydra_of_our_own():
            config = _compose(overrides, config_dir)
            directory = _made_folder(config)
            held.enter_context(claimed(directory, folder_key(multirun=False)))
            launch, resolved = prepare_job(_without_hydra(config), directory)
        return _record(directory, run_job(resolved, launch, more_follow=True))


def _checked(overrides: Sequence[str]) -> list[str]:
    """Raise UserError for what the command line refuses before Hydra sees it."""
    if isinstance(overrides, (str, Mapping)) or not all(isinstance(text, str) for text in overrides):
        raise UserError(
            f"overrides={overrides!r} must be a list of texts, such as ['selector=gtp', 'seed=1']"
        )
    check_not_in_a_worker()
    for text in overrides:
        if text in ("-m", "--multirun"):
            raise UserError(f"{text}: run takes one job; call it once for each, or use gtp-exp -m")
        if text.startswith("-"):
            raise UserError(f"{text} is an option of the command line; give overrides such as selector=gtp")
    check_arguments(overrides)
    return with_home_folder(overrides)


@contextlib.contextmanager
def _hydra_of_our_own() -> Iterator[None]:
    """Hide the Hydra that this process may already use, and put it back."""
    kept = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, version.getbase()
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:  # by `instance()` again: Hydra's initialize_... put another object in its place
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg, base = kept
        version.VersionBase.instance().version_base = base


def _compose(overrides: Sequence[str], config_dir: str | os.PathLike[str] | None) -> DictConfig:
    """Return the job's configuration with Hydra's own under `hydra`, and make the latter the current one."""
    search: list[str] = []
    if config_dir is not None:
        folder = at_home(config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"config_dir={config_dir} is not a folder")
        search = [searched_as_well(folder)]
    try:
        with initialize_config_dir(conf_dir(), job_name="gtp_exp", version_base="1.3"):
            config = compose("config", [*search, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error)
        if "--multirun" in text:  # what Hydra says of several values where one is wanted
            text = f"{text.splitlines()[0]}: run takes one job; call it once for each"
        raise UserError(text) from error
    if config.hydra.mode is RunMode.MULTIRUN:
        raise UserError("this composition is a multirun: run takes one job; use gtp-exp for it")
    config.hydra.mode = RunMode.RUN
    HydraConfig.instance().set_config(config)
    return config


def _made_folder(config: DictConfig) -> Path:
    """Make the run's folder, which Hydra makes on the command line, and return it."""
    try:
        directory = Path(config.hydra.run.dir)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(storage_fault(error, directory) or str(error)) from error
    return directory


def _without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of the job's own part of a composed configuration."""
    job = deepcopy(config)
    with open_dict(job):
        del job["hydra"]
    return job


def _record(directory: Path, status: int) -> RunRecord:
    """Return the finished job's record, or raise what its exit status stands for."""
    if status == 0:
        return read_record(directory / RECORD_NAME)
    reason = reason_of_failure(directory, status)
    if status == INTERRUPTED:
        raise KeyboardInterrupt(reason)
    if status in (2, TIMED_OUT):
        raise UserError(reason)
    raise RuntimeError(f"{reason}; see {directory / WORKER_LOG}")
