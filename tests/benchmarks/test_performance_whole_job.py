"""The benchmark of a whole job counts what was computed, and measures no job that has failed."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil
import pytest

from gtp_benchmarks.performance.whole_job import computed_seconds, profile, resident, run_command


def test_seconds_of_a_stage_are_counted_once(tmp_path):
    for job, cached in (("0", False), ("1", True)):
        folder = tmp_path / "runs" / "sweep" / job
        folder.mkdir(parents=True)
        stages = {
            "warmup": {"key": "w", "seconds": 6.0, "cached": cached},
            "finetune": {"key": job, "seconds": 20.0, "cached": False},
        }
        (folder / "results.json").write_text(json.dumps({"stages": stages}))
    assert computed_seconds(tmp_path) == {"warmup": 6.0, "finetune": 40.0}


def test_the_shares_add_up_to_the_whole():
    lines = profile({"warmup": 6.0, "finetune": 40.0}, 50.0).splitlines()
    assert lines[2:] == [
        "| warmup | 6.0 | 12% |",
        "| finetune | 40.0 | 80% |",
        "| start, data, records and the rest | 4.0 | 8% |",
        "| all | 50.0 | 100% |",
    ]


def test_memory_of_descendants_is_seen():
    inner = "x = bytearray(200 << 20); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE) as process:
        tree, largest, deadline = psutil.Process(process.pid), 0, time.monotonic() + 30
        while largest < 200 << 20 and process.poll() is None and time.monotonic() < deadline:
            largest = max(largest, *resident(tree))
        process.communicate(b"\n")
    assert largest >= 200 << 20 and resident(tree) == [0]


def test_a_job_that_fails_is_no_figure(tmp_path):
    with pytest.raises(RuntimeError, match="the job ended with status"):
        run_command(["selector=no_such_selector"], tmp_path)
