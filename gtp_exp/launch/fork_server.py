"""Start the jobs of a multirun from one process that has imported everything: it forks a process for each.

Importing torch, transformers and the rest takes most of the time of a job whose stages are cached. The server
imports them once and then waits for commands; each forked job goes on as if it had just been started by its
command. The server computes nothing, so that a job finds thread pools, devices and generators as untouched as
in a fresh process. Whatever the libraries read from the environment while they were imported, the job
would read, too: a job with another environment or working directory gets another server.

The two sides speak by JSON messages over a socket: a command there; the process id, and later the exit
status, back. This file has both sides, the launcher's first; that one imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gtp_exp.launch.parent import die_with_parent

SERVE = "--serve"  # the worker's argument that makes it a server; the number of its socket follows
_LONGEST = 1 << 16  # bytes of a message
# Threads that libraries start on import and that set themselves right around a fork: pyarrow's allocator.
_FORK_SAFE_THREADS = {"jemalloc_bg_thd"}
_ACCELERATORS = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel")


class ForkServer:
    """Is the launcher's side of one server process, which ends with the launcher."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a server for jobs like that of `command` in this environment and the present folder."""
        self.environment, self.folder = dict(environment), os.getcwd()
        self.job: ForkedJob | None = None
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [*command[:-1], SERVE, str(other.fileno())],
                env=self.environment,
                pass_fds=[other.fileno()],
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        self.socket.setblocking(False)
        atexit.register(self.close)

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether the server is free, and a fresh process would start with what it started with."""
        same = self.environment == environment and self.folder == os.getcwd()
        free = self.job is None or self.job.poll() is not None
        return same and free and self.process.poll() is None

    def start(self, command: Sequence[str]) -> ForkedJob:
        """Have a job forked; return at once."""
        self.job = ForkedJob(self)
        with contextlib.suppress(OSError):  # the server has just ended, and the job tells so
            self.socket.send(json.dumps(list(command)).encode())
        return self.job

    def close(self) -> None:
        """End the server, and with it a job of it that still runs."""
        atexit.unregister(self.close)
        self.process.kill()
        self.process.wait()
        self.socket.close()


_current: ForkServer | None = None  # of this process


def start_job(command: Sequence[str], environment: Mapping[str, str]) -> ForkedJob:
    """Fork a job from a server, which is started first if none fits.

    command: what a fresh process would be started by; its last argument is the job's file.
    """
    global _current
    if _current is not None and not _current.fits(environment):
        _current.close()
        _current = None
    _current = _current or ForkServer(command, environment)
    return _current.start(command)


@dataclass
class ForkedJob:
    """Is a job that a server has forked, with the methods of a Popen that the launcher uses."""

    server: ForkServer
    pid: int | None = None  # None until the server has imported everything and has forked
    returncode: int | None = None

    def poll(self) -> int | None:
        """Return how the job ended, below 0 by which signal; None while it runs."""
        while self.returncode is None:
            try:
                message = self.server.socket.recv(_LONGEST)
            except BlockingIOError:
                return None
            except OSError:
                message = b""
            if message:
                self.pid, self.returncode = json.loads(message)
            else:  # nobody holds the other end any more: the server is gone, and so is the job
                self.returncode = self.server.process.wait() or 1
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the job has ended; raise TimeoutExpired after so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self.server.socket], [], [], left)[0]:
                raise subprocess.TimeoutExpired("job", timeout or 0.0)
        return code

    def terminate(self) -> None:
        """Send SIGTERM to the job, or to the server where that has not come so far."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the job, and to the server, which may be what hangs."""
        self._send(signal.SIGKILL)
        self.server.process.kill()

    def _send(self, signum: signal.Signals) -> None:
        """Send a signal to the job, or to the server that is to become its parent."""
        if self.poll() is not None:
            return
        if self.pid is None:
            self.server.process.send_signal(signum)
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)


def serve(descriptor: int, modules: Sequence[str]) -> str:
    """Import the modules, then fork a process for every command; return, in each of these, the last argument
    of its command. The server itself never returns.

    descriptor: of the server's end of the socket.
    """
    server = _Serving(socket.socket(fileno=descriptor), os.getpid(), dict(os.environ))
    inherited = server.handle_signals()
    _import(modules)
    safe = _fork_is_safe()
    while message := server.next_message():
        command = json.loads(message)
        if safe:
            server.job = os.fork()
        else:  # the same by a fresh process
            server.job = os.posix_spawn(command[0], command, server.environment)
        if server.job == 0:
            _become_fresh(server, inherited)
            sys.argv = [sys.argv[0], command[-1]]
            return command[-1]
        server.follow(server.job)
    os._exit(0)  # the launcher is gone


@dataclass
class _Serving:
    """Is the server's side: what it started with, and the job that runs."""

    socket: socket.socket
    pid: int
    environment: Mapping[str, str]
    job: int | None = None  # its process id

    def handle_signals(self) -> dict[signal.Signals, Any]:
        """Take SIGINT and SIGTERM; return what has handled them so far."""
        inherited = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        for signum, handler in inherited.items():
            if handler is not signal.SIG_IGN:  # what is ignored stays so: a shell's background jobs
                signal.signal(signum, self._on_signal)
        return inherited

    def _on_signal(self, signum: int, _frame: object) -> None:
        """Pass SIGTERM on to the job, or end where there is none. The terminal tells a job of Ctrl-C."""
        if signum != signal.SIGTERM:
            return
        if not self.job:
            os._exit(128 + signum)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.job, signum)

    def next_message(self) -> bytes:
        """Wait for the launcher's next message; return an empty one when the launcher is gone."""
        try:
            return self.socket.recv(_LONGEST)
        except OSError:
            return b""

    def follow(self, job: int) -> None:
        """Tell the launcher that a job has begun, and how it ended."""
        with contextlib.suppress(OSError):  # the launcher is gone
            self.socket.send(json.dumps([job, None]).encode())
        _, status = os.waitpid(job, 0)
        self.job = None
        with contextlib.suppress(OSError):
            self.socket.send(json.dumps([job, os.waitstatus_to_exitcode(status)]).encode())


def _import(modules: Sequence[str]) -> None:
    """Import what jobs need, so that they share its memory."""
    gc.disable()  # a collection would find nothing
    for name in modules:
        with contextlib.suppress(Exception):  # the job that needs it tells
            importlib.import_module(name)
    gc.freeze()  # a collection in a job would write to every object, and so copy its page


def _fork_is_safe() -> bool:
    """Return whether forked processes can rely on all that this process holds, which a trial shows.

    OpenBLAS starts threads on import, and ends them by itself before a fork.
    """
    if (trial := os.fork()) == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    threads = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
    files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return is_clean([(path / "comm").read_text().strip() for path in threads], files)


def is_clean(threads: Iterable[str], files: Iterable[str]) -> bool:
    """Return whether a process has no thread that a fork would lose, and has not touched a GPU.

    threads: the names of all but the main one. files: what the process has opened.
    """
    return set(threads) <= _FORK_SAFE_THREADS and not any(file.startswith(_ACCELERATORS) for file in files)


def _become_fresh(server: _Serving, inherited: Mapping[signal.Signals, Any]) -> None:
    """Undo in a forked process what sets it apart from a fresh one, and tie its life to the server's."""
    for signum, handler in inherited.items():
        signal.signal(signum, handler)
    die_with_parent(server.pid)
    # As long as this process lives, and none that it starts, the launcher sees an open socket.
    server.socket.set_inheritable(False)
    os.register_at_fork(after_in_child=server.socket.close)
    importlib.invalidate_caches()
    if numpy := sys.modules.get("numpy"):  # `random` does so by itself
        numpy.random.seed()
    gc.enable()
