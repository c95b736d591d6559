"""The stage cache: equal work once, never half a result, damage noticed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from gtp_exp import files as checksums
from gtp_exp.cache import Cache, stage_key
from gtp_exp.errors import UserError
from gtp_exp.launch.faults import storage_fault


def fill(directory):
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub" / "value.txt").write_text("42")


def refuse(directory):
    raise AssertionError("the stage ran again")


def test_the_same_reads_run_once_and_keep_their_cost(tmp_path):
    first = Cache(tmp_path).stage("s", 1, {"a": 1}, lambda d: (time.sleep(0.02), fill(d)))
    again = Cache(tmp_path).stage("s", 1, {"a": 1}, refuse)
    assert (first.cached, again.cached) == (False, True)
    assert again.seconds == first.seconds >= 0.02
    assert (again.directory / "sub" / "value.txt").read_text() == "42"


def test_other_reads_or_another_version_run_again(tmp_path):
    keys = {stage_key("s", v, r) for v, r in [(1, {"a": 1}), (1, {"a": 2}), (2, {"a": 1}), (1, {"b": 1})]}
    assert len(keys) == 4
    assert stage_key("s", 1, {"a": 1, "b": 2}) == stage_key("s", 1, {"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("reads", "told"),
    [
        ({"file": Path("a/b")}, r"PosixPath is not JSON serializable; more.file is PosixPath\('a/b'\)"),
        ({"rows": [1, np.int64(2)]}, r"int64 is not JSON serializable; more.rows.1 is .*2.*value.item"),
        ({"ids": {"a"}}, r"set is not JSON serializable; more.ids is {'a'}.*sorted\(a_set\)"),
        ({("a", 1): 1}, "keys must be str"),
    ],
)
def test_what_a_class_reads_and_json_cannot_hold_is_named(reads, told):
    with pytest.raises(UserError, match=f"the selection cannot be kept in the cache, .*{told}"):
        stage_key("selection", 1, {"seed": 1, "more": reads})


def test_a_failed_stage_leaves_no_entry_and_its_work_is_offered_again(tmp_path):
    def fail(directory):
        fill(directory)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Cache(tmp_path).stage("s", 1, {}, fail)
    seen = []
    result = Cache(tmp_path).stage("s", 1, {}, lambda d: seen.extend(p.name for p in d.rglob("*.txt")))
    assert seen == ["value.txt"] and not result.cached
    assert [p.name for p in (tmp_path / "s").glob("*.part")] == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_a_damaged_entry_is_made_again_with_a_warning(tmp_path, caplog, damage):
    entry = Cache(tmp_path).stage("s", 1, {}, fill).directory
    file = entry / ("manifest.json" if damage == "manifest" else "sub/value.txt")
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes({"flip": b"43", "truncate": b"4", "manifest": b"{"}[damage])
    again = Cache(tmp_path).stage("s", 1, {}, fill)
    assert not again.cached
    assert "damaged" in caplog.text and (damage == "manifest" or "value.txt" in caplog.text)
    assert (again.directory / "sub" / "value.txt").read_text() == "42"


def test_what_a_run_stopped_at_its_manifest_left_does_not_spoil_the_entry(tmp_path):
    key = stage_key("s", 1, {})
    part = tmp_path / "s" / f"{key}.part"
    part.mkdir(parents=True)
    for name in ("manifest.json", "manifest.json.part", "value.json.part"):
        (part / name).write_text("half")
    entry = Cache(tmp_path).stage("s", 1, {}, fill).directory
    assert sorted(p.name for p in entry.rglob("*")) == ["manifest.json", "sub", "value.txt"]
    assert Cache(tmp_path).stage("s", 1, {}, refuse).cached


def test_a_changed_number_in_a_manifest_is_damage(tmp_path, caplog):
    entry = Cache(tmp_path).stage("s", 1, {}, fill).directory
    text = (entry / "manifest.json").read_text()
    (entry / "manifest.json").write_text(text.replace('"version": 1', '"version": 2'))
    assert not Cache(tmp_path).stage("s", 1, {}, fill).cached and "manifest.json" in caplog.text


def _count(root, marks):
    def produce(directory):
        time.sleep(0.3)
        (marks / f"{multiprocessing.current_process().pid}").touch()
        fill(directory)

    Cache(root).stage("s", 1, {}, produce)


def test_two_processes_that_need_one_entry_compute_it_once(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path / "cache", marks)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(30)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(list(marks.iterdir())) == 1


def test_the_manifest_says_what_was_read(tmp_path):
    entry = Cache(tmp_path).stage("s", 3, {"a": [1, "ü"]}, fill).directory
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["reads"] == {"a": [1, "ü"]} and manifest["version"] == 3
    assert list(manifest["files"]) == ["sub/value.txt"]


def test_an_outputs_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="outputs"):
        Cache(tmp_path / "file").stage("s", 1, {}, fill)


@pytest.mark.parametrize("file", ["manifest.json", "value.txt"])
def test_an_entry_that_cannot_be_read_for_now_is_no_damage(tmp_path, monkeypatch, file):
    """A network folder that is away for a moment must not cost hours of finished work."""
    entry = Cache(tmp_path).stage("s", 1, {}, fill).directory
    opened = Path.open

    def failing(path, *args, **kwargs):
        if path.name == file:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return opened(path, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(OSError) as caught:
        patched.setattr(Path, "open", failing)
        Cache(tmp_path).stage("s", 1, {}, refuse)
    assert f"{file} fails (Stale file handle)" in storage_fault(caught.value, tmp_path)
    assert entry.is_dir() and Cache(tmp_path).stage("s", 1, {}, refuse).cached


def test_a_check_of_long_files_shows_signs_of_life(tmp_path, monkeypatch):
    (tmp_path / "long").write_bytes(bytes(3 << 20))
    beats = []
    monkeypatch.setattr(checksums, "beat", lambda: beats.append(1))
    checksums.sha256_file(tmp_path / "long")
    assert len(beats) == 3
