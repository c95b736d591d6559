"""Run one job in a process of its own: from resolved.yaml to checked objects to the experiment.

This module never imports Hydra.

Exit status: 0 complete, 1 a fault of ours, 2 bad input, or a folder or memory that takes no more, 130
interrupted.
results.json tells the same story.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from gtp_exp.config import build
from gtp_exp.data.benchmark import ChecksFiles
from gtp_exp.data.sources.base import DataSource
from gtp_exp.errors import UserError, check_installed
from gtp_exp.gradients.given import NAME as GIVEN_GRADIENTS
from gtp_exp.launch import heartbeat
from gtp_exp.launch.busy import Used, advice, used_by_others, used_so_far
from gtp_exp.launch.faults import storage_fault
from gtp_exp.launch.fork_server import SERVE, serve
from gtp_exp.launch.launcher import GRACE_S, not_deterministic
from gtp_exp.launch.parent import die_with_parent
from gtp_exp.paths import at_home
from gtp_exp.records.record import METRICS_NAME, WORKER_LOG, Names, RunRecord, State, write_record
from gtp_exp.selection.base import Selector

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "lm-eval", "numpy")
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 10.0  # seconds after which an interrupt that has not ended the job comes again
# What most jobs import sooner or later, for the server that forks them.
PRELOADED = (
    "gtp_exp.experiment",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "peft",
    "lm_eval.evaluator",
    "wandb",
)
OPTIONAL = ("selection_model",)  # groups that need not be chosen
IN_FEWER_BITS = ("nf4", "int8", "adamw_8bit", "paged_adamw_8bit")  # what bitsandbytes is needed for
log = logging.getLogger("gtp_exp")


def main() -> None:
    """Run the job that the resolved.yaml named on the command line describes, and end the process.

    The process id of the parent may follow, where the launcher is not that parent. With `--serve`, wait as a
    server, and do so in each process that is forked from it.
    """
    first, *more = sys.argv[1:]
    die_with_parent(int(more[0]) if more and first != SERVE else None)
    _quiet_libraries()
    resolved = Path(serve(int(more[0]), PRELOADED) if first == SERVE else first)
    # Weights are shared by model/sharding.py; transformers and Accelerate would do so in their own way.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    directory, main_process = resolved.parent, _is_main()
    if not main_process:
        os.dup2(2, 1)  # torch's launcher has two files for what belongs into one
    _log_to(directory / WORKER_LOG if main_process else None)
    if main_process:
        heartbeat.start(directory)
        for signum in INTERRUPTS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, _interrupt)
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(resolved))  # type: ignore[assignment]
    job = config.pop("job")
    record = _begin(config, job)
    if not main_process:  # it works along, and tells nothing but why it ended
        _leave(_complete(config, job, record, directory)[1])
    record, code = _complete(config, job, record, directory)
    try:
        write_record(replace(record, finished=_now()), directory)
    except OSError as error:
        log.error("%s", storage_fault(error, directory) or error)
        code = code or 2
    _leave(code)


def _complete(
    config: dict[str, Any], job: dict[str, Any], record: RunRecord, directory: Path
) -> tuple[RunRecord, int]:
    """Run the experiment; return its record, and the exit status that tells the same."""
    try:
        if _is_main():
            write_record(record, directory)
            (directory / METRICS_NAME).unlink(missing_ok=True)
        before = used_so_far()
        gc.disable()  # collections would find nothing among what is imported, for an eighth of that time
        check_inputs(config)
        from gtp_exp.experiment import run

        experiment = assemble(config)
        gc.freeze()  # nor later
        gc.enable()
        _tell_of_busy_cores(before)
        return replace(run(experiment, record, directory, job), state=State.COMPLETE), 0
    except UserError as error:
        log.error("%s", error)
        return replace(record, state=State.FAILED, error=str(error)), 2
    except (KeyboardInterrupt, SystemExit):
        _end_by_alarm()
        log.error("interrupted; run the same command again to go on from the last finished stage")
        return replace(record, state=State.INTERRUPTED, error="interrupted"), 130
    except Exception as error:
        from gtp_exp.model.device import memory_fault

        outputs = at_home(str(config.get("outputs")))
        if told := storage_fault(error, outputs) or not_deterministic(error) or memory_fault(error):
            log.error("%s", told)
            return replace(record, state=State.FAILED, error=told), 2
        if _lost_contact(error):
            log.error("another process of this job is gone")  # which one, and how, the parent knows
        else:
            log.exception("failed")
        return replace(record, state=State.FAILED, error=f"{type(error).__name__}: {error}"), 1


def _tell_of_busy_cores(before: Used) -> None:
    """Warn where other processes have used the cores since then that this process's threads will need.

    Of several processes that make one job nothing is said: each would take the rest for others.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.cuda.is_available():
        return
    if told := advice(used_by_others(before, used_so_far()), torch.get_num_threads()):
        log.warning("%s", told)


def _is_main() -> bool:
    """Return whether this is the job's main process."""
    return os.environ.get("RANK", "0") == "0"


def _leave(code: int) -> NoReturn:
    """End this process at once, whatever threads it has."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of tracking, data loading or gloo must not keep a finished job alive


def _lost_contact(error: Exception) -> bool:
    """Return whether a message between the job's processes did not get through."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def assemble(config: Mapping[str, Any], build: Callable[[Any, str], Any] = build) -> Any:
    """Build the Experiment: every group by its class, and the keys outside any group by Settings.

    config: resolved values, a node per group. Raises UserError with the key that is wrong.
    """
    from gtp_exp.experiment import Experiment, Settings

    groups = [f.name for f in fields(Experiment) if f.name not in ("settings", "tests")]
    parts = {name: build(config.get(name, {}), name) for name in groups if name not in OPTIONAL}
    parts |= {name: build(config[name], name) if config.get(name) else None for name in OPTIONAL}
    tests = {name: build(node, f"tests.{name}") for name, node in (config.get("tests") or {}).items()}
    outside = {k: v for k, v in config.items() if k not in (*groups, "tests")}
    target = f"{Settings.__module__}.{Settings.__qualname__}"
    return Experiment(**parts, settings=build({"_target_": target, **outside}, ""), tests=tests)


def check_inputs(config: Mapping[str, Any]) -> None:
    """Look at the files that a job names, as far as it is done at once and without torch.

    config: as `assemble` takes it. Raises UserError for a file that is not there, whose rows have no known
    form, or that is needed and not given, and for what its first rows show.
    """
    check_packages(config)
    gradients, selector = config.get("gradients", {}), config.get("selector", {})
    if isinstance(gradients, Mapping) and gradients.get("_target_") == GIVEN_GRADIENTS:
        build(gradients, "gradients").check(selector.get("direction"), selector.get("target_direction"))
    check_rows(config)


def check_rows(config: Mapping[str, Any]) -> None:
    """Look at the files of rows that a job names, and at those that its selector reads. Raises UserError."""
    dataset = build(config.get("dataset", {}), "dataset")
    pool = dataset.check_files() if isinstance(dataset, DataSource) else None
    tested = config.get("until") == "evaluation"
    benchmark = build(config.get("benchmark", {}), "benchmark")
    if isinstance(benchmark, ChecksFiles):
        benchmark.check_files(aimed_at=True, tested=tested)
    for name, node in (config.get("tests") or {}).items():
        if isinstance(test := build(node, f"tests.{name}"), ChecksFiles):
            test.check_files(aimed_at=False, tested=tested)
    if pool is not None:  # last, for most selectors import torch
        selector = build(config.get("selector", {}), "selector")
        if isinstance(selector, Selector):
            selector.check_pool(pool)


def check_packages(config: Mapping[str, Any]) -> None:
    """Raise UserError for an option that needs a package which is not installed."""
    for path in (
        "model.quantization",
        "selection_model.quantization",
        "train.optimizer",
        "gradients.warmup.optimizer",
    ):
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value in IN_FEWER_BITS:
            check_installed(f"{path}={value}", "bitsandbytes", "quantization")


def _begin(config: dict[str, Any], job: dict[str, Any]) -> RunRecord:
    """Return the record of a job that has just started."""
    return RunRecord(
        state=State.RUNNING,
        names=Names(**{f.name: str(job["names"][f.name]) for f in fields(Names)}),
        seed=config["seed"] if isinstance(config.get("seed"), int) else -1,
        group=job["group"],
        config=config,
        command=("python", "-m", "gtp_exp", *job["overrides"]),
        git_sha=_git_sha(),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        started=_now(),
    )


def _now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_sha() -> str | None:
    """Return the commit of this package's checkout; None in an installed copy."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _interrupt(_signum: int, _frame: object) -> None:
    """Interrupt the job, once, however many signals come."""
    for signum in INTERRUPTS:  # a terminal tells this process and its parent, which then tells it again
        signal.signal(signum, _unheard)  # not SIG_IGN, which Python complains about where one is on its way
    signal.signal(signal.SIGALRM, _interrupt_again)
    signal.setitimer(signal.ITIMER_REAL, REPEAT_S)
    raise KeyboardInterrupt


def _interrupt_again(_signum: int, _frame: object) -> None:
    """Interrupt the job a second time: a callback of a library has swallowed the first exception."""
    _end_by_alarm()
    raise KeyboardInterrupt


def _end_by_alarm() -> None:
    """Let the kernel end this process, unless it ends by itself in time."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, GRACE_S - REPEAT_S)


def _unheard(_signum: int, _frame: object) -> None:
    """Ignore a signal."""


def _log_to(path: Path | None) -> None:
    """Log to the terminal and into the file; without one, log warnings alone, which the launcher keeps."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if path is not None:
        handlers.append(logging.FileHandler(path, mode="w", encoding="utf-8"))
        log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a log that takes no more must not put tracebacks on the terminal
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers
    )


def _quiet_libraries() -> None:
    """Silence what libraries print at every start: it would hide our own messages."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    libraries = r"(torch|peft|transformers|lm_eval)\b.*"
    warnings.filterwarnings("ignore", category=UserWarning, module=libraries)
    warnings.filterwarnings("ignore", category=FutureWarning, module=libraries)


if __name__ == "__main__":
    main()
