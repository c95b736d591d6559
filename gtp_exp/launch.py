"""How the command line starts a worker: device, processes, threads. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Optional

from gtp_exp.errors import UserError

GRACE_S = 20.0  # what a worker gets to write its state before it is killed


class Device(Enum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Launch:
    device: Device
    threads: Optional[int]  # of a CPU worker; null leaves the choice to PyTorch

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"launch.threads={self.threads} must be at least 1, or null")

    def environment(self) -> dict[str, str]:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.device is Device.CPU:
            environment["ACCELERATE_USE_CPU"] = "true"
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment


def run_worker(resolved: Path, launch: Launch) -> int:
    """Runs the worker on this terminal, to its exit status. However this process ends, so does the worker."""
    command = [sys.executable, "-m", "gtp_exp.worker", str(resolved)]
    worker = subprocess.Popen(command, env=launch.environment(), preexec_fn=_die_with_parent)
    previous = {}
    if threading.current_thread() is threading.main_thread():

        def stop(signum: int, _frame: object) -> None:
            raise SystemExit(128 + signum)

        previous = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        return worker.wait()
    finally:
        if worker.poll() is None:  # Ctrl-C, a signal or an exception here
            worker.terminate()
            try:
                worker.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _die_with_parent() -> None:
    if sys.platform == "linux":  # holds even when the parent is killed with SIGKILL
        pr_set_pdeathsig = 1
        ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)
