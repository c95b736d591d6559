"""How the command line starts a worker: device, processes, threads. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
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
from typing import Optional

from omegaconf import OmegaConf

from gtp_exp.errors import UserError, first_line
from gtp_exp.launch import heartbeat
from gtp_exp.launch.heartbeat import Watch

GRACE_S = 20.0  # what a worker gets to write its state before it is killed
TIMED_OUT = 124  # exit status, as of timeout(1)
SETTLE_S = 2.0  # what the others get to notice by themselves why one has failed


class Device(Enum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Launch:
    device: Device = Device.AUTO
    deterministic: bool = True  # on a GPU; a CPU always is
    threads: Optional[int] = None  # of each CPU worker; null leaves the choice to PyTorch
    num_processes: int = 1  # of one job, on all its machines: this one, or those that config_file tells of
    config_file: Optional[str] = (
        None  # of Accelerate, for FSDP, DeepSpeed, several machines; null: data parallel
    )
    time_limit_minutes: Optional[float] = None  # a job that takes longer is stopped
    stall_limit_minutes: Optional[float] = None  # likewise one whose progress bars stand still for so long

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"launch.threads={self.threads} must be at least 1, or null")
        if self.num_processes < 1:
            raise UserError(f"launch.num_processes={self.num_processes} must be at least 1")
        for name in ("time_limit_minutes", "stall_limit_minutes"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise UserError(f"launch.{name}={limit} must be above 0, or null for no limit")
        if self.config_file is not None and not Path(self.config_file).is_file():
            raise UserError(
                f"launch.config_file={self.config_file} does not exist; `accelerate config` writes one"
            )
        _ = self.machines  # reads the file

    def environment(self) -> dict[str, str]:
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
        """How a worker is started: by itself, or by Accelerate with its own configuration."""
        worker = [sys.executable, "-m", "gtp_exp.worker", str(resolved)]
        if self.config_file is None:
            return worker
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", self.config_file]
        options = ["--num_processes", str(self.num_processes)]
        if self.machines == 1:  # any free port; several machines meet at the one that the file names
            options += ["--main_process_port", "0"]
        return [*launcher, *options, *worker[1:]]

    @property
    def machines(self) -> int:
        """Of one job; on each of them the same command is given, with a config_file that tells its rank."""
        if self.config_file is None:
            return 1
        try:
            return int(OmegaConf.select(OmegaConf.load(self.config_file), "num_machines") or 1)
        except Exception as error:  # whatever the YAML library finds wrong with it
            raise UserError(
                f"launch.config_file={self.config_file} is not a configuration of Accelerate "
                f"({first_line(error)}); `accelerate config` writes one"
            ) from error

    def watch(self, directory: Path) -> Watch:
        in_all, stall = (
            None if minutes is None else 60 * minutes
            for minutes in (self.time_limit_minutes, self.stall_limit_minutes)
        )
        return Watch(directory, in_all, stall)

    def environments(self) -> list[dict[str, str]]:
        """Of each process that is started here, the main one first."""
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
class Ended:
    """How a job's workers came to their end: that of the first that failed, or of all."""

    code: int  # exit status, below 0 the signal
    rank: int
    limit: str = ""  # the one that the job has exceeded

    @property
    def status(self) -> int:
        """As a shell reports it."""
        return self.code if self.code >= 0 else 128 - self.code

    def __str__(self) -> str:
        if self.limit:
            return self.limit
        who = "the worker" if self.rank == 0 else f"process {self.rank}"
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with status {self.code}"
        return f"{who} {how}" + (f"; see {follower_log(self.rank)}" if self.rank else "")


def follower_log(rank: int) -> str:
    return f"worker.rank{rank}.log"


def run_worker(resolved: Path, launch: Launch) -> Ended:
    """Runs a job's worker processes to their end, the main one on this terminal, the others into files.

    When one fails the others are stopped. However this process ends, so do they.
    """
    workers = []
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
    previous = {}
    if threading.current_thread() is threading.main_thread():

        def stop(signum: int, _frame: object) -> None:
            raise SystemExit(128 + signum)

        # One that is ignored stays so: nohup lets a sweep outlive its terminal.
        heeded = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
        previous = {s: signal.signal(s, stop) for s in heeded}
    try:
        return _wait(workers, launch.watch(resolved.parent))
    finally:
        _stop(workers)  # Ctrl-C, a signal or an exception here, a limit, or one of them failed
        (resolved.parent / heartbeat.NAME).unlink(missing_ok=True)
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _wait(workers: list[subprocess.Popen], watch: Watch) -> Ended:
    """Until all are through, the first fails or a limit is exceeded."""
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes):
            time.sleep(SETTLE_S if len(workers) > 1 else 0.0)
            failed = [Ended(code, rank) for rank, worker in enumerate(workers) if (code := worker.poll())]
            # A killed one takes the others down; a mistake that all of them see is told by the main one.
            return next((ended for ended in failed if ended.code < 0), failed[0])
        if None not in codes:
            return Ended(0, 0)
        if limit := watch.exceeded():
            return Ended(TIMED_OUT, 0, limit)
        time.sleep(0.1)


def _stop(workers: list[subprocess.Popen]) -> None:
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
    """What to tell of an operation that a GPU cannot do deterministically; empty for any other error."""
    if "use_deterministic_algorithms" not in str(error):
        return ""
    return f"{first_line(error).split(', but')[0]} on this device; set launch.deterministic=false"


def die_with_parent(parent: int | None = None) -> None:
    """Asks for SIGTERM when the process that started this one is gone, however it went.

    parent: its id, if known; it may be gone already.
    """
    if sys.platform == "linux":  # holds even when the parent is killed with SIGKILL
        pr_set_pdeathsig = 1
        ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
