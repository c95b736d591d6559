"""Run a script as several connected processes on the CPU, by torch's own launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gtp_exp.launch.launcher import Device, Launch

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--log-dir", os.devnull, "--nproc-per-node"]


def in_processes(count: int, script: Path, *arguments: object) -> None:
    """Run the script to its end in so many processes, each of one thread; one of them needs no launcher."""
    launcher = [] if count == 1 else [*TORCHRUN, str(count)]
    environment = Launch(device=Device.CPU, threads=1, num_processes=count).environment()
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
