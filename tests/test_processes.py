"""Two processes on the CPU do what one does: real ones, with gloo between them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
import torch
from safetensors.torch import load_file
from test_command_line import ENVIRONMENT, command
from test_experiment import run as run_here

from gtp_exp.distributed import ALONE, connect
from gtp_exp.errors import UserError
from gtp_exp.gradients.store import GradientStore
from gtp_exp.records.record import State, write_record
from gtp_exp.stages.training import dropout_reads
from gtp_exp.training.batches import NO_ROW, RowOrder
from gtp_exp.training.config import TrainConfig, micro_batch_size

# Seven rows chosen: the last step of training is not full, and no share of it is.
JOB = ["selector=gtp", "budget=rows", "budget.amount=7", "model.precision=fp32", "train.batch_size=4"]


def start(folder, processes, *overrides):
    directory = f"hydra.run.dir={folder}/run"
    return command(*JOB, f"launch.num_processes={processes}", f"outputs={folder}", directory, *overrides)


def run(folder, processes, *overrides):
    return forked.run(start(folder, processes, *overrides), folder, ENVIRONMENT)


def results(folder):
    return json.loads((folder / "run" / "results.json").read_text())


def entry(folder, stage):
    """The only finished entry of a stage that matters here."""
    key = results(folder)["stages"][stage]["key"].split()[0]
    return folder / "cache" / stage.split(":")[0] / key


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same job by this process and by two. The two are given the warm-up of the one: rounding grows."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    record = run_here(one, *JOB, "launch.num_processes=1")
    write_record(replace(record, state=State.COMPLETE), one / "run")
    shutil.copytree(one / "cache" / "warmup", two / "cache" / "warmup")
    done = run(two, 2)
    assert done.returncode == 0, done.stderr
    assert results(two)["stages"]["warmup"]["cached"]
    return one, two


def same_tensors(left, right, tolerance):
    a, b = load_file(left), load_file(right)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


def test_they_share_every_key(pair):
    one, two = (results(folder) for folder in pair)
    assert {k: v["key"] for k, v in one["stages"].items()} == {k: v["key"] for k, v in two["stages"].items()}


@pytest.mark.parametrize("stage", ["gradients: pool", "gradients: target"])
def test_gradients_are_equal(pair, stage):
    one, two = (GradientStore.open(entry(folder, stage) / "store") for folder in pair)
    assert one.ids == two.ids
    for t in range(2):
        for direction in one.directions:
            index = torch.arange(one.n)
            left, right = (store.features(t, direction).rows(index).float() for store in (one, two))
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def test_the_choice_is_the_same(pair):
    one, two = (load_file(entry(folder, "selection") / "selection.safetensors") for folder in pair)
    assert torch.equal(one["indices"], two["indices"])
    torch.testing.assert_close(one["weights"], two["weights"], rtol=1e-4, atol=1e-6)


def test_fine_tuning_is_equal_to_rounding(pair):
    one, two = (entry(folder, "finetune") for folder in pair)
    same_tensors(*(e / "model" / "adapter_model.safetensors" for e in (one, two)), 1e-5)
    curves = [[json.loads(row) for row in (e / "history.jsonl").read_text().splitlines()] for e in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 2  # the second step has three rows
    for left, right in zip(*curves, strict=True):
        assert left["step"] == right["step"] and left["loss"] == pytest.approx(right["loss"], abs=1e-4)


def test_metrics_are_equal_and_every_document_is_tested_once(pair):
    one, two = (results(folder) for folder in pair)
    for name in ("metrics", "untuned"):
        for task, values in one[name].items():
            assert two[name][task].pop("headline") == values.pop("headline")
            assert two[name][task] == pytest.approx(values, rel=1e-4)
    samples = [
        [json.loads(row) for row in (entry(folder, "evaluation") / "samples.jsonl").read_text().splitlines()]
        for folder in pair
    ]
    assert [row["doc_id"] for row in samples[0]] == [row["doc_id"] for row in samples[1]]


def test_a_warm_up_by_two_is_the_same_trajectory(pair, tmp_path):
    done = run(tmp_path, 2, "until=selection")
    assert done.returncode == 0, done.stderr
    for name in ("trainable", "moments"):
        same_tensors(
            *(entry(f, "warmup") / "checkpoint-1" / f"{name}.safetensors" for f in (pair[0], tmp_path)), 1e-5
        )


def test_only_the_main_process_reports(pair):
    folder = pair[1] / "run"
    kinds = [json.loads(row)["kind"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("selection") == 1
    assert (folder / "worker.rank1.log").exists() and "done in" not in (
        folder / "worker.rank1.log"
    ).read_text()
    # What it warned of is whole, among what it printed.
    assert " pool: left out 1 of 41 rows" in (folder / "worker.rank1.log").read_text()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def children_of(parent):
    """Process ids of the children of a process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((process / "stat").read_text().rsplit(") ", 1)[1].split()[1]) == parent:
                found.append(int(process.name))
    return found


def workers_of(parent):
    """Process ids of a running job's two workers, by rank: the second has a file for what it prints."""
    found = {}
    for child in children_of(parent):
        files = [os.readlink(file) for file in Path(f"/proc/{child}/fd").iterdir()]
        found[int(any(file.endswith("worker.rank1.log") for file in files))] = child
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("victim", [0, 1, "ranks' parent", "parent"])
def test_the_loss_of_a_process_ends_the_job_and_leaves_none_behind(tmp_path, victim, request):
    line = start(tmp_path, 2, "train.epochs=400", "selector=random")  # which is soon at its training
    job = forked.begin(line, tmp_path, ENVIRONMENT, tmp_path)
    request.addfinalizer(job.kill)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/finetune/*.part")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (child,) = children_of(job.pid)
    workers = workers_of(child)
    assert set(workers) == {0, 1}
    processes = {**workers, "ranks' parent": child, "parent": job.pid}
    os.kill(processes[victim], signal.SIGKILL)
    job.join(40)
    deadline = time.monotonic() + 40
    while any(map(alive, processes.values())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, processes.values())) and job.exitcode not in (None, 0)
    printed = (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()
    assert victim == "parent" or "Traceback" not in printed
    if victim in (0, 1):
        who = "process 1 was killed by signal 9; see worker.rank1.log" if victim else "the worker was killed"
        assert printed.count("killed") == printed.count(f"error: {who}") == 1 and job.exitcode == 137
        record = results(tmp_path)
        assert record["state"] == "failed" and "was killed by signal 9" in record["error"]


def test_processes_that_do_not_find_each_other_are_refused():
    code = (
        "import torch; from gtp_exp.distributed import connect\n"
        "try: connect(2, torch.device('cpu'))\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert "UserError launch.num_processes=2, but 1 joined" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("dropout", "own", "size", "expected"),
    [
        (0.0, False, 2, {}),
        (0.1, False, 2, {"processes": 2}),
        (0.0, True, 2, {"processes": 2}),
        (None, True, 2, {"processes": 2}),
        (None, True, 1, {}),
    ],
)
def test_with_dropout_training_by_another_number_of_processes_is_another_stage(dropout, own, size, expected):
    """Of the adapters, or of the base model's own layers."""
    lora = None if dropout is None else SimpleNamespace(dropout=dropout)
    model = SimpleNamespace(config=SimpleNamespace(lora=lora), own_dropout=own)
    assert dropout_reads(model, SimpleNamespace(size=size)) == expected


def test_one_process_needs_no_group():
    assert connect(1, torch.device("cpu")) is ALONE
    assert ALONE.broadcast(3) == 3 and ALONE.all_gather(3) == [3] and ALONE.main_first(lambda: 3) == 3


def test_the_order_is_a_permutation_of_its_own_in_every_epoch_filled_up_to_the_multiple():
    orders = []
    for multiple in (1, 4):
        order = RowOrder(10, multiple, seed=5)
        for epoch in (0, 1):
            order.set_epoch(epoch)
            orders.append(list(order))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[2] == orders[0] + [NO_ROW] * 2 and len(RowOrder(10, 4, 5)) == 12


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"), [(8, 8, 1, 8), (8, 8, 2, 4), (12, 4, 2, 3), (6, 2, 3, 2)]
)
def test_a_share_of_the_batch_is_divided_into_equal_passes(batch, micro, processes, expected):
    settings = {"epochs": 1, "learning_rate": 1.0, "schedule": "linear", "warmup_ratio": 0.0}
    config = TrainConfig(
        **settings,
        weight_decay=0.0,
        max_grad_norm=1.0,
        batch_size=batch,
        micro_batch_size=micro,
        use_weights=False,
    )
    assert micro_batch_size(config, processes) == expected
    with pytest.raises(UserError, match="use 7 or another multiple"):
        micro_batch_size(config, 7)
