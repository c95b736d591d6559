"""A job whose threads would wait for other processes says so, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from gtp_exp.launch.busy import Used, advice, used_by_others, used_so_far

SPIN = "import time\nend = time.process_time() + 60\nwhile time.process_time() < end: pass"


def test_the_time_of_others_is_that_of_all_without_ones_own():
    before = Used(at=10.0, by_all=100.0, by_this=3.0)
    assert used_by_others(before, Used(at=12.0, by_all=103.5, by_this=4.5)) == 1.0
    assert used_by_others(before, Used(at=12.0, by_all=101.0, by_this=5.0)) == 0.0  # clocks of two kinds
    assert used_by_others(before, before) == 0.0


def test_a_busy_process_is_seen_and_ones_own_work_is_not():
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        time.sleep(0.3)
        before = used_so_far()
        time.sleep(1.0)
        beside_one = used_by_others(before, used_so_far())
    finally:
        child.kill()
        child.wait()
    assert 0.2 < beside_one <= os.cpu_count() + 0.1  # at least what tests beside this one leave to it
    before, end = used_so_far(), time.process_time() + 0.5
    while time.process_time() < end:
        pass
    now = used_so_far()
    assert now.by_this - before.by_this >= 0.5
    assert now.by_all - before.by_all >= 0.4  # counted in hundredths of a second


def test_a_system_that_shows_no_counters_has_nothing_to_tell(monkeypatch):
    def refused(percpu):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refused)
    before = used_so_far()
    assert before.by_all == 0 and used_by_others(before, used_so_far()) == 0.0


@pytest.mark.parametrize(
    ("cores", "threads", "others", "left"),
    [(2, 2, 1.0, 1), (2, 2, 0.9, 1), (8, 8, 3.2, 5), (8, 6, 3.0, 5), (2, 2, 2.0, 1), (64, 64, 12.0, 52)],
)
def test_what_is_left_is_named(monkeypatch, cores, threads, others, left):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    told = advice(others, threads)
    assert told is not None and f"of the {cores} cores" in told and f"launch.threads={left} " in told


@pytest.mark.parametrize(
    ("cores", "threads", "others"),
    [(2, 2, 0.5), (2, 1, 1.9), (8, 4, 3.0), (64, 64, 5.0), (1, 1, 1.0)],
)
def test_nothing_is_said_where_there_is_room_or_no_other_thread(monkeypatch, cores, threads, others):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert advice(others, threads) is None
