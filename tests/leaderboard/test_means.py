"""A benchmark of several tasks has one mean, over test rows or over tasks, the same everywhere and named."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from leaderboard_runs import record, save

from gtp_exp.data.benchmark import Mean
from gtp_exp.leaderboard import main
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.metrics import HEADLINE, headline_mean
from gtp_exp.leaderboard.records import load
from gtp_exp.leaderboard.scoring import score
from gtp_exp.records.record import RowCounts

ACCURACIES = {"anatomy": (0.0, 3), "virology": (0.25, 20), "law": (0.5, 77)}  # with the number of test rows
OVER_TASKS = 0.25
OVER_ROWS = (0.25 * 20 + 0.5 * 77) / 100


def suite(seed=0, selector="random", benchmark=None, **changes):
    """A run of three tasks of unequal size."""
    metrics = {
        task: {"acc": acc, "nats_per_token": 1 + acc, "headline": "acc", "rows_tested": float(n)}
        for task, (acc, n) in ACCURACIES.items()
    }
    run = record(selector, seed, config={"benchmark": benchmark or {}})
    return replace(run, **{"metrics": metrics, "untuned": metrics, "rows": {}, **changes})


def uncounted(*tasks):
    """The metrics of the suite, without the number of test rows of some tasks."""
    return {
        task: {k: v for k, v in values.items() if k != "rows_tested" or task not in tasks}
        for task, values in suite().metrics.items()
    }


def board(tmp_path, run, **options):
    save(run, tmp_path)
    (table,) = group(load([tmp_path]).complete, beside=()).tables
    return score(table, metric="acc", baseline="random", **options)


def test_the_mean_is_over_test_rows_as_lm_eval_aggregates_a_group(tmp_path):
    from lm_eval.api.metrics import aggregate_subtask_metrics

    values, sizes = zip(*ACCURACIES.values(), strict=True)
    of_group = aggregate_subtask_metrics(list(values), list(sizes), weight_by_size=True)
    found = board(tmp_path, suite())
    assert found.lines[0].summary["acc"].mean == pytest.approx(of_group) == pytest.approx(OVER_ROWS)
    assert found.untuned["acc"] == pytest.approx(OVER_ROWS)


@pytest.mark.parametrize(
    ("benchmark", "asked", "expected"),
    [
        ({}, None, Mean.ROWS),
        ({"mean": "rows"}, None, Mean.ROWS),
        ({"mean": "tasks"}, None, Mean.TASKS),
        ({"mean": "tasks"}, Mean.ROWS, Mean.ROWS),
        ({}, Mean.TASKS, Mean.TASKS),
    ],
)
def test_a_mean_over_tasks_can_be_asked_for_and_the_heading_names_the_mean(
    tmp_path, benchmark, asked, expected
):
    found = board(tmp_path, suite(benchmark=benchmark), mean=asked)
    value = {Mean.ROWS: OVER_ROWS, Mean.TASKS: OVER_TASKS}[expected]
    assert found.lines[0].summary["acc"].mean == pytest.approx(value)
    assert found.metrics[0].label == f"acc over {expected.value}"
    if asked is None:
        assert headline_mean(suite(benchmark=benchmark)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("arguments", "value", "over"), [([], OVER_ROWS, "rows"), (["--mean", "tasks"], OVER_TASKS, "tasks")]
)
def test_table_page_and_exports_show_the_same_mean(tmp_path, capsys, arguments, value, over):
    save(suite(), tmp_path / "runs")
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--metric", HEADLINE, "--out", str(out), *arguments]) == 0
    shown = f"{100 * value:.1f}%"
    for text in (
        capsys.readouterr().out,
        (out / "leaderboard.md").read_text(),
        (out / "index.html").read_text(),
    ):
        assert f"acc over {over}" in text and shown in text
    lines = list(csv.DictReader((out / "leaderboard.csv").open()))
    (line,) = [line for line in lines if line["metric"] == "acc"]
    assert float(line["mean"]) == pytest.approx(value) and line["mean_over"] == over
    (table,) = json.loads((out / "leaderboard.json").read_text())["tables"]
    assert table["rows"][0]["metrics"]["acc"]["mean"] == pytest.approx(value)
    assert table["metrics"][0]["over"] == over


def test_a_record_that_counted_rows_as_it_tokenised_them_has_the_same_mean(tmp_path):
    counted = {task: RowCounts(n - 1, {"too long": 1}, 0, "c") for task, (_, n) in ACCURACIES.items()}
    found = board(tmp_path, suite(metrics=uncounted(*ACCURACIES), rows=counted))
    assert found.lines[0].summary["acc"].mean == pytest.approx(OVER_ROWS)


def test_a_task_weighs_as_many_rows_as_any_run_was_tested_on(tmp_path):
    """So every seed's mean has the same weights, whatever did not fit one of the models."""
    fewer = {**suite().metrics, "law": {**suite().metrics["law"], "rows_tested": 7.0}}
    save(suite(), tmp_path / "all")
    found = board(tmp_path, suite(seed=1, metrics=fewer))
    assert found.lines[0].values["acc"] == pytest.approx({0: OVER_ROWS, 1: OVER_ROWS})


def test_without_the_number_of_rows_the_mean_is_over_tasks_and_says_so(tmp_path):
    found = board(tmp_path, suite(metrics=uncounted("law")))
    assert found.lines[0].summary["acc"].mean == pytest.approx(OVER_TASKS)
    assert found.metrics[0].label == "acc over tasks"
    assert any("no run tells the number of test rows of law" in note for note in found.notes)


def test_one_task_is_no_mean(tmp_path):
    one = {"anatomy": {"acc": 0.4, "nats_per_token": 1.0, "headline": "acc"}}
    found = board(tmp_path, suite(metrics=one, untuned={}))
    assert found.metrics[0].label == "acc" and found.lines[0].summary["acc"].mean == 0.4
    assert not any("number of test rows" in note for note in found.notes)


def spread_otherwise(selector: str, seed: int, right: tuple[int, int]):
    """A run of two tasks of unequal size, of which it has so many rows right."""
    tasks = {
        f"task {n}": {"acc": k / n, "headline": "acc", "rows_tested": float(n)}
        for k, n in zip(right, (49, 51), strict=True)
    }
    return suite(seed, selector, metrics=tasks, untuned={})


def test_as_many_right_answers_spread_otherwise_over_the_tasks_are_a_tie(tmp_path):
    for seed in range(3):
        for selector, right in (("full", (0, 1)), ("gtp", (1, 0)), ("random", (0, 1))):
            save(spread_otherwise(selector, seed, right), tmp_path / f"{selector}{seed}")
    (table,) = group(load([tmp_path]).complete, beside=()).tables
    (block,) = score(table, metric="acc", baseline="random").blocks
    means = {line.row.label: line.summary["acc"].mean for line in block.lines}
    assert means["gtp"] != means["random"]  # by rounding alone
    assert [(line.row.label, line.rank) for line in block.lines] == [("full", 1), ("gtp", 1), ("random", 1)]
    tests = [line.versus for line in block.lines if line.versus is not None]
    assert [(test.difference, test.win_rate, test.p) for test in tests] == [(0.0, 0.5, 1.0)] * 2
    assert block.ranks is not None and block.ranks.mean_ranks == (2.0, 2.0, 2.0)
