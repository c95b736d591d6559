"""A run's folder belongs to one job at a time, and to the next as soon as that one has ended, however."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import pytest
from test_command_line import ENVIRONMENT, call, command, gone, running_worker

HERE = "hydra.run.dir=outputs/runs/one"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@contextlib.contextmanager
def running_job(folder, *overrides):
    """A job of a hundred times the rows, once it has begun its record."""
    line = command("selector=random", "dataset.rows=4000", "budget=100pct", *overrides)
    job = subprocess.Popen(line, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        yield job, running_worker(folder)
    finally:
        job.kill()
        job.wait()


@LINUX
def test_a_job_does_not_write_into_the_folder_of_another_that_is_running(tmp_path):
    quick = ["selector=random", "until=selection", "seed=1"]
    with running_job(tmp_path, HERE) as (job, worker):
        refused = call(tmp_path, *quick, HERE)
        assert job.poll() is None and refused.returncode == 2 and "Traceback" not in refused.stderr
        assert "outputs/runs/one' is the folder of a job that is running" in refused.stderr
        assert "hydra.run.dir=DIR" in refused.stderr
        told = json.loads((tmp_path / "outputs/runs/one/results.json").read_text())
        assert (told["seed"], told["state"]) == (0, "running")
        assert call(tmp_path, *quick).returncode == 0  # elsewhere
        job.send_signal(signal.SIGKILL)
        assert gone(worker)
        assert call(tmp_path, *quick, HERE).returncode == 0  # which a killed job does not keep
    assert not list((tmp_path / "outputs" / "runs").rglob("*.lock"))
