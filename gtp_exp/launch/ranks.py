"""Start a job's several processes by torch's own launcher, directly or through Accelerate's, and stop them.

The command line starts this module as the job's one child. torch's elastic agent starts the ranks, tells them
of each other and watches them. What is changed of it is how a job ends: every rank has time to say what is
wrong before the first failure stops the others, the parent is told the cause, where torch prints a traceback,
and the output of each rank goes where that of a job is looked for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed.launcher.api as torch_launcher
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from gtp_exp.launch.launcher import GRACE_S, WORKER, follower_log

SETTLE_S = 2.0  # seconds that the other ranks have to fail by themselves once one has failed


def main() -> NoReturn:
    """Run the ranks of the job that the command line describes; exit with a status other than 0 if one fails.

    Its arguments: the job's resolved.yaml, the number of processes, options of `accelerate launch` if the job
    has a configuration of Accelerate, and the number of a pipe that takes the rank that failed and its code.
    """
    resolved, processes, *options, pipe = sys.argv[1:]
    logging.disable(logging.CRITICAL)  # torchrun's account of signals and failures
    for signum in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to the parent, too, which ends this
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _unheard)
    agent = partial(_Agent, folder=Path(resolved).parent, pipe=int(pipe))
    torch_launcher.LocalElasticAgent = agent  # type: ignore[assignment]  # of Accelerate's torchrun, too
    worker = [resolved, str(os.getpid())]
    try:
        if options:
            _accelerate([*options, "--num_processes", processes, "--module", WORKER, *worker])
        else:
            _torch(int(processes), ["-m", WORKER, *worker])
    except subprocess.CalledProcessError as error:  # the one worker that Accelerate has started by itself
        _tell(int(pipe), 0, error.returncode)
        sys.exit(1)
    except ChildFailedError:  # told by the agent
        sys.exit(1)
    except SignalException:
        _tell(int(pipe), 0, 130)  # as of a worker that was interrupted
        sys.exit(1)
    sys.exit(0)


def _torch(processes: int, arguments: list[str]) -> None:
    """Run `python *arguments` as ranks on this machine, which meet at a free port of it."""
    config = torch_launcher.LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        logs_specs=_Logs(Path(os.devnull)),  # the agent has its own
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    torch_launcher.elastic_launch(config, sys.executable)(*arguments)


def _accelerate(arguments: list[str]) -> None:
    """Do as `accelerate launch *arguments`, which starts several ranks through torchrun, one by itself."""
    import psutil  # a dependency of Accelerate
    from accelerate.commands.launch import launch_command, launch_command_parser

    def pass_on(signum: int, _frame: object) -> None:
        for child in psutil.Process().children():
            child.send_signal(signum)

    signal.signal(signal.SIGTERM, pass_on)  # until the agent takes it
    # torchrun would make a folder for the logs that it never removes.
    launch_command(launch_command_parser().parse_args(["--log_dir", os.devnull, *arguments]))


def _unheard(_signum: int, _frame: object) -> None:
    """Ignore a signal, here and not in the processes that this one starts."""


def _tell(pipe: int, rank: int, code: int) -> None:
    """Tell the parent which rank has failed, and how: by its exit status, below 0 the signal."""
    with contextlib.suppress(OSError):  # the parent is gone
        os.write(pipe, f"{json.dumps([code, rank])}\n".encode())


class _Logs(LogsSpecs):
    """Leaves the main process its terminal, and sends what the others print into files of the run folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Return the files of each local rank, which are named after its rank in the whole job."""
        ranks = {local: int(environment["RANK"]) for local, environment in envs.items()}
        files = {local: str(self.folder / follower_log(rank)) for local, rank in ranks.items() if rank}
        # Until the worker joins them.
        out: dict[int, str] = {local: os.devnull if local in files else "" for local in ranks}
        err = {local: files.get(local, "") for local in ranks}
        return LogsDest(out, err, error_files=dict.fromkeys(ranks, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """Return the run folder."""
        return str(self.folder)


class _Agent(LocalElasticAgent):
    """Is torch's agent, but that it lets failures settle, tells the first, and stops ranks in our time."""

    def __init__(
        self, spec: WorkerSpec, logs_specs: LogsSpecs, *, folder: Path, pipe: int, **options: Any
    ) -> None:
        spec.numa_options = None  # which would bind a rank to cores that its threads are not counted for
        super().__init__(spec, _Logs(folder), **options)
        self.pipe = pipe
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Return how the ranks are; once one has failed, tell the cause and stop the others first."""
        if any(self._codes(worker_group).values()):
            end = time.monotonic() + SETTLE_S
            while None in (codes := self._codes(worker_group)).values() and time.monotonic() < end:
                time.sleep(0.05)
            # A killed rank takes the others down, so it is the cause; an error that all of them see is
            # reported by the main process.
            failed = [(rank, code) for rank, code in sorted(codes.items()) if code]
            _tell(self.pipe, *next((one for one in failed if one[1] < 0), failed[0]))
            self._shutdown()
        return super()._monitor_workers(worker_group)  # type: ignore[call-arg]  # says torch's decorator

    def _codes(self, worker_group: WorkerGroup) -> dict[int, int | None]:
        """Return the exit status of each rank of this machine, below 0 the signal; None while it runs."""
        assert isinstance(self._pcontext, SubprocessContext)
        handlers = self._pcontext.subprocess_handlers
        return {one.global_rank: handlers[one.local_rank].proc.poll() for one in worker_group.workers}

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 0) -> None:
        """End the ranks that still run: SIGTERM first, SIGKILL after GRACE_S seconds."""
        signal.signal(signal.SIGTERM, _unheard)  # it is being done
        super()._shutdown(death_sig, int(GRACE_S))


if __name__ == "__main__":
    main()
