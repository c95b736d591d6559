"""Ids, names and options that would lead elsewhere as paths: carried unchanged, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_command_line import call
from test_experiment import run

from gtp_exp.records.record import read_selected

IDS = [
    "../../x",
    "a/b",
    "/tmp/absolute",
    "..",
    "two\nlines\tand a tab",
    "naïve — 日本語 🙂 \u202e",
    'quo"tes \\ and {{ braces }} ${oc.env:HOME}',
    "x" * 10_000,
    " ",
    "null\x00byte",
]


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_odd_ids_go_through_a_whole_run_unchanged_and_name_no_file(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    lines = [
        json.dumps({"id": name, "prompt": f"What is {i} plus 2?", "completion": f"{i + 2}"})
        for i, name in enumerate(IDS)
    ]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join(lines) + "\n", encoding="utf-8")
    outputs = tmp_path / "deep" / "outputs"
    job = ["dataset=jsonl", f"dataset.files=[{pool}]", "selector=gtp", "budget=100pct"]
    record = run(outputs, *job, directory=outputs / "run")
    assert sorted(record.selection.indices_ids) == sorted(IDS)
    assert sorted(row.id for row in read_selected(outputs / "run" / "selected.jsonl")) == sorted(IDS)
    assert all(outputs in path.parents for path in tree(tmp_path) - {pool})


def test_a_benchmark_named_like_a_path_writes_nothing_elsewhere(tmp_path):
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "One plus one?"}, {"role": "assistant", "content": "2"}]
    rows.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    test = tmp_path / "test.jsonl"
    question = {"id": "t", "query": "2 plus 2?", "choices": ["4", "5"], "gold": 0}
    test.write_text(json.dumps(question) + "\n")
    outputs = tmp_path / "deep" / "outputs"
    job = ["benchmark=jsonl_choice", f"benchmark.validation={rows}", f"benchmark.test={test}"]
    record = run(outputs, "selector=random", *job, "benchmark.name=../../x", directory=outputs / "run")
    assert set(record.metrics) == {"../../x"}
    assert all(outputs in path.parents for path in tree(tmp_path) - {rows, test})


@pytest.mark.parametrize("option", ["selector=../../conf/selector/random", "budget=5pct,../budget/5pct"])
def test_an_option_that_leads_out_of_its_group_is_refused(tmp_path, option):
    done = call(tmp_path, "-m", "selector=random", option)
    assert done.returncode == 2 and "without '..'" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
