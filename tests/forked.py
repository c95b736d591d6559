"""Command lines of ours, forked from a process that has imported everything: it spares the start-up.

A forked process has the environment, folder, arguments, output and exit status of a fresh one, and so have
the workers that it starts, torch's launcher and the ranks of this. It is for tests of what a command does and
tells, and of what is left of several processes when one is killed. How processes start, what they import and
who hears a signal is tested with fresh ones, and so is who ends with whom in each pair of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from gtp_exp.worker import PRELOADED

ROOT = Path(__file__).resolve().parents[1]
_FORKED = ("gtp_exp", "gtp_exp.worker", "gtp_exp.estimate", "gtp_exp.launch.ranks")
_COMMANDS = ("gtp_exp.__main__", "gtp_exp.worker", "gtp_exp.estimate.__main__", "gtp_exp.launch.ranks")
# What a worker sets before its imports, and what the server is started with.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def run(
    line: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    timeout: float | None = None,
    namespace_of: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m gtp_exp ...` as `subprocess.run` does with captured text.

    namespace_of: a process whose users and mounts the command is to have, as nsenter(1) does it; on Linux.
    """
    if sys.platform != "linux":
        return subprocess.run(line, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        job = begin(line, cwd, env, Path(folder), namespace_of)
        job.join(timeout)
        if job.exitcode is None:
            job.kill()
            raise subprocess.TimeoutExpired(line, timeout or 0.0)
        printed = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(line, job.exitcode, *printed)


def begin(
    line: Sequence[str], cwd: Path, env: Mapping[str, str], printed: Path, namespace_of: int | None = None
) -> Any:
    """Start `python -m gtp_exp ...` and return its process (a multiprocessing.Process); on Linux.

    printed: the folder for what it prints, in the files `stdout` and `stderr`.
    """
    assert line[0] == sys.executable and line[1] == "-m"
    files = [printed / name for name in ("stdout", "stderr")]
    job = _server().Process(target=_begin, args=(line[2:], cwd, dict(env), files, _installed(), namespace_of))
    job.start()
    return job


def start(function: Callable[..., None], *arguments: Any, env: Mapping[str, str] | None = None) -> Any:
    """Call a function of a module in a process of its own, and return that (a multiprocessing.Process).

    env: its variables; those of this process by default. What it complains of is printed here.
    """
    context = _server() if sys.platform == "linux" else multiprocessing.get_context("spawn")
    process = context.Process(target=_call, args=(function, arguments, dict(env or os.environ)))
    process.start()
    return process


def connected(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in so many processes of one thread, which may connect to each other by gloo; wait for
    all of them."""
    from gtp_benchmarks.performance.selection_points import rank_environments

    processes = [start(function, *arguments, env=env) for env in rank_environments(count)]
    try:
        for process in processes:
            process.join(300)
        assert [process.exitcode for process in processes] == [0] * count  # what is wrong is on stderr
    finally:
        for process in processes:
            process.kill()


def _call(function: Callable[..., None], arguments: Sequence[Any], environment: Mapping[str, str]) -> None:
    """Call a function in the process that has just been started for it."""
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


@cache
def _server() -> Any:
    """Start the process that forks, once for this one. It ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_COMMANDS, *PRELOADED, "frozen"])
    before = dict(os.environ)
    paths = [ROOT, ROOT / "baselines", ROOT / "benchmarks", ROOT / "tests"]
    os.environ.update(_QUIET, PYTHONPATH=os.pathsep.join(map(str, paths)), OMP_NUM_THREADS="1")
    try:
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


@cache
def _installed() -> list[str]:
    """Return where a fresh process looks for modules, after its folder and PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    line = [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"]
    return subprocess.run(line, env=environment, capture_output=True, text=True).stdout.splitlines()


def _begin(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    files: list[Path],
    installed: list[str],
    namespace_of: int | None,
) -> None:
    """Be the command, in the process that has just been forked."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, (stream, file) in enumerate(zip((sys.stdout, sys.stderr), files, strict=True), 1):
        os.dup2(nowhere, number)
        stream.flush()  # what was printed by an import
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if namespace_of is not None:
        _enter(namespace_of)
    _Forking.installed = installed
    subprocess.Popen = subprocess_handler.Popen = _Forking  # type: ignore[misc]
    _become(arguments, folder, environment, installed)


def _enter(process: int) -> None:
    """Take over the users and the mounts of a process. os.setns is new in Python 3.12."""
    for kind in ("user", "mnt"):
        file = os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(file, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the {kind} namespace of process {process}")
        os.close(file)


def _become(
    arguments: list[str], folder: str | Path, environment: Mapping[str, str], installed: list[str]
) -> None:
    """Run `python -m ARGUMENTS` as if this process had just been started so."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    given = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [os.getcwd(), *(os.path.abspath(path) for path in given), *installed]
    importlib.invalidate_caches()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    logging.root.handlers.clear()  # those of the command that starts this worker
    logging.root.setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
    multiprocessing.set_start_method(None, force=True)  # which the server has set to its own
    for name in (arguments[0], f"{arguments[0]}.__main__"):
        if name in _COMMANDS:
            # runpy warns of what it is to run and finds imported. Where a benchmark has started the server,
            # nothing of it is.
            sys.modules.pop(name, None)
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


class _Forking(subprocess.Popen):
    """Forks what would be started as `python -m gtp_exp...`, and starts anything else as ever."""

    installed: list[str]

    def _execute_child(self, *values: Any) -> None:
        fresh = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(fresh).bind(*values).arguments
        python, flag, *arguments = [*(one for one in given["args"] if one != "-u"), "", ""]
        if python != sys.executable or flag != "-m" or arguments[0] not in _FORKED:
            return fresh(*values)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become_child(arguments[:-2], given)
            except SystemExit as end:
                os._exit(_status(end))
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))  # type: ignore[attr-defined]

    def _become_child(self, arguments: list[str], given: Mapping[str, Any]) -> None:
        """Do what lies between fork and exec, and go on as the command."""
        if given["start_new_session"]:
            os.setsid()
        for signum in signal.valid_signals():
            if callable(signal.getsignal(signum)):
                fresh = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
                signal.signal(signum, fresh)
        if given["preexec_fn"] is not None:
            given["preexec_fn"]()
        for number, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
            if given[name] != -1:
                os.dup2(given[name], number)
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number not in given["pass_fds"]:
                with contextlib.suppress(OSError):
                    os.close(number)
        tracker = resource_tracker._resource_tracker  # whose file would be closed a second time
        tracker._fd = tracker._pid = None  # type: ignore[attr-defined]
        environment = os.environ if given["env"] is None else given["env"]
        _become(arguments, given["cwd"] or os.getcwd(), dict(environment), self.installed)
        sys.stdout.flush()
        os._exit(0)


def _status(end: SystemExit) -> int:
    """Return the exit status that Python makes of this, and print what it prints."""
    if end.code is not None and not isinstance(end.code, int):
        print(end.code, file=sys.stderr)
    sys.stdout.flush()
    return end.code if isinstance(end.code, int) else int(end.code is not None)
