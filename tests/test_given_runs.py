"""Whole jobs with a choice made elsewhere: what reaches which selector, what is found again, how it ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_command_line import command
from test_experiment import ROOT, computed, run

from gtp_exp.errors import UserError
from gtp_exp.estimate.jobs import compose_jobs
from gtp_exp.estimate.walk import plan
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.records import Run
from gtp_exp.stages import selection as stage

pytestmark = pytest.mark.slow

CHOICE = {"selection", "finetune", "evaluation"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pool of 20 rows with two columns of scores, and lists of three of them."""
    folder = tmp_path_factory.mktemp("given")
    rows = [
        {"id": f"r{i}", "prompt": f"What is {i} plus 2?", "completion": f"{i + 2}", "a": i, "b": -i}
        for i in range(20)
    ]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ids.txt").write_text("r7\nr3\nr9\n")
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def pool(folder, *names):
    return [
        "dataset=jsonl",
        f"dataset.files=[{folder / 'pool.jsonl'}]",
        f"dataset.scores=[{','.join(names)}]",
    ]


def by_list(folder, file="ids.txt", budget="all"):
    return ["selector=given", f"selector.file={folder / file}", f"budget={budget}"]


@pytest.fixture(scope="module")
def listed(folder, outputs):
    return run(outputs, *pool(folder), *by_list(folder))


def test_a_list_is_trained_and_tested_without_gradients_or_target(listed):
    assert listed.selection.indices_ids == ("r7", "r3", "r9")
    assert set(listed.selection.read_beside_rows) == {"list"}
    assert computed(listed) == CHOICE | {"evaluation of the untuned model"}
    assert listed.metrics["toy_sums"]["nats_per_token"] != listed.untuned["toy_sums"]["nats_per_token"]


def test_the_same_list_in_another_file_is_the_same_choice(listed, folder, outputs):
    (folder / "moved.csv").write_text("id\nr7\nr3\nr9\n")
    assert computed(run(outputs, *pool(folder), *by_list(folder, "moved.csv"))) == set()
    (folder / "moved.csv").write_text("id\nr7\nr9\nr3\n")
    assert computed(run(outputs, *pool(folder), *by_list(folder, "moved.csv"))) == CHOICE


def test_scores_reach_the_selector_that_names_them_and_no_other(listed, folder, outputs, monkeypatch):
    seen = []

    def looked_at(selector, problem, *quarantined):
        seen.append(problem)
        return choose(selector, problem, *quarantined)

    choose = stage.select_outside_quarantine
    monkeypatch.setattr(stage, "select_outside_quarantine", looked_at)
    scored = pool(folder, "a", "b")
    for selector in ("random", "top_k", "length", "gtp"):
        run(outputs, *scored, f"selector={selector}", "until=selection", "seed=3")
        assert seen[-1].scores == {}
    run(outputs, *scored, *by_list(folder), "until=selection", "seed=3")
    assert seen[-1].scores == {}
    best = run(outputs, *scored, "selector=given", "selector.score=b", "until=selection", "seed=3")
    assert {name: column.tolist() for name, column in seen[-1].scores.items()} == {
        "b": [-float(i) for i in range(20)]
    }
    assert best.selection.indices_ids == ("r0", "r1") and len(seen) == 6


def test_a_score_is_part_of_the_key_of_the_choice_that_reads_it_alone(listed, folder, outputs):
    asked = ["selector=given", "selector.score=a", "until=selection"]
    best = run(outputs, *pool(folder, "a"), *asked)
    assert best.selection.indices_ids == ("r19", "r18") and computed(best) == {"selection"}
    assert computed(run(outputs, *pool(folder, "a", "b"), *asked)) == set()
    text = (folder / "pool.jsonl").read_text()
    (folder / "pool.jsonl").write_text(text.replace('"a": 0', '"a": 50'))
    try:
        other = run(outputs, *pool(folder, "a"), *asked)
        assert other.selection.indices_ids == ("r0", "r19") and computed(other) == {"selection"}
        assert best.selection.read_beside_rows["scores"] != other.selection.read_beside_rows["scores"]
        assert computed(run(outputs, *pool(folder), *by_list(folder))) == set()
    finally:
        (folder / "pool.jsonl").write_text(text)


def test_scores_and_lists_that_do_not_fit_end_the_job_before_any_long_work(folder, tmp_path):
    with pytest.raises(UserError, match=r"selector.score=a is not among dataset.scores=\['b'\]"):
        run(tmp_path, *pool(folder, "b"), "selector=given", "selector.score=a")
    with pytest.raises(UserError, match="'row-0' has no number for the score 'worth'"):
        run(tmp_path, "selector=random", "+dataset.scores=[worth]")
    (folder / "odd.txt").write_text("r7\nx1\n")
    with pytest.raises(UserError, match=r"1 of the 2 ids .* first 'x1' \(.*odd.txt:2\)"):
        run(tmp_path, *pool(folder), *by_list(folder, "odd.txt"))
    with pytest.raises(UserError, match="lists 3 candidates, .* asks for 10 rows"):
        run(tmp_path, *pool(folder), *by_list(folder, budget="50pct"))
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"models"}


def test_rows_that_are_held_back_may_be_listed(folder, outputs):
    settings = ["until=validation", "benchmark.in_domain=true", "validation.share=0.5"]
    (folder / "all.txt").write_text("".join(f"r{i}\n" for i in range(20)))
    held = run(outputs, *pool(folder), *by_list(folder, "all.txt"), *settings)
    assert held.selection.diagnostics["listed_no_candidates"] == held.validation.rows == 10
    assert held.selection.n_selected == 10


def test_the_estimate_knows_the_keys_of_such_jobs(listed, folder, outputs):
    settings = [f"outputs={outputs}", *pool(folder), *by_list(folder)]
    jobs = compose_jobs([*command()[3:], *settings], str(ROOT / "conf"))
    works = plan([job["config"] for job in jobs]).works.values()
    assert all(work.cached for work in works)
    assert [work.rows for work in works if work.stage == "finetune"] == [3]
    jobs = compose_jobs(
        [*command()[3:], *settings, "selector.file=null", "selector.score=a"], str(ROOT / "conf")
    )
    with pytest.raises(UserError, match="selector.score=a is not among dataset.scores"):
        plan([job["config"] for job in jobs])


def test_it_stands_beside_other_selectors_on_one_leaderboard(listed, folder, outputs):
    best = ["selector=given", "selector.score=a", "budget=10pct"]
    others = [run(outputs, *pool(folder), "selector=random"), run(outputs, *pool(folder, "a", "b"), *best)]
    records = [
        replace(record, names=replace(record.names, selector=selector, budget="10pct"))
        for record, selector in zip([listed, *others], ["given", "random", "given"], strict=True)
    ]
    runs = [Run(f"sweep/{i}", Path(f"/nowhere/{i}"), record) for i, record in enumerate(records)]
    (table,) = group(runs, beside=()).tables
    assert sorted(row.selector for row in table.rows) == ["given", "given", "random"]
