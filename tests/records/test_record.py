"""A run record comes back as it was written, and a damaged or foreign one is refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
from leaderboard_runs import record, selected

from gtp_exp.errors import UserError
from gtp_exp.records.record import RunRecord, State, read_record, read_selected, write_record, write_selected


def test_a_record_is_read_as_it_was_written(tmp_path):
    run = record(diagnostics={"residual": [1.0, 0.5], "solver": "cosamp"}, label_mix={"skill": {"a": 1.0}})
    assert read_record(write_record(run, tmp_path)) == run


def test_a_record_of_a_run_that_just_began_is_read_as_it_was_written(tmp_path):
    full = record()
    begun = RunRecord(
        state=State.RUNNING,
        names=full.names,
        seed=0,
        group="",
        config={},
        command=(),
        git_sha=None,
        packages={},
        started="2026-01-01T00:00:00Z",
    )
    assert read_record(write_record(begun, tmp_path)) == begun


def test_the_file_has_the_documented_keys(tmp_path):
    written = json.loads(write_record(record(), tmp_path).read_text())
    assert written["version"] == 3 and written["state"] == "complete"
    assert set(written["names"]) == {
        *("selector", "budget", "benchmark", "dataset", "model", "gradients", "train")
    }
    assert set(written["stages"]["warmup"]) == {"key", "seconds", "cached", "spent"}
    assert written["metrics"]["sorting"]["headline"] == "acc"
    assert written["selection"]["indices_ids"] == ["row-1", "row-2", "row-3"]


def test_writing_replaces_the_old_record_and_leaves_nothing_else(tmp_path):
    write_record(replace(record(), state=State.RUNNING), tmp_path)
    write_record(record(), tmp_path)
    assert os.listdir(tmp_path) == ["results.json"]
    assert read_record(tmp_path / "results.json").state is State.COMPLETE


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_record(record(), tmp_path)
    with pytest.raises(ValueError):  # JSON has no NaN
        write_record(record(diagnostics={"residual": [float("nan")]}), tmp_path)
    assert os.listdir(tmp_path) == ["results.json"]
    assert read_record(tmp_path / "results.json") == record()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("state",), "done", "state should be one of"),
        (("seed",), "0", "seed should be int"),
        (("seed",), True, "seed should be int"),
        (("names", "selector"), None, "names.selector should be str"),
        (("stages", "warmup", "seconds"), "12", "stages.warmup.seconds should be a number"),
        (("stages", "warmup", "cached"), 1, "stages.warmup.cached should be bool"),
        (("selection", "weights"), [1.0], "selection.weights"),
        (("selection", "n_selected"), 2.5, "selection.n_selected should be int"),
        (("metrics", "sorting", "headline"), "f1", "metrics.sorting.headline='f1'"),
        (("metrics", "sorting", "acc"), "high", "metrics.sorting.acc='high'"),
        (("started",), "yesterday", "started='yesterday'"),
        (("version",), 99, "version=99"),
        (("metrics",), [], "metrics should be an object"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, path, value, message):
    file = write_record(record(), tmp_path)
    data = json.loads(file.read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(UserError) as caught:
        read_record(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("key", ["names", "seed", "stages", "untuned"])
def test_a_missing_key_is_named(tmp_path, key):
    file = write_record(record(), tmp_path)
    data = json.loads(file.read_text())
    del data[key]
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"{key} is missing"):
        read_record(file)


def test_an_unknown_key_is_named(tmp_path):
    file = write_record(record(), tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"score": 1}))
    with pytest.raises(UserError, match="score is unknown"):
        read_record(file)


@pytest.mark.parametrize(
    "content", [b"", b'{"version": 1, "sta', b"[]", b"null", b'{"results": {}}', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_record_is_refused(tmp_path, content):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match="results.json"):
        read_record(file)


def test_not_a_number_is_refused_in_a_record(tmp_path):
    file = write_record(record(loss=2.25), tmp_path)
    file.write_text(file.read_text().replace("2.25", "NaN"))
    with pytest.raises(UserError, match="NaN"):
        read_record(file)


def test_selected_rows_are_read_as_they_were_written(tmp_path):
    rows = [
        selected(1, "a", text="líne\nbreak \u2028 \x07"),
        selected(2, "b", skill="sorting", corrupted=True),
    ]
    assert list(read_selected(write_selected(rows, tmp_path))) == rows


def test_a_damaged_selected_row_is_named_by_its_line(tmp_path):
    path = write_selected([selected(1, "a"), selected(2, "b")], tmp_path)
    path.write_text(path.read_text().replace('"rank": 2', '"rank": "second"'))
    with pytest.raises(UserError, match=r"selected.jsonl, line 2: rank should be int"):
        list(read_selected(path))


def test_a_record_names_no_class_to_import(tmp_path):
    """Records come from other people, too."""
    file = write_record(record(), tmp_path)
    data = json.loads(file.read_text())
    data["pool"] = {"_target_": "antigravity.X"}
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match="pool._target_ is unknown"):
        read_record(file)
