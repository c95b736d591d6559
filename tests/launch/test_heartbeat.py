"""Jobs that hang or take too long: their parent stops them, says why, and no clock but its own counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from test_command_line import ENVIRONMENT, call, command, gone, record, running_worker
from tqdm.auto import tqdm

from gtp_exp.errors import UserError
from gtp_exp.launch import heartbeat
from gtp_exp.launch.heartbeat import JobWatch, ProgressCounter
from gtp_exp.launch.launcher import Device, Launch

LONG = ["selector=full", "budget=100pct", "dataset.rows=4000"]


def test_every_progress_bar_counts(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from gtp_exp.launch import heartbeat\n"
        "heartbeat._EVERY_S = 0.0; heartbeat.start(Path(sys.argv[1]))\n"
        "from tqdm.auto import trange\n"
        "for _ in trange(5, mininterval=0): print((Path(sys.argv[1]) / 'heartbeat').read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    counts = [int(line) for line in done.stdout.split()]
    assert counts[0] >= 1 and counts[-1] >= 4


def test_the_file_is_not_written_at_every_step(tmp_path):
    counter = ProgressCounter(tmp_path / heartbeat.NAME)
    for _ in range(1000):
        counter.beat()
    assert counter.count == 1 and (tmp_path / heartbeat.NAME).read_text() == "1"


def test_a_process_that_was_not_asked_to_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ProgressCounter().beat()
    with tqdm(total=2) as bar:
        bar.update()
    assert not list(tmp_path.iterdir())


def test_only_progress_keeps_a_job_alive(tmp_path):
    watch = JobWatch(tmp_path, None, 0.2)
    for count in range(8):
        (tmp_path / heartbeat.NAME).write_text(str(count))
        assert watch.exceeded() is None
        time.sleep(0.05)
    os.utime(tmp_path / heartbeat.NAME, (2e9, 2e9))  # a clock that jumps is no progress
    time.sleep(0.25)
    assert "without progress (launch.stall_limit_minutes)" in str(watch.exceeded())


def test_without_limits_nothing_is_exceeded(tmp_path):
    assert JobWatch(tmp_path, None, None, began=-1e9, changed=-1e9).exceeded() is None


@pytest.mark.parametrize("name", ["time_limit_minutes", "stall_limit_minutes"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_limit_that_stops_everything_is_refused(name, value):
    limits = {"time_limit_minutes": None, "stall_limit_minutes": None, name: value}
    with pytest.raises(UserError, match=name):
        Launch(Device.CPU, True, 1, 1, None, **limits)


def test_a_job_beyond_its_time_is_stopped_and_says_so(tmp_path):
    done = call(tmp_path, *LONG, "launch.time_limit_minutes=0.1")
    assert done.returncode == 124 and "Traceback" not in done.stderr
    assert "error: stopped after 0.1 minutes (launch.time_limit_minutes)" in done.stderr
    assert not list(tmp_path.rglob(heartbeat.NAME))


# The command line with less patience for a worker that does not end; the default is 20 seconds.
IMPATIENT = (
    "from gtp_exp.launch import launcher; launcher.GRACE_S = 2.0; from gtp_exp.__main__ import main; main()"
)


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_a_worker_that_hangs_is_stopped_and_its_record_says_so(tmp_path):
    python, _, _, *arguments = command(*LONG, "launch.stall_limit_minutes=0.1")
    parent = subprocess.Popen(
        [python, "-c", IMPATIENT, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a stopped process in ours would have the kernel hang up on all of it
    )
    worker = running_worker(tmp_path)
    os.kill(worker, signal.SIGSTOP)  # it does nothing any more, and no signal but SIGKILL ends it
    _, printed = parent.communicate(timeout=90)
    assert parent.returncode == 124 and gone(worker)
    found = record(tmp_path)
    assert found["state"] == "failed" and "0.1 minutes without progress" in found["error"]
    assert found["error"] in printed


def test_progress_does_not_lengthen_the_time_of_a_job(tmp_path):
    watch = JobWatch(tmp_path, time_limit_s=60.0, stall_limit_s=60.0)
    (tmp_path / heartbeat.NAME).write_text("1")
    assert watch.exceeded() is None
    watch.began -= 61
    (tmp_path / heartbeat.NAME).write_text("2")
    assert watch.exceeded() == "stopped after 1 minutes (launch.time_limit_minutes)"
