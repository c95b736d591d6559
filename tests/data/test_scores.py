"""Columns of numbers stay beside the rows, by file, line and id where one is missing."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from forms import write_lines
from pyarrow import parquet

from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.errors import UserError


def row(i: int, **more):
    return {"id": f"r{i}", "prompt": f"{i}?", "completion": "So.", **more}


def load(*files, names=("quality",)):
    return Jsonl([str(file) for file in files], scores=list(names)).load()


def test_numbers_and_texts_that_hold_numbers_are_scores(tmp_path):
    lines = write_lines(tmp_path / "a.jsonl", row(1, quality=3, skill="x"), row(2, quality=-0.5))
    (tmp_path / "b.csv").write_text("id,prompt,completion,quality\nr3,3?,So.,1e-3\n")
    hidden = load(lines, tmp_path / "b.csv").hidden
    assert {id: facts["quality"] for id, facts in hidden.items()} == {"r1": 3.0, "r2": -0.5, "r3": 1e-3}
    assert all(type(facts["quality"]) is float for facts in hidden.values()) and hidden["r1"]["skill"] == "x"
    assert load(tmp_path / "b.csv", names=()).hidden == {"r3": {"quality": "1e-3"}}


@pytest.mark.parametrize("bad", [None, "high", "nan", "inf", "", True, [1]])
def test_a_score_that_is_no_finite_number_is_named_by_file_line_and_id(tmp_path, bad):
    file = write_lines(tmp_path / "pool.jsonl", row(1, quality=1), row(2, quality=bad), row(3, quality=2))
    with pytest.raises(UserError, match=r"pool.jsonl:2: the row 'r2' has .* for the score 'quality'"):
        load(file)


def test_a_score_that_overflows_or_is_missing_is_named(tmp_path):
    big = json.dumps(row(1, quality=0)).replace('"quality": 0', '"quality": 1e999')
    for line in (big, row(1)):
        with pytest.raises(UserError, match="pool.jsonl:1: the row 'r1' has no number"):
            load(write_lines(tmp_path / "pool.jsonl", line))
    table = pa.table({"id": ["r1"], "prompt": ["p"], "completion": ["c"], "quality": [float("nan")]})
    parquet.write_table(table, tmp_path / "pool.parquet")
    with pytest.raises(UserError, match="pool.parquet row 1: the row 'r1' has no number"):
        load(tmp_path / "pool.parquet")


def test_a_row_that_is_left_out_needs_no_score(tmp_path):
    file = write_lines(tmp_path / "pool.jsonl", row(1, quality=1), {**row(2), "completion": ""})
    assert load(file).skipped == {"empty completion": 1}


def test_the_first_look_at_the_files_sees_a_missing_score(tmp_path):
    file = write_lines(tmp_path / "pool.jsonl", row(1, quality=1), row(2))
    with pytest.raises(UserError, match="pool.jsonl:2"):
        Jsonl([file], scores=["quality"]).check_files()
