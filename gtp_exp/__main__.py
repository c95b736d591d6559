"""The command line: Hydra composes a job, saves it as resolved.yaml, and one worker process runs it.

This process imports no torch and is never distributed, so `--help` and completion are quick and a multirun
cannot carry state from one job to the next. The worker's end is the job's end; no worker outlives this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser, run_and_report
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from gtp_exp import __version__
from gtp_exp.api.outcome import closing, outcome
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
from gtp_exp.errors import UserError
from gtp_exp.launch.claim import claimed
from gtp_exp.leaderboard.metrics import headline_mean
from gtp_exp.records.record import RECORD_NAME, RunRecord, read_record

INTERRUPTED = 130  # exit status after Ctrl-C, as a shell tells it
_failed: list[str] = []  # jobs of this multirun that did not complete


class JobFailed(CompactHydraException):
    """Tell Hydra that a job has failed; it reports one of these without a traceback."""


@hydra.main(version_base="1.3", config_path=conf_dir(), config_name="config")
def _job(config: DictConfig) -> float:
    """One job. Its value is what `value_for_sweeper` says."""
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    os.chdir(hydra_config.runtime.cwd)  # a path means what it means there, with hydra.job.chdir too
    # Hydra's own account of a multirun tells this machine's folders; what a job was, its resolved.yaml tells.
    (Path(hydra_config.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
    code = _run(config, directory)
    if code == 0 and not (directory / RECORD_NAME).is_file():
        return float("nan")  # the job's main process, and its record, are on another machine
    if code == 0:
        record = read_record(directory / RECORD_NAME)
        tell = closing if hydra_config.mode is RunMode.RUN else outcome  # of many jobs, a line each
        print(tell(record, directory), flush=True)  # after all that the worker has logged
        return value_for_sweeper(record)
    name = os.path.relpath(directory)
    if hydra_config.mode is RunMode.RUN:
        raise SystemExit(code)
    if "BasicLauncher" in hydra_config.launcher._target_ and "BasicSweeper" in hydra_config.sweeper._target_:
        _failed.append(name)  # the other jobs still run, and main() ends with an error
        return float("nan")
    # Launchers run the other jobs, too, some of them in processes that know no `_failed` of ours; then the
    # sweeper decides: Hydra's own raises the first failure, Optuna's counts it as a failed trial.
    raise JobFailed(f"{name}: {reason_of_failure(directory, code)}")


def _run(config: DictConfig, directory: Path) -> int:
    """Run one composed job in workers of its own; return its exit status."""
    hydra_config = HydraConfig.get()
    multirun = hydra_config.mode is RunMode.MULTIRUN
    alone = "submitit" in hydra_config.launcher._target_  # which starts a command line for every job
    try:
        with claimed(directory, folder_key(multirun)):
            launch, resolved = prepare_job(config, directory)
            return run_job(resolved, launch, more_follow=multirun and not alone)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def value_for_sweeper(record: RunRecord) -> float:
    """Return the loss on the rows that were held back for validation, lower is better; of a job without any,
    the mean headline metric of its tests, which no sweeper may optimise; NaN for a job that measured
    nothing."""
    if record.validation is not None:
        return record.validation.tuned.nats_per_token
    value = headline_mean(record)
    return float("nan") if value is None else value


def _estimate(arguments: list[str]) -> int:
    """What the command would compute, told by a process that may import torch; nothing is started."""
    from gtp_exp.estimate.jobs import compose_jobs

    print("composing the jobs; nothing will be started", file=sys.stderr)

    def composed() -> list[dict[str, Any]] | UserError:
        try:
            return compose_jobs(arguments, conf_dir())
        except UserError as error:  # which the next line would tell by a traceback
            return error

    jobs = run_and_report(composed)  # Hydra's own way to tell an error of its own
    if isinstance(jobs, UserError):
        print(f"error: {jobs}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "jobs.json"
        path.write_text(json.dumps(jobs), encoding="utf-8")
        return subprocess.run([sys.executable, "-m", "gtp_exp.estimate", str(path)]).returncode


def _run_folder(arguments: list[str]) -> list[str]:
    """Return the overrides of Hydra's own settings that a primary configuration other than ours lacks.

    So `--config-dir RUN --config-name resolved` runs a job again in a new folder beside the first one's.
    """
    parsed = get_args_parser().parse_args(arguments)
    if parsed.config_name in (None, "config"):
        return []
    folder = "'${home:${outputs}}/runs/${now:%Y-%m-%d_%H-%M-%S-%f}'"
    defaults = {
        "hydra.run.dir": folder,
        "hydra.sweep.dir": folder,
        "hydra.output_subdir": "null",
        "hydra/job_logging": "none",
        "+hydra.callbacks.tuning._target_": "gtp_exp.api.sweeps.TuneOnValidation",
    }
    given = {override.partition("=")[0].lstrip("+") for override in parsed.overrides}
    return [f"{key}={value}" for key, value in defaults.items() if key not in given]


def main() -> None:
    """Check the command line, then let Hydra compose the job or jobs and run each in a worker of its own."""
    if "--version" in sys.argv[1:]:
        print(f"gtp-exp {__version__}")
        return
    try:
        check_not_in_a_worker()
    except UserError as error:
        raise SystemExit(str(error)) from None
    try:
        check_arguments(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        if "--estimate" in sys.argv:
            raise SystemExit(_estimate([a for a in sys.argv[1:] if a != "--estimate"]))
        sys.argv[1:] = with_home_folder(sys.argv[1:])
        sys.argv += _run_folder(sys.argv[1:])
        _job()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished stage", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    if _failed:
        raise SystemExit(f"{len(_failed)} job(s) failed: {', '.join(_failed)}")


if __name__ == "__main__":
    main()
