"""The command line: Hydra composes a job, saves it as resolved.yaml, and one worker process runs it.

This process imports no torch and is never distributed, so `--help` and completion are quick and a multirun
cannot carry state from one job to the next. The worker's end is the job's end; no worker outlives this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser, run_and_report
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gtp_exp import __version__
from gtp_exp.config import build, check_finite
from gtp_exp.errors import UserError, first_line
from gtp_exp.launch.faults import check_room, storage_fault
from gtp_exp.launch.launcher import JobExit, run_worker
from gtp_exp.launch.secrets import check_no_secrets
from gtp_exp.records.record import RECORD_NAME, SELECTED_NAME, Names, State, read_record, write_record
from gtp_exp.records.renamed import with_present_names

_failed: list[str] = []  # jobs of this multirun that did not complete


class JobFailed(CompactHydraException):
    """Tell Hydra that a job has failed; it reports one of these without a traceback."""


def conf_dir() -> str:
    """conf/ beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    packaged = here / "conf"
    return str(packaged if packaged.is_dir() else here.parent / "conf")


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _job(config: DictConfig) -> float:
    """One job. Its value is the mean headline metric over tasks, for a sweeper to optimise."""
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    # Hydra's own account of a multirun tells this machine's folders; what a job was, its resolved.yaml tells.
    (Path(hydra_config.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
    code = _run(config, directory)
    if code == 0 and not (directory / RECORD_NAME).is_file():
        return float("nan")  # the job's main process, and its record, are on another machine
    if code == 0:
        metrics = read_record(directory / RECORD_NAME).metrics
        values = [float(m[str(m["headline"])]) for m in metrics.values()]
        return sum(values) / len(values) if values else float("nan")
    name = os.path.relpath(directory)
    if hydra_config.mode is RunMode.RUN:
        raise SystemExit(code)
    if "BasicLauncher" in hydra_config.launcher._target_ and "BasicSweeper" in hydra_config.sweeper._target_:
        _failed.append(name)  # the other jobs still run, and main() ends with an error
        return float("nan")
    # Launchers run the other jobs, too, some of them in processes that know no `_failed` of ours; then the
    # sweeper decides: Hydra's own raises the first failure, Optuna's counts it as a failed trial.
    raise JobFailed(f"{name}: {_why(directory, code)}")


def _why(directory: Path, code: int) -> str:
    try:
        return read_record(directory / RECORD_NAME).error or f"the worker ended with status {code}"
    except UserError:
        return f"ended with status {code} before it began"


def _run(config: DictConfig, directory: Path) -> int:
    try:
        for name in (RECORD_NAME, SELECTED_NAME):  # a fixed folder may hold an earlier job's
            (directory / name).unlink(missing_ok=True)
        if "job" in config:  # an earlier run's resolved.yaml
            config = DictConfig(with_present_names(OmegaConf.to_container(config, resolve=True)))
        launch = build(OmegaConf.to_container(config.launch, resolve=True), "launch")  # type: ignore[arg-type]
        resolved = _save_resolved(config, directory)
    except OmegaConfBaseException as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {storage_fault(error, directory) or error}", file=sys.stderr)
        return 2
    ended = run_worker(resolved, launch)
    if ended.code != 0:
        _mark_dead(directory, ended)
    return ended.status


def _save_resolved(config: DictConfig, directory: Path) -> Path:
    """The whole job as plain YAML, with the chosen option of every group and the overrides."""
    hydra_config = HydraConfig.get()
    choices = {k: v for k, v in hydra_config.runtime.choices.items() if not str(k).startswith("hydra/")}
    if "job" in config:  # an earlier run's resolved.yaml is run again: its options are those of then
        choices = {**config.job.names, **choices}
    if missing := [f.name for f in fields(Names) if not choices.get(f.name)]:
        raise UserError(f"the job has no {missing[0]}; give {missing[0]}=OPTION (--help lists them)")
    plain = OmegaConf.to_container(config, resolve=True)
    check_finite(plain)
    check_no_secrets(plain)
    check_no_secrets({"hydra": OmegaConf.to_container(hydra_config)})
    multirun = hydra_config.mode is RunMode.MULTIRUN
    with open_dict(config):
        config.job = {
            "name": directory.name,
            "group": directory.parent.name if multirun else directory.name,
            "names": choices,
            "overrides": _command(hydra_config),
        }
    path = directory / "resolved.yaml"
    OmegaConf.save(config, path, resolve=True)
    return path


def _command(hydra_config: Any) -> list[str]:
    """Return the arguments that start this job again, without folders of this machine."""
    name = hydra_config.job.config_name
    again = [] if name == "config" else ["--config-dir", ".", "--config-name", name]
    return [*again, *hydra_config.overrides.task]


def _mark_dead(directory: Path, ended: JobExit) -> None:
    """A worker that was killed outright could not say so itself, nor why one that was stopped had to stop."""
    untold = ended.rank > 0 or ended.code < 0 or bool(ended.limit)
    if untold:
        print(f"error: {ended}", file=sys.stderr)
    try:
        record = read_record(directory / RECORD_NAME)
    except UserError:
        return
    if record.state is State.RUNNING or untold:
        with contextlib.suppress(OSError):  # the worker has told why nothing can be written
            write_record(replace(record, state=State.FAILED, error=str(ended)), directory)


def _estimate(arguments: list[str]) -> int:
    """What the command would compute, told by a process that may import torch; nothing is started."""
    from gtp_exp.estimate.jobs import compose_jobs

    print("composing the jobs; nothing will be started", file=sys.stderr)
    try:
        jobs = run_and_report(lambda: compose_jobs(arguments, conf_dir()))  # Hydra's own way to tell an error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "jobs.json"
        path.write_text(json.dumps(jobs), encoding="utf-8")
        return subprocess.run([sys.executable, "-m", "gtp_exp.estimate", str(path)]).returncode


def _check_outputs(arguments: list[str]) -> None:
    """Raises UserError where Hydra would fail to make a folder, by a traceback."""
    named = [text.partition("=")[2] for text in arguments if text.startswith("outputs=")]
    folder = Path(named[-1] if named else "outputs")
    if "${" in str(folder) or {"--help", "--hydra-help", "--cfg", "--info", "-c", "-i"} & set(arguments):
        return
    try:
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("."))
        if not there.is_dir():
            raise UserError(f"outputs={folder} cannot be a folder: '{there}' is a file; set outputs=DIR")
        check_room(there, needed=1 << 16)  # the run's own files, about
    except OSError as error:
        raise UserError(storage_fault(error, folder) or f"outputs={folder}: {error}") from error


def _check_options(arguments: list[str]) -> None:
    """A group's option is part of the name of a run's folder, so it may not lead out of that."""
    groups = {path.name for path in Path(conf_dir()).iterdir() if path.is_dir()}
    for text in arguments:
        key, _, value = text.partition("=")
        group = key.lstrip("+").partition("@")[0]
        if group in groups and ".." in re.split(r"[/,\[\]\s]", value):
            raise UserError(f"{text}: an option of {group} is the name of a file in its folder, without '..'")


def _run_folder(arguments: list[str]) -> list[str]:
    """Return the overrides of Hydra's own settings that a primary configuration other than ours lacks.

    So `--config-dir RUN --config-name resolved` runs a job again in a new folder beside the first one's.
    """
    parsed = get_args_parser().parse_args(arguments)
    if parsed.config_name in (None, "config"):
        return []
    folder = "'${outputs}/runs/${now:%Y-%m-%d_%H-%M-%S-%f}'"
    defaults = {
        "hydra.run.dir": folder,
        "hydra.sweep.dir": folder,
        "hydra.output_subdir": "null",
        "hydra/job_logging": "none",
    }
    given = {override.partition("=")[0].lstrip("+") for override in parsed.overrides}
    return [f"{key}={value}" for key, value in defaults.items() if key not in given]


def main() -> None:
    """Check the command line, then let Hydra compose the job or jobs and run each in a worker of its own."""
    if "--version" in sys.argv[1:]:
        print(f"gtp-exp {__version__}")
        return
    if "LOCAL_RANK" in os.environ:
        raise SystemExit("start gtp-exp with plain python; it starts its own worker processes")
    try:  # before Hydra makes the run's folder, and writes the overrides of a multirun into it
        check_no_secrets({f"argument {i}": text for i, text in enumerate(sys.argv[1:], 1)})
        _check_options(sys.argv[1:])
        _check_outputs(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if "--estimate" in sys.argv:
        raise SystemExit(_estimate([a for a in sys.argv[1:] if a != "--estimate"]))
    sys.argv += _run_folder(sys.argv[1:])
    try:
        _job()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from the last finished stage") from None
    if _failed:
        raise SystemExit(f"{len(_failed)} job(s) failed: {', '.join(_failed)}")


if __name__ == "__main__":
    main()
