"""End a process with its parent, so that no job outlives the command that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to send SIGTERM to this process when its parent is gone, however the parent ended.

    parent: its process id, if known; exits at once when it is gone already.
    """
    if sys.platform == "linux":  # holds even when the parent is killed with SIGKILL
        pr_set_pdeathsig = 1
        ctypes.CDLL("libc.so.6").prctl(pr_set_pdeathsig, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
