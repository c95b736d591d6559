"""Runs on all rows with a training of their own stand beside the choices, with a value and without a rank."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from leaderboard_runs import record

from gtp_exp.leaderboard import exports
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.page import charts
from gtp_exp.leaderboard.records import Loaded, Run
from gtp_exp.leaderboard.scoring import score
from gtp_exp.records.record import PoolSummary, TrainingLength

SHORT = {"train": {"lr": 1e-4, "epochs": 1}}


def full(seed=0, steps: int | None = 750, **changes):
    run = record(
        "full",
        seed,
        diagnostics={"ignores_budget": True},
        **{"budget": "100pct", "loss": 1.0 + seed / 5, "config": SHORT, **changes},
    )
    return replace(run, training=steps and TrainingLength(epochs=1, steps=steps))


CHOICES = [
    record(selector, seed, budget=budget, loss=1.3 + seed / 10, chosen=chosen)
    for selector in ("gtp", "random")
    for budget, chosen in (("1pct", ["a"]), ("5pct", ["a", "b", "c", "d", "e"]))
    for seed in (0, 1)
]


def grouped(records, beside=()):
    runs = [Run(f"sweep/{i}", Path(f"/nowhere/{i}"), run) for i, run in enumerate(records)]
    return group(runs, beside=beside)


def tables(records, beside=()):
    return grouped(records, beside).tables


def board(records):
    (table,) = tables(records)
    return score(table, metric="nats_per_token", baseline="random")


def test_a_run_on_all_rows_with_another_training_joins_the_table_of_the_choices():
    """Its loss is the mean over the tasks, 1.0 and 1.2, and over the seeds, the second of them 0.2 more."""
    found = board([*CHOICES, full(0), full(1)])
    assert found.references == {
        "full, 750 steps": {"nats_per_token": pytest.approx(1.2), "acc": pytest.approx(0.3)}
    }
    assert found.table.differing == {}
    assert {line.row.selector for line in found.lines} == {"gtp", "random"}
    alone = board(CHOICES)
    assert [(li.row.label, li.rank, li.p_holm) for li in found.lines] == [
        (li.row.label, li.rank, li.p_holm) for li in alone.lines
    ]


def test_a_record_that_does_not_tell_the_steps_tells_the_epochs():
    assert list(board([*CHOICES, full(steps=None)]).references) == ["full, train.epochs=1"]


def test_two_trainings_on_all_rows_are_two_references():
    longer = full(steps=2250, config={"train": {"lr": 1e-4, "epochs": 2}}, loss=0.9)
    assert set(board([*CHOICES, full(), longer]).references) == {"full, 750 steps", "full, 2,250 steps"}


def test_of_two_trainings_of_one_length_neither_takes_the_place_of_the_other():
    faster = full(config={"train": {"lr": 2e-4, "epochs": 1}}, loss=0.8)
    assert {
        label: numbers["nats_per_token"]
        for label, numbers in board([*CHOICES, full(), full(budget="5pct"), faster]).references.items()
    } == {
        "full [lr=0.0001], 750 steps": pytest.approx(1.1),
        "full [lr=0.0002], 750 steps": pytest.approx(0.9),
    }


def test_its_seeds_count_together_under_whichever_budget_they_were_run():
    found = board([*CHOICES, full(0), full(1), full(2, budget="5pct", loss=1.6)])
    assert found.references["full, 750 steps"]["nats_per_token"] == pytest.approx((1.1 + 1.3 + 1.7) / 3)
    assert [[run.record.seed for run in row.runs] for row in found.table.references] == [[0, 1, 2]]


@pytest.mark.parametrize("budget", ["100pct", "5pct"])
def test_of_a_repeated_run_the_later_one_counts_and_the_other_is_told(budget):
    early, late = full(budget=budget), replace(full(loss=0.5), finished="2026-01-02T00:00:00+00:00")
    other = [replace(r, config={**r.config, "train": {"lr": 1e-3, "epochs": 3}}) for r in CHOICES]
    for records in ([late, early, *CHOICES, *other], [early, *CHOICES, *other, late]):
        found = grouped(records)
        beside = [[run.record for run in row.runs] for table in found.tables for row in table.references]
        assert beside == [[late], [late]]
        told = [(again.left_out.record, again.kept.record) for again in found.repeated]
        assert told == ([(early, late)] if budget == "100pct" else [])  # another budget is no repetition


def test_with_the_training_of_the_choices_it_is_a_row_as_any_other():
    found = board([*CHOICES, full(config={})])
    assert not found.references and "full" in {line.row.selector for line in found.lines}


@pytest.mark.parametrize(
    "other",
    [
        full(config={**SHORT, "model": {"hub_id": "large", "lora": {"r": 8}}}),
        replace(full(), pool=PoolSummary(rows=9, candidates=9, excluded={}, cut=0, content="other")),
        record("less", config=SHORT),
        replace(full(), metrics={}, untuned={}),
    ],
    ids=["another model", "another pool", "a choice", "not tested"],
)
def test_what_differs_otherwise_or_has_chosen_keeps_a_table_of_its_own(other):
    assert [len(table.references) for table in tables([*CHOICES, other])] == [0, 0]


def test_without_choices_it_has_a_table():
    (table,) = tables([full(0), full(1)])
    assert len(table.rows) == 1 and not table.references


def test_every_table_of_the_same_data_has_it():
    other = [replace(r, config={**r.config, "train": {"lr": 1e-3, "epochs": 3}}) for r in CHOICES]
    assert [len(table.references) for table in tables([*CHOICES, *other, full()])] == [1, 1]


def test_it_is_shown_under_its_label_in_every_form():
    found = board([*CHOICES, full(0), full(1)])
    loaded = Loaded(runs=(), unreadable=(), copies=0)
    assert "| *full, 750 steps* |" in exports.markdown([found], loaded, "random")
    (line,) = [t for t in exports.plain([found], loaded, "random").splitlines() if "full, 750 steps" in t]
    assert "1.200" in line
    (table,) = json.loads(exports.json_document([found], loaded, metric=None, baseline="random"))["tables"]
    assert table["references"]["full, 750 steps"]["nats_per_token"] == pytest.approx(1.2)


def test_the_curve_over_budgets_and_the_dots_have_a_line_at_its_value():
    found = board([*CHOICES, full(0), full(1)])
    style = charts.styles([found], "random")
    curve = charts.budget_plot(found, found.metrics[0], style)
    assert curve is not None
    (line,) = [r for r in curve.references if r.label == "full, 750 steps"]
    assert line.at == pytest.approx(100 - curve.y.at(1.2))
    dots = charts.dot_plot(found, found.blocks[0], found.metrics[0], style)
    assert dots is not None
    (line,) = [r for r in dots.references if r.label == "full, 750 steps"]
    assert line.at == dots.axis.at(1.2)


def notes_by_accuracy(choices, of_all):
    """Notes of a table of one selector; by budget and seed, and by seed, the accuracies on both tasks."""
    runs = [
        record("gtp", seed, budget=budget, chosen=["a"] * (1 if budget == "1pct" else 5), accuracy=accuracy)
        for budget, by_seed in choices.items()
        for seed, accuracy in enumerate(by_seed)
    ]
    (table,) = tables([*runs, *(full(seed, accuracy=accuracy) for seed, accuracy in enumerate(of_all))])
    return score(table, metric="acc", baseline="random").notes


def enough_notes(*values):
    return [note for note in notes_by_accuracy(*values) if "Enough rows" in note]


def test_the_smallest_budget_within_two_points_of_all_rows_is_told():
    """Student's interval of +1, 0 and +0.5 points: 0.5 -+ 4.303 * 0.5 / sqrt 3; -10, -11, -9 at 1pct."""
    of_all = [0.80, 0.82, 0.81]
    (note,) = enough_notes({"1pct": [0.70, 0.71, 0.72], "5pct": [0.81, 0.82, 0.815]}, of_all)
    assert note == (
        "Enough rows are those whose interval minus full, 750 steps lies above \u22122.0 pt: "
        "gtp at 5pct (+0.5 pt [\u22120.7 pt, +1.7 pt])."
    )
    (note,) = enough_notes({"1pct": [0.70, 0.71, 0.72], "5pct": [0.82, 0.80, 0.81]}, of_all)
    assert "no choice yet. Not shown for gtp at 5pct (0.0 pt [\u22125.0 pt, +5.0 pt])." in note
    (note,) = enough_notes({"1pct": [0.80, 0.825, 0.81], "5pct": [0.70, 0.71, 0.72]}, of_all)
    assert "gtp at 1pct (" in note and "5pct" not in note


def test_all_rows_trained_as_the_choices_are_a_measure_of_enough_too():
    runs = [
        record("gtp", seed, budget="5pct", accuracy=accuracy)
        for seed, accuracy in enumerate((0.81, 0.82, 0.815))
    ]
    runs += [full(seed, accuracy=accuracy, config={}) for seed, accuracy in enumerate((0.80, 0.82, 0.81))]
    (table,) = tables(runs)
    found = score(table, metric="acc", baseline="random")
    assert found.references == {} and {line.row.label for line in found.lines} == {"gtp", "full"}
    (note,) = [note for note in found.notes if "Enough rows" in note]
    assert "minus full lies above" in note and "gtp at 5pct (+0.5 pt [\u22120.7 pt, +1.7 pt])" in note
    assert note.count(" at ") == 1  # all rows are no choice


def test_one_seed_of_all_rows_shows_nothing_to_be_enough():
    assert not enough_notes({"5pct": [0.81, 0.82, 0.815]}, [0.80])
    losses = board([*CHOICES, full(0), full(1), full(2)])
    assert not [note for note in losses.notes if "Enough" in note]  # a loss has no margin
