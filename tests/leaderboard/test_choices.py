"""Runs that only chose are ranked by hidden labels, with the same intervals and tests."""

from __future__ import annotations

import csv
from dataclasses import replace

from leaderboard_runs import record, save

from gtp_exp.leaderboard.choices import with_choice_judged
from gtp_exp.leaderboard.command import main
from gtp_exp.leaderboard.metrics import CHOICE, metric_named
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.statistics import summarise


def choice(selector, seed, on_target, corrupted=0.0, copies=0, tuned=False):
    """3 rows are chosen; the benchmark's skills are sorting and roman."""
    mix = {
        "skill": {"sorting": on_target / 2, "roman": on_target / 2, "clock": 1 - on_target},
        "corrupted": {"True": corrupted, "False": 1 - corrupted},
    }
    run = record(selector, seed, label_mix=mix, pool_mix=mix)
    run = replace(run, selection=replace(run.selection, exact_duplicates=copies))
    return run if tuned else replace(run, metrics={}, untuned={})


def test_a_choice_is_judged_by_its_labels(tmp_path):
    run = Run("a", tmp_path, choice("gtp", 0, 0.6, corrupted=0.25, copies=1))
    assert with_choice_judged(run).record.metrics[CHOICE] == {
        "headline": "on_target",
        "on_target": 0.6,
        "corrupted": 0.25,
        "exact_copies": 1 / 3,
        "near_copies": 1 / 3,
    }
    unlabelled = Run("a", tmp_path, record("gtp", 0))
    assert with_choice_judged(unlabelled).record.metrics[CHOICE]["headline"] == "exact_copies"
    without = Run("a", tmp_path, replace(record("gtp", 0), selection=None))
    assert with_choice_judged(without) is without


def board(folder, tmp_path, *options):
    assert main([str(folder), "--out", str(tmp_path / "out"), *options]) == 0
    with (tmp_path / "out" / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_runs_that_were_not_tuned_are_ranked_by_what_they_chose(tmp_path, capsys):
    for seed in range(5):
        save(choice("gtp", seed, 0.6 + 0.01 * seed), tmp_path / "runs")
        save(choice("random", seed, 0.1 + 0.015 * seed, corrupted=0.2), tmp_path / "runs")
    rows = {(row["selector"], row["metric"]): row for row in board(tmp_path / "runs", tmp_path)}
    assert rows["gtp", "on_target"]["rank"] == "1" and rows["random", "on_target"]["rank"] == "2"
    assert float(rows["gtp", "on_target"]["mean"]) == 0.62
    assert float(rows["gtp", "on_target"]["p_holm"]) < 0.001
    assert float(rows["random", "corrupted"]["mean"]) == 0.2
    assert rows["gtp", "corrupted"]["higher_is_better"] == "False"
    printed = capsys.readouterr().out
    assert "gtp has the highest mean on target" in printed and "No test of a model counts here" in printed
    assert "on target" in (tmp_path / "out" / "index.html").read_text()


def test_labels_do_not_say_how_many_rows_are_enough(tmp_path, capsys):
    """The pool itself has few rows on target: any choice would be worth as much as all rows."""
    for seed in range(3):
        save(choice("random", seed, 0.1 + 0.015 * seed), tmp_path / "runs")
        full = choice("full", seed, 0.1)
        full = replace(full, selection=replace(full.selection, diagnostics={"ignores_budget": True}))
        save(full, tmp_path / "runs")
    board(tmp_path / "runs", tmp_path)
    printed = capsys.readouterr().out
    assert "full" in printed and "Enough rows" not in printed


def test_choices_among_rows_without_labels_are_not_said_to_be_judged_by_labels(tmp_path, capsys):
    for seed in range(2):
        save(replace(record("gtp", seed), metrics={}, untuned={}), tmp_path / "runs")
    board(tmp_path / "runs", tmp_path)
    printed = capsys.readouterr().out
    assert "Ranked by copies among the chosen rows" in printed and "until=validation" in printed
    page = (tmp_path / "out" / "index.html").read_text()
    for text in (printed, page):
        assert "hidden labels say" not in text and "judged by labels" not in text


def test_tuned_runs_are_judged_by_labels_on_request_only(tmp_path, capsys):
    for seed in range(2):
        save(choice("gtp", seed, 0.6, tuned=True), tmp_path / "runs")
        save(choice("random", seed, 0.1, tuned=True), tmp_path / "runs")
    assert "on_target" not in {row["metric"] for row in board(tmp_path / "runs", tmp_path)}
    assert "on_target" in {row["metric"] for row in board(tmp_path / "runs", tmp_path, "--choices")}
    told = capsys.readouterr().out + (tmp_path / "out" / "index.html").read_text()
    assert "Ranked by what hidden labels say of the choice" in told
    assert "no model was tested" not in told.lower()


def test_shares_of_faults_are_better_low_and_stay_within_0_and_1():
    assert not metric_named("corrupted").higher_is_better and metric_named("on_target").higher_is_better
    found = summarise([0.0, 0.2], bounds=(0.0, 1.0))
    assert found.interval.low == 0.0 and found.interval.high <= 1.0
    assert summarise([0.0, 0.2]).interval.low < 0


def with_labels(run, chosen, wanted=14):
    return replace(run, selection=replace(run.selection, labels_chosen=chosen, target_labels=wanted))


def test_the_labels_that_a_choice_covers_stand_in_the_closing_table_and_on_the_page(tmp_path, capsys):
    for seed, covered in ((0, 12), (1, 13)):
        save(with_labels(choice("gtp", seed, 0.6, tuned=True), covered), tmp_path / "runs")
        save(with_labels(choice("random", seed, 0.1, tuned=True), 3), tmp_path / "runs")
    board(tmp_path / "runs", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    at = next(line for line in lines if line.startswith("#")).index("labels covered")
    told = {line.split()[1]: line[at:].split("  ")[0] for line in lines if line[:1] in ("1", "2")}
    assert told == {"gtp": "12.5 of 14", "random": "3 of 14"}
    (untuned,) = [line for line in lines if "untuned model" in line]
    assert len(untuned) <= at
    for file in ("leaderboard.md", "index.html", "leaderboard.json"):
        assert "12.5 of 14" in (tmp_path / "out" / file).read_text(), file


def test_how_evenly_labels_are_chosen_stands_beside_how_many(tmp_path):
    for seed, bits in ((0, 3.0), (1, 3.2)):
        run = with_labels(choice("gtp", seed, 0.6, tuned=True), 12, 16)
        save(replace(run, selection=replace(run.selection, labels_entropy=bits)), tmp_path / "runs")
    board(tmp_path / "runs", tmp_path)
    assert "12 of 16, entropy 3.1 of 4.0 bits" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_copies_by_hidden_labels_have_a_column_and_a_metric(tmp_path):
    for seed, repeats in ((0, 4), (1, 5)):
        run = choice("gtp", seed, 0.6, tuned=True)
        run = replace(run, selection=replace(run.selection, repeats=repeats))
        save(run, tmp_path / "runs")
        save(choice("random", seed, 0.1, tuned=True), tmp_path / "runs")  # of an earlier version
    board(tmp_path / "runs", tmp_path)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count(">Copies by label</th>") == 1 and "<td>4.5</td>" in page
    assert with_choice_judged(Run("a", tmp_path, run)).record.metrics[CHOICE]["repeats"] == 5 / 3
    assert metric_named("repeats").percent and not metric_named("repeats").higher_is_better


def test_without_labels_there_is_no_column_for_them(tmp_path, capsys):
    save(choice("gtp", 0, 0.6, tuned=True), tmp_path / "runs")
    board(tmp_path / "runs", tmp_path)
    assert "labels covered" not in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Labels covered" not in page and "Copies by label" not in page


def test_the_share_of_labels_judges_a_choice(tmp_path):
    run = Run("a", tmp_path, with_labels(choice("gtp", 0, 0.6), 7))
    assert with_choice_judged(run).record.metrics[CHOICE]["labels_covered"] == 0.5
    assert metric_named("labels_covered").higher_is_better and metric_named("labels_covered").percent
