"""Further tests of a run have tables of their own, and leave its table as it is."""

from __future__ import annotations

import json
from dataclasses import replace

from leaderboard_runs import record, save

from gtp_exp.api.table import results
from gtp_exp.data.benchmark import Answers
from gtp_exp.leaderboard.command import main
from gtp_exp.records.record import FurtherTest, RowCounts, RunRecord
from gtp_exp.records.row_results import write_row_results


def with_test(run, accuracy, *, shots=5, content="c9"):
    values = {"exact_match": accuracy, "nats_per_token": 1 - accuracy, "headline": "exact_match"}
    test = FurtherTest(
        answers=Answers.REASONING,
        rows={"gsm8k": RowCounts(4, {}, 0, content)},
        metrics={"gsm8k": {**values, "rows_tested": 4.0}},
        untuned={"gsm8k": {**values, "exact_match": 0.125}},
    )
    config = {**run.config, "tests": {"gsm8k": {"_target_": "Suite", "num_fewshot": shots}}}
    return replace(run, config=config, tests={"gsm8k": test})


def tables(tmp_path):
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["tables"]
    return {table["benchmark"]: table for table in found}


def test_a_further_test_is_a_table_of_its_own(tmp_path):
    for selector, shift in (("gtp", 0.25), ("random", 0.0)):
        for seed in range(2):
            run = with_test(record(selector, seed, loss=1 + shift), 0.5 + shift)
            folder = save(run, tmp_path / "runs")
            rows = [1.0, 1.0, 0.0, 1.0 if shift else 0.0]
            write_row_results({"gsm8k": {"gsm8k": {"exact_match": rows}}}, folder)
    found = tables(tmp_path)
    assert list(found) == ["skills_target", "skills_target, tested on gsm8k"]
    main_table, further = found.values()
    assert [row["selector"] for row in main_table["rows"]] == ["random", "gtp"]  # by its own loss
    assert [row["selector"] for row in further["rows"]] == ["gtp", "random"]
    assert further["metrics"][0]["name"] == "exact_match" and "reasoning" in further["ranked_by"]
    assert further["untuned"]["exact_match"] == 0.125
    assert further["rows"][0]["metrics"]["exact_match"]["mean"] == 0.75
    page = (tmp_path / "out" / "index.html").read_text()
    assert "skills_target, tested on gsm8k" in page
    assert page.count("<h4>What was chosen</h4>") == 1


def test_runs_with_and_without_a_further_test_share_the_table_of_the_benchmark(tmp_path):
    save(with_test(record("gtp"), 0.5), tmp_path / "runs")
    save(record("random"), tmp_path / "runs")
    found = tables(tmp_path)
    assert [row["selector"] for row in found["skills_target"]["rows"]] == ["gtp", "random"]
    assert [row["selector"] for row in found["skills_target, tested on gsm8k"]["rows"]] == ["gtp"]


def test_further_tests_that_asked_otherwise_are_not_compared(tmp_path):
    save(with_test(record("gtp"), 0.5), tmp_path / "runs")
    save(with_test(record("random"), 0.5, shots=0, content="c8"), tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["tables"]
    assert [(t["benchmark"], len(t["rows"])) for t in found] == [
        ("skills_target", 2),
        ("skills_target, tested on gsm8k", 1),
        ("skills_target, tested on gsm8k", 1),
    ]
    assert found[1]["differing_settings"]["tested_on.num_fewshot"] == "5"


def test_the_record_and_the_table_of_runs_hold_it_under_its_name(tmp_path):
    run = with_test(record("gtp"), 0.5)
    assert RunRecord.from_json(json.loads(json.dumps(run.to_json()))) == run
    save(run, tmp_path)
    (row,) = results(tmp_path)
    assert row["gsm8k/gsm8k/exact_match"] == 0.5 and row["gsm8k/gsm8k/nats_per_token"] == 0.5
