"""What happens at the same time as a job: another job, changed data, a clock that jumps."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import forked
import pytest
from test_command_line import ENVIRONMENT, command
from test_experiment import computed, run
from test_processes import run as run_pair

# The pool's gradients take longer than a job waits for an entry before it says that it waits.
JOB = ["selector=less", "budget=5pct", "dataset.rows=300", "gradients.engine=hooks"]


def test_two_commands_at_the_same_moment_compute_every_stage_once_and_agree(tmp_path):
    with ThreadPoolExecutor() as together:
        jobs = list(together.map(lambda _: forked.run(command(*JOB), tmp_path, ENVIRONMENT, 300), range(2)))
    said = [job.stderr for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert any("another run is computing the same entry; waiting for it" in text for text in said)
    assert any("fine-tune" in text for text in said)  # a progress bar
    first, second = (json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/*/results.json"))
    assert first["state"] == second["state"] == "complete" and first["names"]["selector"] == "less"
    assert first["command"][:3] == ["python", "-m", "gtp_exp"] and "selector=less" in first["command"]
    for stage in first["stages"]:
        assert first["stages"][stage]["cached"] != second["stages"][stage]["cached"], stage
    for name in ("selection", "metrics", "untuned"):
        assert first[name] == second[name]
    assert not list(tmp_path.rglob("*.part"))


def write_pool(path, rows):
    lines = [
        json.dumps({"id": f"row-{i}", "prompt": f"What is {i} plus 2?", "completion": f"{i + 2}"})
        for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")


def test_rows_added_to_the_pool_while_a_job_runs_wait_for_the_next_job(tmp_path):
    pool = tmp_path / "pool.jsonl"
    write_pool(pool, 60)
    job = [f"dataset.files=[{pool}]", "selector=less", "gradients.shard_rows=4", f"outputs={tmp_path}"]
    line = [*command("dataset=jsonl", *job), f"hydra.run.dir={tmp_path}/run"]
    with ThreadPoolExecutor() as beside:
        running = beside.submit(forked.run, line, tmp_path, ENVIRONMENT, 300)
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("cache/gradients/*.part/store/checkpoint-00/*")):
            assert not running.done() and time.monotonic() < deadline
            time.sleep(0.01)
        write_pool(pool, 70)
        assert running.result().returncode == 0, running.result().stderr
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["pool"]["rows"] == 60
    after = run(tmp_path, "dataset=jsonl", *job[:-1])
    assert after.pool is not None and after.pool.rows == 70
    assert {"warmup", "gradients: pool", "selection", "finetune"} <= computed(after)
    write_pool(pool, 60)
    again = run(tmp_path, "dataset=jsonl", "budget=10pct", *job[:-1])
    assert again.stages["gradients: pool"].key == record["stages"]["gradients: pool"]["key"]
    assert again.stages["gradients: pool"].cached


def test_processes_that_read_different_data_refuse(tmp_path):
    """A pool that is changed between one process's reading and the other's; it is told once."""
    where = ["dataset._target_=toy.ChangingPool", "until=selection", "selector=random"]
    done = run_pair(tmp_path, 2, *where)
    assert done.returncode == 2
    assert done.stderr.count("the pool changed while the job's processes read it") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("cache/selection/*"))


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_seconds_and_no_decision_of_the_cache(tmp_path, monkeypatch, jump):
    calls, real = [], time.time

    def jumping():
        calls.append(1)
        return real() + jump * (len(calls) // 3 % 2)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        begin = time.monotonic()
        first = run(tmp_path, "selector=less")
        elapsed = time.monotonic() - begin
    assert calls and 0 < sum(cost.seconds for cost in first.stages.values()) < elapsed
    for path in tmp_path.glob("cache/**/*"):
        os.utime(path, (real() + jump, real() + jump))
    again = run(tmp_path, "selector=less")
    assert computed(again) == set()
    assert again.metrics == first.metrics and again.selection == first.selection
    assert {k: v.seconds for k, v in again.stages.items()} == {k: v.seconds for k, v in first.stages.items()}
