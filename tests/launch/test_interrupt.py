"""An interrupt reaches a job although a library's callback may swallow the exception."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SWALLOWED = """
import os, signal, time
from gtp_exp import worker

worker.REPEAT_S, worker.GRACE_S = 0.2, 0.6
signal.signal(signal.SIGTERM, worker._interrupt)
heard = 0
for _ in range({swallowed}):
    try:
        os.kill(os.getpid(), signal.SIGTERM)  # the second is not heard
        time.sleep(30)
    except KeyboardInterrupt:
        heard += 1
        print(heard, flush=True)
try:
    time.sleep(30)
except KeyboardInterrupt:
    print("ends", flush=True)
"""


@pytest.mark.parametrize(
    ("swallowed", "printed", "status"),
    [(1, "1\nends\n", 0), (2, "1\n2\n", -signal.SIGALRM)],
    ids=["one swallowed", "both swallowed"],
)
def test_an_interrupt_comes_twice_and_then_the_process_ends(swallowed, printed, status):
    """A job that has heard neither is ended by the kernel."""
    program = [sys.executable, "-c", SWALLOWED.format(swallowed=swallowed)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=25)
    assert (ended.stdout, ended.returncode) == (printed, status)
