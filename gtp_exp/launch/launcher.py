"""Start a job's process with its device and threads, and stop it. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Optional, TextIO, TypeAlias

from omegaconf import OmegaConf

from gtp_exp.errors import UserError, first_line
from gtp_exp.launch import fork_server, heartbeat
from gtp_exp.launch.busy import usable_cores
from gtp_exp.launch.fork_server import ForkedJob
from gtp_exp.launch.heartbeat import JobWatch
from gtp_exp.launch.parent import die_with_parent
from gtp_exp.launch.sharding import Sharding, read_sharding
from gtp_exp.paths import at_home

GRACE_S = 20.0  # seconds that a worker has to write its state before it is killed
TIMED_OUT = 124  # exit status, the same as that of timeout(1)
MARGIN_S = 5.0  # seconds more for the parent of several workers, which kills them after GRACE_S
WORKER = "gtp_exp.worker"  # the module that runs a job

# What torchrun, MPI and clusters tell the processes that they start of each other. Those of a job are told by
# its own launcher; one that believed the others would wait for ranks that never come.
_OF_RANKS = re.compile(
    r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|PMI_(RANK|SIZE)|MPI_LOCAL(RANKID|NRANKS)"
    r"|(OMPI|MV2)_COMM_WORLD_(LOCAL_)?(RANK|SIZE)"
)

Worker: TypeAlias = "subprocess.Popen[bytes] | ForkedJob"


class Device(Enum):
    """Names the kinds of device that a job can ask for; `auto` takes a GPU where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Launch:
    """Holds the options of the group `launch`, and says how a job's processes are started from them."""

    device: Device = Device.AUTO
    deterministic: bool = True  # on a GPU; a CPU is so in any case
    threads: Optional[int] = None  # of each CPU worker; null leaves the choice to PyTorch
    num_processes: int = 1  # of one job, counted over all machines
    # Accelerate's configuration, for FSDP2 or several machines; null: data parallel, this machine
    config_file: Optional[str] = None
    time_limit_minutes: Optional[float] = None  # a job that takes longer is stopped
    stall_limit_minutes: Optional[float] = None  # a job without progress for so long is stopped

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"launch.threads={self.threads} must be at least 1, or null")
        if self.num_processes < 1:
            raise UserError(f"launch.num_processes={self.num_processes} must be at least 1")
        for name in ("time_limit_minutes", "stall_limit_minutes"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise UserError(f"launch.{name}={limit} must be above 0, or null for no limit")
        if self.config_file is not None and not at_home(self.config_file).is_file():
            raise UserError(
                f"launch.config_file={self.config_file} does not exist; `accelerate config` writes one"
            )
        _ = self.machines, self.sharding  # reads the file
        written = int(self._accelerate().get("num_processes") or 1)
        if self.num_processes == 1 and written != 1:
            raise UserError(
                f"launch.config_file={self.config_file} has num_processes: {written}, and "
                f"launch.num_processes, which counts, is 1; give launch.num_processes={written}, or take the "
                "line out of the file"
            )

    def environment(self) -> dict[str, str]:
        """Return the environment variables that all workers share."""
        environment = {name: value for name, value in os.environ.items() if not _OF_RANKS.fullmatch(name)}
        environment |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU
        # bm25s uses JAX where that is installed, which would take most of the GPU's memory for itself
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if self.device is Device.CPU:
            environment["ACCELERATE_USE_CPU"] = "true"
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        elif self.num_processes > 1:  # or each of them would take every core
            on_this_machine = max(1, self.num_processes // self.machines)
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // on_this_machine)))
        return environment

    @property
    def through_ranks(self) -> bool:
        """Return whether the job's child starts workers (launch/ranks.py) and is not the worker itself."""
        return self.num_processes > 1 or self.config_file is not None

    def command(self, resolved: Path) -> list[str]:
        """Return the command that starts the job's child; where that starts workers, the number of a pipe is
        to follow."""
        if not self.through_ranks:
            return [sys.executable, "-m", WORKER, str(resolved)]
        line = [sys.executable, "-m", "gtp_exp.launch.ranks", str(resolved), str(self.num_processes)]
        if self.config_file is not None:
            line += ["--config_file", str(at_home(self.config_file))]
            if self.machines == 1:  # any free port; several machines meet at the one that the file names
                line += ["--main_process_port", "0"]
        return line

    @property
    def machines(self) -> int:
        """Return the number of machines that run the job together, as `config_file` gives it.

        Each of them gets the same command and a `config_file` of its own, which differs in the machine's
        rank. Raises UserError for a file that Accelerate could not read.
        """
        return int(self._accelerate().get("num_machines") or 1)

    @property
    def sharding(self) -> Sharding | None:
        """Return how the processes share the weights of a model, as `config_file` says; None if not at all.

        Raises UserError for what this project does not support.
        """
        sharding = read_sharding(self._accelerate(), str(self.config_file))
        return sharding if self.num_processes > 1 else None

    def _accelerate(self) -> dict[str, Any]:
        """Return the content of `config_file`; nothing where there is none."""
        if self.config_file is None:
            return {}
        try:
            settings: Any = OmegaConf.to_container(OmegaConf.load(at_home(self.config_file)))
            for name in ("num_machines", "num_processes", "machine_rank"):
                if not str(settings.get(name) or 0).isdecimal():
                    raise ValueError(f"{name}: {settings[name]} is no whole number")
            if not isinstance(settings.get("fsdp_config") or {}, dict):
                raise ValueError(f"fsdp_config: {settings['fsdp_config']} has no options")
        except Exception as error:  # whatever the YAML library finds wrong with it
            raise UserError(
                f"launch.config_file={self.config_file} is not a configuration of Accelerate "
                f"({first_line(error)}); `accelerate config` writes one"
            ) from error
        return settings

    def watch(self, directory: Path) -> JobWatch:
        """Return a watch over the job whose run folder is `directory`, with this job's limits in seconds.

        Of several machines the main one alone hears the job's heartbeat, and looks after its progress.
        """
        time_limit_s, stall_limit_s = (
            None if minutes is None else 60 * minutes
            for minutes in (self.time_limit_minutes, self.stall_limit_minutes)
        )
        main_machine = not int(self._accelerate().get("machine_rank") or 0)
        return JobWatch(directory, time_limit_s, stall_limit_s if main_machine else None)


@dataclass(frozen=True)
class JobExit:
    """Tells how a job ended: by the first of its workers that failed, if one did."""

    code: int  # exit status, below 0 the signal
    rank: Optional[int]  # None: of the process that starts the workers
    limit: str = ""  # says which limit the job has exceeded

    @property
    def status(self) -> int:
        """Return the exit status as a shell reports it: 128 plus the signal for a process that was killed."""
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def told(self) -> bool:
        """Return whether the main process has said by itself why it ended."""
        return self.rank == 0 and self.code >= 0 and not self.limit

    def __str__(self) -> str:
        """Return one line that says which process ended, and how."""
        if self.limit:
            return self.limit
        who = {0: "the worker", None: "the parent of the workers"}.get(self.rank, f"process {self.rank}")
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with status {self.code}"
        return f"{who} {how}" + (f"; see {follower_log(self.rank)}" if self.rank else "")


def follower_log(rank: int) -> str:
    """Return the name of the file in the run folder that takes the output of a process other than the main
    one."""
    return f"worker.rank{rank}.log"


def run_worker(resolved: Path, launch: Launch, *, more_follow: bool = False) -> JobExit:
    """Run a job's child process, a worker or the parent of several, to its end and tell how that was.

    more_follow: other jobs are likely to follow, so the worker is forked where that is safe.
    The main process writes to this terminal, others into files. The child ends however this process ends,
    and its workers with it.
    """
    reading, pipe = os.pipe()
    with os.fdopen(reading) as failure:
        child = _start(resolved, launch, pipe, more_follow)
        previous = {}
        if threading.current_thread() is threading.main_thread():

            def stop(signum: int, _frame: object) -> None:
                for again in heeded:  # timeout(1) sends its signal twice, which must not cut the end short
                    signal.signal(again, lambda *_: None)
                raise SystemExit(128 + signum)

            # An ignored signal stays ignored: nohup lets a sweep outlive its terminal.
            heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
            previous = {s: signal.signal(s, stop) for s in heeded}
        try:
            if limit := _wait(child, launch.watch(resolved.parent)):
                return JobExit(TIMED_OUT, 0, limit)
            return _ended(child, launch, failure)
        finally:
            _stop(child, GRACE_S + MARGIN_S * launch.through_ranks)  # after a limit, Ctrl-C or a signal
            (resolved.parent / heartbeat.NAME).unlink(missing_ok=True)
            for signum, handler in previous.items():
                signal.signal(signum, handler)


def _is_forked(launch: Launch) -> bool:
    """Return whether a server can fork the job: on Linux, as one process that nothing else starts.

    Only a main thread starts one, as the kernel ends a process with the thread that has started it.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    return sys.platform == "linux" and not launch.through_ranks and main_thread


def _start(resolved: Path, launch: Launch, pipe: int, more_follow: bool) -> Worker:
    """Start the job's child, and hand the end of a pipe over to one that starts workers."""
    try:
        command, environment = launch.command(resolved), launch.environment()
        if more_follow and _is_forked(launch):
            return fork_server.start_job(command, environment)
        handed = [pipe] if launch.through_ranks else []
        return subprocess.Popen(
            command + list(map(str, handed)),
            env=environment,
            pass_fds=handed,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    finally:
        os.close(pipe)


def _wait(child: Worker, watch: JobWatch) -> str | None:
    """Wait until the child has ended, or until a limit is exceeded, which is returned."""
    while child.poll() is None:
        if limit := watch.exceeded():
            return limit
        time.sleep(0.1)
    return None


def _ended(child: Worker, launch: Launch, failure: TextIO) -> JobExit:
    """Return how a child has ended, or which of its workers failed as it has told."""
    if not launch.through_ranks or child.wait() == 0:
        return JobExit(child.wait(), 0)
    told = failure.readline()
    return JobExit(*json.loads(told)) if told else JobExit(child.wait(), None)


def _stop(child: Worker, patience: float) -> None:
    """End the child if it still runs: SIGTERM first, SIGKILL after so many seconds."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def not_deterministic(error: BaseException) -> str:
    """Return a message for an operation that a GPU cannot do deterministically, with the remedy. Returns ""
    for any other error."""
    if "use_deterministic_algorithms" not in str(error):
        return ""
    return f"{first_line(error).split(', but')[0]} on this device; set launch.deterministic=false"
