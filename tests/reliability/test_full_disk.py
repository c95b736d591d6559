"""A disk that is really full: one line that says what to do, nothing finished is lost, the job goes on."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import forked
import pytest
from reliability.soak import snapshot
from reliability.tiny_job import without_timings
from small_disk import read_only, small_disk
from test_command_line import ENVIRONMENT, command
from test_experiment import run

from gtp_exp.records.record import State, read_record, write_record

# One shard takes 120 KiB, a checkpoint of the fine-tune 340 KiB.
JOB = ["selector=less", "budget=10pct", "model.lora.r=32", "model.precision=fp32"]
KIB = 1024

WRITERS = """
import json, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq, torch
from safetensors.torch import save_file
from gtp_exp.files import write_json
from gtp_exp.launch.faults import storage_fault
folder, values = Path(sys.argv[1]), torch.zeros(1 << 20)
for name, write in {
    "safetensors": lambda file: save_file({"a": values}, file),
    "torch": lambda file: torch.save({"a": values}, file),
    "json": lambda file: write_json(file, "x" * (1 << 22)),
    "text": lambda file: file.write_text("x" * (1 << 22)),
    "parquet": lambda file: pq.write_table(pa.table({"a": torch.rand(1 << 19).numpy()}), file),
}.items():
    try:
        write(folder / name)
        print(name, "was written")
    except Exception as error:
        print(name, type(error).__name__, storage_fault(error, folder))
    for file in folder.glob(name + "*"):
        file.unlink()
"""


def told(done, folder):
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["safetensors", "torch", "json", "text", "parquet"]
    for line in lines:
        assert f"outputs folder '{folder}'" in line and "free space" in line and "outputs=DIR" in line, line


def test_every_library_that_writes_is_understood_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", kib=256) as disk:
        line = disk.inside([sys.executable, "-c", WRITERS, str(disk.path)], tmp_path)
        told(subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True), disk.path)


def test_every_library_that_writes_is_understood_at_a_limit_of_file_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)),
    )
    told(done, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same job where there is room."""
    outputs = tmp_path_factory.mktemp("finished")
    record = replace(run(outputs, *JOB), state=State.COMPLETE)
    write_record(record, outputs / "run")
    return outputs, record


def start(disk, folder):
    where = [f"outputs={disk.path}", f"hydra.run.dir={disk.path}/run"]
    return forked.run(command(*JOB, *where), folder, ENVIRONMENT, namespace_of=disk.holder.pid)


def take_over(outputs, disk, *stages):
    disk.empty()
    for stage in stages:
        shutil.copytree(outputs / "cache" / stage, disk.seen / "cache" / stage, dirs_exist_ok=True)


def test_a_job_that_fills_the_disk_says_so_keeps_what_is_finished_and_goes_on(tmp_path, finished):
    outputs, calm = finished
    with small_disk(tmp_path / "disk", kib=16 * KIB) as disk:
        disk.fill(leave=8 * KIB)
        done = start(disk, tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"outputs folder '{disk.path}' (No space left on device)" in done.stderr

        untuned = (
            f"evaluation/{calm.stages['evaluation of the untuned model'].key}"  # made before any training
        )
        for stages, room in (
            (("models", "warmup", untuned), 140 * KIB),
            (("gradients", "selection"), 200 * KIB),
        ):
            take_over(outputs, disk, *stages)
            before = snapshot(disk.seen)
            disk.fill(leave=room)
            done = start(disk, tmp_path)
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
            assert f"outputs folder '{disk.path}' (No space left on device); free space there" in done.stderr
            record = read_record(disk.seen / "run" / "results.json")
            assert record.state is State.FAILED and "free space" in str(record.error)
            assert snapshot(disk.seen) == before
            assert not list(disk.seen.glob("cache/*/*.part/**/*.part"))
            unfinished = "gradients" if "warmup" in stages else "finetune"
            assert unfinished in {path.parent.name for path in disk.seen.glob("cache/*/*.part")}

        disk.empty()
        done = start(disk, tmp_path)
        assert done.returncode == 0, done.stderr
        record = read_record(disk.seen / "run" / "results.json")
        assert {n for n, cost in record.stages.items() if not cost.cached} == {
            "finetune",
            "evaluation",
        }
        assert without_timings(record.to_json()["selection"]) == without_timings(calm.to_json()["selection"])
        metrics = dict(record.metrics["toy_sums"])
        assert metrics.pop("headline") == calm.metrics["toy_sums"]["headline"]
        for name, value in metrics.items():
            assert value == pytest.approx(calm.metrics["toy_sums"][name], rel=1e-5)


FULL_AT_THE_END = """
import os, shutil, sys
from dataclasses import replace
from pathlib import Path
from gtp_exp.cache import Cache
from gtp_exp.records.record import read_record, write_record
from gtp_exp.launch.faults import storage_fault
root = Path(sys.argv[1])

def fill():
    with (root / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(root).free)

def produce(directory):
    (directory / "value").write_text("42")
    fill()

def attempt(what):
    try:
        what()
        print("was written")
    except OSError as error:
        print(storage_fault(error, root))

attempt(lambda: Cache(root).stage("s", 1, {}, produce))
record = read_record(root / "results.json")
attempt(lambda: write_record(replace(record, group="x" * (1 << 16)), root))
"""


def test_a_manifest_or_a_record_that_no_longer_fits_leaves_the_old_state_whole(tmp_path, finished):
    outputs, calm = finished
    with small_disk(tmp_path / "disk", kib=512) as disk:
        shutil.copy(outputs / "run" / "results.json", disk.seen)
        line = disk.inside([sys.executable, "-c", FULL_AT_THE_END, str(disk.path)], tmp_path)
        done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.stdout.count(f"outputs folder '{disk.path}' (No space left on device)") == 2, done.stderr
        assert json.loads((disk.seen / "results.json").read_text())["group"] == calm.group
        assert not [p for p in (disk.seen / "s").iterdir() if p.suffix not in (".part", ".lock")]
        assert not list(disk.seen.rglob("*.part/*.part")) and not list(disk.seen.glob(".*.part"))


def test_a_read_only_outputs_folder_is_refused_in_one_line(tmp_path):
    with read_only(tmp_path / "disk") as disk:
        done = start(disk, tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"no access to {disk.path}" in done.stderr and "Read-only file system" in done.stderr
        assert "outputs=DIR" in done.stderr
