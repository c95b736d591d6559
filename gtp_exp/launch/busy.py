"""Count the cores that a job may use, and notice that other processes use them at the same time."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

BUSY = 0.75  # cores that others must use before it is worth a word
BUSY_SHARE = 0.1  # or this share of the cores, if that is more


@dataclass(frozen=True)
class Used:
    """Holds the processor time that this process's cores have given so far, in seconds."""

    at: float  # on the clock of time.monotonic
    by_all: float
    by_this: float  # this process alone


def usable_cores() -> int:
    """Return how many cores this process may use: of a machine that is shared, those that it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def used_so_far() -> Used:
    """Read the counters of the cores that this process may use; zeros where the system shows none."""
    import psutil  # a dependency of Accelerate

    try:
        process, counters = psutil.Process(), psutil.cpu_times(percpu=True)
        if hasattr(process, "cpu_affinity"):  # macOS has none
            counters = [counters[i] for i in process.cpu_affinity() if i < len(counters)]
    except (OSError, psutil.Error):
        counters = []
    idle = {"idle", "iowait", "guest", "guest_nice"}  # a guest's time is part of `user`
    by_all = sum(value for times in counters for name, value in times._asdict().items() if name not in idle)
    return Used(time.monotonic(), by_all, time.process_time())


def used_by_others(before: Used, now: Used) -> float:
    """Return how many cores other processes have used between two readings, in the mean."""
    seconds = now.at - before.at
    if seconds <= 0:
        return 0.0
    return max(0.0, (now.by_all - before.by_all) - (now.by_this - before.by_this)) / seconds


def advice(others: float, threads: int) -> str | None:
    """Return what to tell of a job that computes in some threads while others use so many cores; None where
    there is room for all, or nothing to wait for."""
    cores = usable_cores()
    if threads == 1 or others < max(BUSY, BUSY_SHARE * cores) or threads + others <= cores + 0.5:
        return None
    return (
        f"other processes use {others:.1f} of the {cores} cores here: {threads} threads wait for one another "
        "at every operation, and a job may take several times as long; launch.threads="
        f"{max(1, round(cores - others))} would not wait"
    )
