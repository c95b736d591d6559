"""The benchmark of a job's start tells what was measured, and measures no job that has failed."""

from __future__ import annotations

import pytest

from gtp_benchmarks.performance.job_start import figures, run_cached
from gtp_benchmarks.performance.measuring import Timing
from gtp_exp.launch.launcher import Device, Launch


def test_the_table_compares_the_medians():
    timings = {"fresh": Timing((8.0, 6.0, 9.0), 1), "forked": Timing((0.5, 0.4, 3.0), 1)}
    ratio, seconds, first = figures(timings, first=12.0)
    assert ratio.value == 16 and seconds.value == 0.5 and first.value == 1.5
    assert seconds.met and "slowest 3.00 s" in seconds.absolute


def test_a_job_that_fails_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(Launch, "command", lambda self, resolved: ["false"])
    with pytest.raises(RuntimeError, match="the worker ended with status 1"):
        run_cached(tmp_path / "resolved.yaml", Launch(Device.CPU), forked=False)
