"""Runs until=validation stand in tables of their own, ranked by the loss on the rows held back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

from leaderboard_runs import record, save

from gtp_exp.leaderboard.command import main
from gtp_exp.records.record import StageCost, TokenLoss, ValidationSummary
from gtp_exp.stages.evaluation import UNTUNED_VALIDATION, VALIDATION


def validated(selector, seed, loss, share=0.5, **more):
    """A run that was measured on ten rows, before tuning at 9 nats."""
    config = {"until": "validation", "validation": {"share": share}}
    measured = ValidationSummary(10, TokenLoss(loss, 0.1), TokenLoss(9.0, 0.2))
    run = record(selector, seed, config=config, diagnostics={}, **more)
    return replace(run, metrics={}, untuned={}, validation=measured)


def tables(tmp_path, *options):
    out = tmp_path / "board"
    assert main([str(tmp_path / "runs"), "--out", str(out), *options]) == 0
    return json.loads((out / "leaderboard.json").read_text()), (out / "leaderboard.md").read_text()


def test_they_are_ranked_by_that_loss_with_intervals_over_seeds(tmp_path):
    for seed, loss in enumerate([1.0, 1.2, 1.1]):
        save(validated("gtp", seed, loss), tmp_path / "runs")
        save(validated("random", seed, loss + 2), tmp_path / "runs")
    document, text = tables(tmp_path)
    (table,) = document["tables"]
    assert table["benchmark"] == "skills_target, rows held back for validation"
    assert [(row["selector"], row["rank"]) for row in table["rows"]] == [("gtp", 1), ("random", 2)]
    assert document["incomplete"] == []
    assert "| 1 | gtp | 5pct | 3 | 1.100 [0.852, 1.348] | −2.000" in text
    assert "held back from the selector; no test row was read" in text
    assert "*untuned model* |  |  | 9.000" in text


def test_to_measure_the_rows_held_back_is_no_part_of_the_time_for_choosing(tmp_path):
    seconds = {"warmup": 20.0, "selection": 3.0, "finetune": 90.0, VALIDATION: 40.0, UNTUNED_VALIDATION: 50.0}
    stages = {stage: StageCost("key", cost, False) for stage, cost in seconds.items()}
    save(replace(validated("gtp", 0, 1.0), stages=stages), tmp_path / "runs")
    tables(tmp_path)
    (line,) = csv.DictReader((tmp_path / "board/leaderboard.csv").open())
    assert (line["choosing_seconds"], line["total_seconds"]) == ("23.0", "203.0")


def test_they_share_no_table_with_tested_runs_nor_with_other_rows_held_back(tmp_path):
    save(record("gtp", loss=2.0), tmp_path / "runs", "tested")
    save(validated("gtp", 0, 1.0), tmp_path / "runs", "half")
    save(validated("gtp", 0, 1.5, share=0.8), tmp_path / "runs", "more")
    document, _ = tables(tmp_path)
    assert len(document["tables"]) == 3 and all(len(table["rows"]) == 1 for table in document["tables"])


def test_where_choices_are_judged_they_are_left_out_by_name(tmp_path):
    """They aimed at fewer target rows than the others."""
    save(record("gtp", loss=2.0), tmp_path / "runs", "tested")
    save(validated("gtp", 0, 1.0), tmp_path / "runs", "tuned")
    document, text = tables(tmp_path, "--choices")
    assert len(document["tables"]) == 1
    (left,) = document["incomplete"]
    assert left["run"] == "runs/tuned" and "held back for validation, not tested" in left["error"]
    assert "1</b> not finished, not tested or unreadable" in (tmp_path / "board/index.html").read_text()
    assert "complete: measured on rows held back for validation" in text
