"""Share a pass over many rows among threads whose own operations are serial.

The threads are Python's: a team of OpenMP threads takes longer to meet than a block of rows to compute, many
times longer where others use the cores, and a BLAS with a pool of its own would fight for them with torch's.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(work: Callable[[range], None], n: int, least: int) -> None:
    """Call `work` with spans that cover n rows, by as many threads as torch has.

    least: of the rows of a span, but for the last one.
    """
    threads = torch.get_num_threads()
    size = max(least, -(-n // threads))
    spans = [range(n)[start : start + size] for start in range(0, n, size)]
    if threads == 1:
        for span in spans:
            work(span)
    else:
        list(_pool(threads, os.getpid()).map(work, spans))


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads of a process: one that is forked from it has its variables, and none of its threads."""
    pool = ThreadPoolExecutor(threads, "over rows", initializer=_compute_serially)
    started = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(threads)  # what a thread sets for itself is also the default of threads to come
    return pool


def _compute_serially() -> None:
    """Give this thread's torch operations no other thread to work with."""
    torch.get_num_threads()  # a thread takes the default when it first asks, which would undo what follows
    torch.set_num_threads(1)
