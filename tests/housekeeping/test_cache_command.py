"""gtp-exp-cache: tells what is there and who uses it, and removes nothing that a run or a job needs."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace

import pytest
from filelock import FileLock
from test_experiment import computed, run

from gtp_exp.cache import Cache
from gtp_exp.housekeeping.command import main
from gtp_exp.housekeeping.entries import STAGES, Entry, Form, list_entries
from gtp_exp.housekeeping.prune import remove
from gtp_exp.housekeeping.uses import find_uses
from gtp_exp.leaderboard.records import load
from gtp_exp.records.record import State, read_record, write_record
from gtp_exp.stages.runner import VERSIONS

ALL = {"models", "warmup", "gradients", "selection", "finetune", "evaluation"}


def finished(outputs, name, *overrides, state=State.COMPLETE):
    directory = outputs / "runs" / name
    record = run(outputs, *overrides, directory=directory)
    write_record(replace(record, state=state), directory)
    return record


def make_old(outputs, seconds=3600):
    """As if nothing had been used for a while."""
    past = time.time() - seconds
    for path in (outputs / "cache").rglob("*"):
        os.utime(path, (past, past))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The cache of two runs, of which one is gone."""
    folder = tmp_path_factory.mktemp("made")
    finished(folder, "kept", "selector=less")
    finished(folder, "gone", "selector=less", "seed=1")
    shutil.rmtree(folder / "runs" / "gone")
    return folder


@pytest.fixture
def outputs(made, tmp_path):
    """A copy of it, as if nothing had been used for an hour."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    make_old(tmp_path)
    return tmp_path


def call(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def stages(outputs):
    return sorted(entry.stage for entry in list_entries(outputs / "cache"))


def test_every_stage_of_the_pipeline_is_known():
    assert set(STAGES) == {"models", "objectives", *VERSIONS}


def test_what_the_validity_benchmark_has_computed_is_listed_and_belongs_to_no_run(outputs, capsys):
    made = Cache(outputs / "cache").stage(
        "objectives", 1, {"subsets": [[0, 1]]}, lambda folder: (folder / "objectives.json").write_text("[]")
    )
    make_old(outputs)
    told = call(capsys, "list", "--outputs", outputs)[1]
    (line,) = [line for line in told.splitlines() if line.startswith("objectives")]
    assert line.split()[1] == made.key[:12] and line.endswith("  no run")
    assert "would remove 1 entry," in call(capsys, "prune", "--outputs", outputs, "--stage", "objectives")[1]


def test_the_list_tells_size_age_and_the_runs(outputs, capsys):
    status, told, _ = call(capsys, "list", "--outputs", outputs)
    lines = told.splitlines()
    assert status == 0 and {line.split()[0] for line in lines[1:-1]} == ALL
    assert lines[0].split() == ["stage", "key", "size", "age", "used", "by"]
    (warmup,) = [line for line in lines if line.startswith("warmup")]
    size = sum(p.stat().st_size for p in (outputs / "cache" / "warmup").rglob("*") if p.is_file())
    assert warmup.endswith(f"{size / 1000:.1f} kB   60 m  kept")
    assert sorted(line.split()[0] for line in lines if line.endswith("  no run")) == [
        "evaluation",
        "finetune",
        "selection",
    ]
    assert "1 run. No run uses 3 of them" in lines[-1]
    only = call(capsys, "list", "--outputs", outputs, "--stage", "selection")[1].splitlines()
    assert [line.split()[0] for line in only[1:-1]] == ["selection", "selection"]


def test_what_no_run_uses_goes_and_the_other_run_finds_all_of_its_own(outputs, capsys):
    before = stages(outputs)
    status, told, _ = call(capsys, "prune", "--outputs", outputs)
    assert status == 0 and "would remove 3 entries" in told and "nothing is removed without --yes" in told
    assert stages(outputs) == before
    on_disk = sum(p.stat().st_size for p in (outputs / "cache").rglob("*") if p.is_file())
    status, told, _ = call(capsys, "prune", "--outputs", outputs, "--yes")
    freed = on_disk - sum(p.stat().st_size for p in (outputs / "cache").rglob("*") if p.is_file())
    assert status == 0 and told == f"removed 3 entries, {freed / 1000:.1f} kB; kept {len(before) - 3}\n"
    assert not list((outputs / "cache").rglob("*.pruned"))
    again = run(outputs, "selector=less", directory=outputs / "runs" / "kept")
    assert computed(again) == set()
    other = run(outputs, "selector=less", "seed=1", directory=outputs / "runs" / "gone")
    assert computed(other) == {"selection", "finetune", "evaluation"}


def test_stage_and_age_narrow_what_goes(outputs, capsys):
    prune = ["prune", "--outputs", outputs]
    assert "would remove 0 entries" in call(capsys, *prune, "--older-than", "2h")[1]
    assert "would remove 3 entries" in call(capsys, *prune, "--older-than", "30m")[1]
    assert "would remove 1 entry," in call(capsys, *prune, "--stage", "finetune")[1]
    call(capsys, *prune, "--stage", "finetune", "--yes")
    assert stages(outputs).count("finetune") == 1 and stages(outputs).count("selection") == 2


def unused_finetune(outputs):
    kept = json.loads((outputs / "runs" / "kept" / "results.json").read_text())["stages"]["finetune"]["key"]
    (entry,) = [e for e in list_entries(outputs / "cache") if e.stage == "finetune" and e.key != kept]
    return entry


def test_what_a_job_holds_or_has_just_used_stays(outputs, capsys):
    entry = unused_finetune(outputs)
    with FileLock(str(entry.lock)):
        told = call(capsys, "prune", "--outputs", outputs, "--stage", "finetune", "--yes")[1]
    assert told.startswith("removed 0 entries, 0 B; kept ") and "1 of them because a job holds them" in told
    os.utime(entry.path)
    assert (
        "removed 0 entries" in call(capsys, "prune", "--outputs", outputs, "--stage", "finetune", "--yes")[1]
    )
    assert entry.path.is_dir()


def test_a_hit_counts_as_use(outputs):
    run(outputs, "selector=less", "seed=1", directory=outputs / "elsewhere")
    assert time.time() - unused_finetune(outputs).last_used < 60


@pytest.mark.parametrize("state", [State.RUNNING, State.INTERRUPTED, State.FAILED])
def test_a_job_that_has_not_come_to_its_end_keeps_what_it_has_come_to(outputs, capsys, state):
    unfinished = outputs / "runs" / "gone"
    record = finished(outputs, "gone", "selector=less", "seed=1")
    write_record(replace(record, state=state, stages={}), unfinished)  # as the worker writes them
    make_old(outputs)
    assert "would remove 0 entries" in call(capsys, "prune", "--outputs", outputs)[1]
    with (unfinished / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "stage", "key": "cut sho')
    assert "would remove 0 entries" in call(capsys, "prune", "--outputs", outputs)[1]
    (unfinished / "metrics.jsonl").unlink()
    assert "would remove 3 entries" in call(capsys, "prune", "--outputs", outputs)[1]


def test_unfinished_work_stays_unless_it_is_asked_for(outputs, capsys):
    part = outputs / "cache" / "finetune" / "abc.part"
    part.mkdir()
    (part / "file").write_text("1234")
    make_old(outputs)
    assert "unfinished" in call(capsys, "list", "--outputs", outputs)[1]
    call(capsys, "prune", "--outputs", outputs, "--yes")
    assert part.is_dir()
    with FileLock(str(part.with_name("abc.lock"))):
        call(capsys, "prune", "--outputs", outputs, "--unfinished", "--yes")
    assert part.is_dir()
    call(capsys, "prune", "--outputs", outputs, "--unfinished", "--yes")
    assert not part.exists()


def test_unfinished_work_of_a_finished_run_goes_too(outputs, capsys):
    """As a killed remake of a damaged entry leaves it."""
    entry = next(e for e in list_entries(outputs / "cache") if e.stage == "finetune")
    entry.path.rename(entry.path.with_name(entry.key + ".part"))
    make_old(outputs)
    call(capsys, "prune", "--outputs", outputs, "--unfinished", "--yes")
    assert not list((outputs / "cache").rglob("*.part"))


def test_a_run_behind_a_link_uses_what_it_has_computed(outputs, capsys):
    before = call(capsys, "prune", "--outputs", outputs)[1]
    (outputs / "runs" / "kept").rename(outputs / "disk")
    (outputs / "runs" / "linked").symlink_to(outputs / "disk")
    (outputs / "disk" / "again").symlink_to(outputs / "runs")  # a circle
    assert call(capsys, "prune", "--outputs", outputs)[1] == before
    assert len(load([outputs / "runs"]).runs) == 1


def test_what_an_interrupted_removal_has_left_goes_with_the_next(outputs, capsys):
    entry = unused_finetune(outputs)
    entry.path.rename(entry.path.with_name(entry.key + ".pruned"))
    (left,) = [e for e in list_entries(outputs / "cache") if e.form is Form.HALF_REMOVED]
    assert (left.key, left.stage) == (entry.key, "finetune")
    call(capsys, "prune", "--outputs", outputs, "--yes")
    assert not list((outputs / "cache").rglob("*.pruned"))


def test_a_pass_is_used_by_the_runs_that_its_model_has_chosen_for(tmp_path, capsys):
    finished(tmp_path, "a", "selector=perplexity_top", "until=selection")
    finished(tmp_path, "b", "selector=random", "until=selection", "model.max_length=200")
    make_old(tmp_path)
    assert "would remove 0 entries" in call(capsys, "prune", "--outputs", tmp_path)[1]
    shutil.rmtree(tmp_path / "runs" / "a")
    told = call(capsys, "prune", "--outputs", tmp_path)[1]
    assert "pass/" in told and "selection/" in told and "would remove 2 entries" in told


def test_every_manifest_is_read_once_whatever_the_number_of_passes(tmp_path, capsys, monkeypatch):
    finished(tmp_path, "a", "selector=perplexity_top", "until=selection")
    (made,) = [entry.path for entry in list_entries(tmp_path / "cache") if entry.stage == "pass"]
    for i in range(5):
        shutil.copytree(made, made.with_name(f"copy{i}"))
    read, reads = [], Entry.reads
    monkeypatch.setattr(Entry, "reads", lambda entry: read.append(entry.path) or reads(entry))
    told = call(capsys, "list", "--outputs", tmp_path)[1].splitlines()
    assert [line.split()[-1] for line in told if line.startswith("pass")] == ["a"] * 6
    assert sorted(read) == sorted(set(read)) and len(read) == 7  # of six passes and one selection


def test_weights_that_a_run_links_are_not_counted_as_freed(tmp_path, capsys):
    finished(tmp_path, "a", "selector=random", "model.lora=null")
    finished(tmp_path, "b", "selector=random", "until=selection")
    shutil.move(tmp_path / "runs" / "a" / "model", tmp_path / "mine")
    shutil.rmtree(tmp_path / "runs" / "a")
    make_old(tmp_path)
    told = call(capsys, "prune", "--outputs", tmp_path, "--stage", "finetune", "--yes")[1]
    weights = (tmp_path / "mine" / "model.safetensors").stat().st_size
    assert told.startswith("removed 1 entry,") and weights > 300_000
    assert float(told.split()[3]) < 50 and told.split()[4] == "kB;"


def test_runs_elsewhere_are_told_of_by_their_folder(outputs, capsys):
    (outputs / "runs").rename(outputs / "elsewhere")
    status, _, error = call(capsys, "prune", "--outputs", outputs)
    assert status == 2 and "no run was found, so all of the cache would go" in error
    told = call(capsys, "prune", "--outputs", outputs, "--runs", outputs / "elsewhere")[1]
    assert "would remove 3 entries" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--outputs", "{folder}/no"], "--outputs {folder}/no has no cache"),
        (
            ["list", "--outputs", "{folder}", "--stage", "train"],
            "--stage train is unknown; give one of models",
        ),
        (["list", "--outputs", "{folder}", "--runs", "{folder}/no"], "--runs {folder}/no is no folder"),
        (["prune", "--outputs", "{folder}", "--older-than", "3"], "--older-than 3 is no age; give a number"),
        (["prune", "--outputs", "{folder}"], "what a run uses cannot be told: {folder}/runs/a/results.json"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, capsys, arguments, told):
    (tmp_path / "cache").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "results.json").write_text("{")
    status, _, error = call(capsys, *(argument.format(folder=tmp_path) for argument in arguments))
    (line,) = error.splitlines()
    assert status == 2 and line.startswith("gtp-exp-cache: ") and told.format(folder=tmp_path) in line


def test_what_a_job_has_found_while_others_were_removed_stays(outputs):
    entry = unused_finetune(outputs)
    then = entry.last_used + 600  # long ago by the clock, but after the uses were looked up
    os.utime(entry.path, (then, then))
    done = remove([entry])
    assert done.held == [entry] and entry.path.is_dir()


def test_an_entry_that_is_gone_is_passed_over(outputs):
    entry = unused_finetune(outputs)
    shutil.rmtree(entry.path)
    assert remove([entry]).removed == []


def test_a_store_that_a_run_was_given_from_the_cache_is_used_by_it(outputs):
    entry = next(e for e in list_entries(outputs / "cache") if e.stage == "gradients")
    record = read_record(outputs / "runs" / "kept" / "results.json")
    given = {**record.config, "gradients": {"pool": str(entry.path / "store"), "target": None}}
    write_record(replace(record, config=given, stages={}), outputs / "runs" / "kept")
    assert find_uses([outputs / "runs"], [entry]).of(entry) == ("kept",)
