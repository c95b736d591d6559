"""A job that a scheduler interrupts and starts again goes on from its last epoch: submitit on this machine.

submitit sends no signal of its own before `timeout_min` has passed, a minute at least; here the test sends
the same signal, to every process of the job, as Slurm does.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time

import psutil
import pytest
from test_command_line import ENVIRONMENT, command

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
EPOCHS, LIMIT_S = 30, 600
JOB = ["hydra/launcher=submitit_local", "selector=random", "budget=rows", "budget.amount=4"]


def tasks(launched: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that submitit has started for the job, and theirs."""
    below = psutil.Process(launched.pid).children(recursive=True)
    (task,) = (p for p in below if "submitit.core._submit" in p.cmdline())
    return [task, *task.children(recursive=True)]


def test_an_interrupted_job_goes_on_from_its_last_epoch_when_it_is_requeued(tmp_path):
    launched = subprocess.Popen(
        command("-m", *JOB, f"train.epochs={EPOCHS}"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not list(tmp_path.glob("outputs/cache/finetune/*.part/**/checkpoint-*/manifest.json")):
            assert launched.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        for process in tasks(launched):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGUSR2)
        _, said = launched.communicate(timeout=LIMIT_S)
    finally:
        launched.kill()
    assert launched.returncode == 0, said
    (record,) = tmp_path.glob("outputs/runs/*/*/results.json")  # one run folder: that of the first attempt
    assert json.loads(record.read_text())["state"] == "complete"
    (printed,) = tmp_path.glob("outputs/runs/*/.submitit/*/*_log.err")
    begun = [int(step) for step in re.findall(rf"(\d+)/{EPOCHS} \[00:00<\?", printed.read_text())]
    assert len(begun) == 2 and begun[0] == 0 < begun[1]
    (history,) = tmp_path.glob("outputs/cache/finetune/*/history.jsonl")
    assert [json.loads(line)["step"] for line in history.read_text().splitlines()] == list(
        range(1, EPOCHS + 1)
    )
