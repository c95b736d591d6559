"""Start the worker processes of a job with their device and threads, and stop them. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Optional, TypeAlias

from omegaconf import OmegaConf

from gtp_exp.errors import UserError, first_line
from gtp_exp.launch import fork_server, heartbeat
from gtp_exp.launch.fork_server import ForkedJob
from gtp_exp.launch.heartbeat import JobWatch
from gtp_exp.launch.parent import die_with_parent
from gtp_exp.launch.sharding import Sharding, read_sharding

GRACE_S = 20.0  # seconds that a worker has to write its state before it is killed
TIMED_OUT = 124  # exit status, the same as that of timeout(1)
SETTLE_S = 2.0  # seconds that the other workers have to fail by themselves once one has failed

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
    # Accelerate's configuration, for FSDP, DeepSpeed or several machines; null: data parallel, this machine
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
        if self.config_file is not None and not Path(self.config_file).expanduser().is_file():
            raise UserError(
                f"launch.config_file={self.config_file} does not exist; `accelerate config` writes one"
            )
        _ = self.machines, self.sharding  # reads the file

    def environment(self) -> dict[str, str]:
        """Return the environment variables that all workers share."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU
        # bm25s uses JAX where that is installed, which would take most of the GPU's memory for itself
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if self.device is Device.CPU:
            environment["ACCELERATE_USE_CPU"] = "true"
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        elif self.num_processes > 1:  # or each of them would take every core
            environment.setdefault(
                "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.num_processes))
            )
        return environment

    def command(self, resolved: Path) -> list[str]:
        """Return the command that starts a worker, through Accelerate's launcher where there is a
        `config_file`."""
        worker = [sys.executable, "-m", "gtp_exp.worker", str(resolved)]
        if self.config_file is None:
            return worker
        launcher = [sys.executable, "-m", "gtp_exp.launch.accelerated", "--config_file"]
        launcher.append(str(Path(self.config_file).expanduser()))
        options = ["--num_processes", str(self.num_processes)]
        if self.machines == 1:  # any free port; several machines meet at the one that the file names
            options += ["--main_process_port", "0"]
        return [*launcher, *options, *worker[1:]]

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
            settings: Any = OmegaConf.to_container(OmegaConf.load(Path(self.config_file).expanduser()))
            int(settings.get("num_machines") or 1)
        except Exception as error:  # whatever the YAML library finds wrong with it
            raise UserError(
                f"launch.config_file={self.config_file} is not a configuration of Accelerate "
                f"({first_line(error)}); `accelerate config` writes one"
            ) from error
        return settings

    def watch(self, directory: Path) -> JobWatch:
        """Return a watch over the job whose run folder is `directory`, with this job's limits in seconds."""
        time_limit_s, stall_limit_s = (
            None if minutes is None else 60 * minutes
            for minutes in (self.time_limit_minutes, self.stall_limit_minutes)
        )
        return JobWatch(directory, time_limit_s, stall_limit_s)

    def environments(self) -> list[dict[str, str]]:
        """Return the environment of each process that is started on this machine, the main process first."""
        common = self.environment()
        if self.num_processes == 1 or self.config_file is not None:
            return [common]
        # What torch.distributed reads. `accelerate launch --cpu` would start a single process without a word,
        # and torchrun reports a user's mistake by a traceback of its own.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        size = str(self.num_processes)
        group = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
        }
        return [{**common, **group, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(self.num_processes)]


@dataclass(frozen=True)
class JobExit:
    """Tells how a job's workers ended: the first that failed, or all of them if none did."""

    code: int  # exit status, below 0 the signal
    rank: int
    limit: str = ""  # says which limit the job has exceeded

    @property
    def status(self) -> int:
        """Return the exit status as a shell reports it: 128 plus the signal for a process that was killed."""
        return self.code if self.code >= 0 else 128 - self.code

    def __str__(self) -> str:
        """Return one line that says which process ended, and how."""
        if self.limit:
            return self.limit
        who = "the worker" if self.rank == 0 else f"process {self.rank}"
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with status {self.code}"
        return f"{who} {how}" + (f"; see {follower_log(self.rank)}" if self.rank else "")


def follower_log(rank: int) -> str:
    """Return the name of the file in the run folder that takes the output of a process other than the main
    one."""
    return f"worker.rank{rank}.log"


def run_worker(resolved: Path, launch: Launch, *, more_follow: bool = False) -> JobExit:
    """Run a job's worker processes to their end and tell how they ended.

    more_follow: other jobs are likely to follow, so the worker is forked where that is safe.
    The main process writes to this terminal, the others into files. When one fails the others are stopped,
    and so they are however this process ends.
    """
    if more_follow and _is_forked(launch):
        workers: list[Worker] = [fork_server.start_job(launch.command(resolved), launch.environment())]
    else:
        workers = _fresh_workers(resolved, launch)
    previous = {}
    if threading.current_thread() is threading.main_thread():

        def stop(signum: int, _frame: object) -> None:
            raise SystemExit(128 + signum)

        # An ignored signal stays ignored: nohup lets a sweep outlive its terminal.
        heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
        previous = {s: signal.signal(s, stop) for s in heeded}
    try:
        return _wait(workers, launch.watch(resolved.parent))
    finally:
        _stop(workers)  # after Ctrl-C, a signal, an exception here, a limit, or the failure of one worker
        (resolved.parent / heartbeat.NAME).unlink(missing_ok=True)
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _is_forked(launch: Launch) -> bool:
    """Return whether a server can fork the job: on Linux, as one process that nothing else starts.

    Only a main thread starts one, as the kernel ends a process with the thread that has started it.
    """
    alone = launch.num_processes == 1 and launch.config_file is None
    return sys.platform == "linux" and alone and threading.current_thread() is threading.main_thread()


def _fresh_workers(resolved: Path, launch: Launch) -> list[Worker]:
    """Start a new Python for each of the job's processes."""
    workers: list[Worker] = []
    for rank, environment in enumerate(launch.environments()):
        log = resolved.parent / follower_log(rank)
        with log.open("w") if rank else contextlib.nullcontext() as out:
            workers.append(
                subprocess.Popen(
                    launch.command(resolved),
                    env=environment,
                    stdout=out,
                    stderr=out,
                    preexec_fn=partial(die_with_parent, os.getpid()),
                )
            )
    return workers


def _wait(workers: list[Worker], watch: JobWatch) -> JobExit:
    """Wait until all workers have ended, the first has failed or a limit is exceeded."""
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            time.sleep(SETTLE_S if len(workers) > 1 else 0.0)
            failed = [JobExit(code, rank) for rank, worker in enumerate(workers) if (code := worker.poll())]
            # A killed worker takes the others down, so it is the cause; an error that all of them
            # see is reported by the main process.
            return next((job_exit for job_exit in failed if job_exit.code < 0), failed[0])
        if None not in codes:
            return JobExit(0, 0)
        if limit := watch.exceeded():
            return JobExit(TIMED_OUT, 0, limit)
        time.sleep(0.1)


def _stop(workers: list[Worker]) -> None:
    """End the workers that still run: SIGTERM first, SIGKILL after GRACE_S seconds."""
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.terminate()
    deadline = time.monotonic() + GRACE_S
    for worker in running:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def not_deterministic(error: BaseException) -> str:
    """Return a message for an operation that a GPU cannot do deterministically, with the remedy. Returns ""
    for any other error."""
    if "use_deterministic_algorithms" not in str(error):
        return ""
    return f"{first_line(error).split(', but')[0]} on this device; set launch.deterministic=false"
