"""Axes hold their values with readable ticks; overlap and mixes count what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_runs import record

from gtp_exp.leaderboard import diagnostics
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.metrics import metric_named
from gtp_exp.leaderboard.page import charts
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.scoring import score


def board(records):
    runs = [Run(f"sweep/{i}", Path(f"/nowhere/{i}"), record) for i, record in enumerate(records)]
    (table,) = group(runs, beside=()).tables
    return score(table, metric="nats_per_token", baseline="random")


sizes = st.floats(-1e4, 1e4).map(lambda v: round(v, 4))


@given(st.lists(sizes, min_size=1, max_size=6))
def test_an_axis_holds_its_values_and_a_few_ticks(values):
    axis = charts.linear_axis(values, metric_named("nats_per_token"))
    assert all(0 <= axis.at(value) <= 100 for value in values)
    assert 1 <= len(axis.ticks) <= 7
    assert all(-0.01 <= tick.at <= 100.01 for tick in axis.ticks)
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks)


def test_a_ticks_label_is_the_value_at_its_place():
    axis = charts.linear_axis([0.213, 0.387], metric_named("acc"))
    assert [tick.label for tick in axis.ticks] == ["25%", "30%", "35%"]
    assert [tick.at for tick in axis.ticks] == [axis.at(v) for v in (0.25, 0.3, 0.35)]


@given(st.lists(st.floats(0.002, 1e6), min_size=1, max_size=5))
def test_a_time_axis_holds_its_values_and_spaced_ticks(values):
    axis = charts.log_axis(values)
    assert all(0 <= axis.at(value) <= 100 for value in values)
    at = [tick.at for tick in axis.ticks]
    assert at and all(b - a >= 13.9 for a, b in zip(at, at[1:], strict=False))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (1, "1.0 s"),
        (9.96, "10 s"),
        (75, "75 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
    ],
)
def test_a_duration_is_written_for_people(seconds, text):
    assert charts.duration(seconds) == text


def test_two_wild_seeds_do_not_press_the_dots_together():
    """A t interval of two seeds is nine standard deviations wide to each side."""
    found = board(
        [record("gtp", s, loss=2 + s / 10) for s in (0, 1)] + [record("less", s, loss=2.5) for s in (0, 1)]
    )
    plot = charts.dot_plot(found, found.blocks[0], found.metrics[0], charts.styles([found], "random"))
    assert plot is not None
    at = [dot.x for line in plot.lines for dot in line.dots]
    assert max(at) - min(at) > 25
    wide = next(line for line in plot.lines if line.label == "gtp")
    assert wide.cut and wide.low is not None and wide.low >= 0


def test_an_untuned_model_far_off_is_named_but_not_drawn():
    found = board([record("gtp", s, loss=1 + s / 100) for s in (0, 1)])
    plot = charts.dot_plot(found, found.blocks[0], found.metrics[0], charts.styles([found], "random"))
    assert plot is not None and "untuned 3.500 is off the scale" in plot.subtitle
    assert [reference.label for reference in plot.references] == []


def test_a_budget_curve_needs_two_budgets():
    one = board([record(budget="1pct")])
    two = board([record(budget="1pct", chosen=["a"]), record(budget="5pct", chosen=["a", "b"], loss=1.0)])
    style = charts.styles([one, two], "random")
    assert charts.budget_plot(one, one.metrics[0], style) is None
    plot = charts.budget_plot(two, two.metrics[0], style)
    assert plot is not None
    (series,) = plot.series
    first, second = series.points
    assert first.x < second.x and first.y < second.y  # y counts from the top and the loss fell


def test_a_band_beyond_the_scale_is_told_from_one_inside():
    """Of two seeds it would fill the plot, and hide what it is about."""
    runs = [
        record(name, seed, budget=budget, chosen=[f"r{i}" for i in range(n)], loss=2 + change * seed / 10)
        for budget, n in (("1pct", 10), ("10pct", 100))
        for name, seeds, change in (("wide", 2, 1.0), ("narrow", 5, 0.3))
        for seed in range(seeds)
    ]
    found = board(runs)
    plot = charts.budget_plot(found, found.metrics[0], charts.styles([found], "random"))
    assert plot is not None
    assert {series.label: series.cut for series in plot.series} == {"wide": True, "narrow": False}
    for series in plot.series:
        corners = [float(y) for _, y in (pair.split(",") for pair in series.band.split())]
        assert len(corners) == 4 and min(corners) >= 0 and max(corners) <= 100


def with_full(budget: str, n: int, loss: float = 2.0):
    """gtp and random at n rows, and the whole pool of 1,000 beside them."""
    full = record("full", budget=budget, chosen=[f"r{i}" for i in range(1000)], loss=1.0)
    assert full.selection is not None
    marked = replace(full, selection=replace(full.selection, diagnostics={"ignores_budget": True}))
    chosen = [f"r{i}" for i in range(n)]
    return [marked] + [record(s, budget=budget, chosen=chosen, loss=loss) for s in ("gtp", "random")]


def test_a_budget_curve_stands_at_the_rows_that_its_own_selector_chose():
    found = board([*with_full("1pct", 10), *with_full("10pct", 100, 1.5)])
    plot = charts.budget_plot(found, found.metrics[0], charts.styles([found], "random"))
    assert plot is not None
    assert {series.label for series in plot.series} == {"gtp", "random"}  # `full` has one size, no curve
    for series in plot.series:
        assert [point.x for point in series.points] == [plot.x.at(10), plot.x.at(100)]
    assert [(tick.at, tick.label) for tick in plot.x.ticks] == [
        (plot.x.at(10), "1pct"),
        (plot.x.at(100), "10pct"),
    ]


def test_rows_of_one_budget_with_different_sizes_stand_at_their_own():
    runs = [
        record(s, budget=b, chosen=[f"r{i}" for i in range(n)])
        for s, b, n in (
            ("gtp", "1pct", 4),
            ("gtp", "10pct", 40),
            ("random", "1pct", 6),
            ("random", "10pct", 60),
        )
    ]
    found = board(runs)
    plot = charts.budget_plot(found, found.metrics[0], charts.styles([found], "random"))
    assert plot is not None
    at = {series.label: [point.x for point in series.points] for series in plot.series}
    assert at == {"gtp": [plot.x.at(4), plot.x.at(40)], "random": [plot.x.at(6), plot.x.at(60)]}
    assert all(0 <= x <= 100 for xs in at.values() for x in xs)


def test_chance_overlap_is_of_the_budget_not_of_the_whole_pool():
    found = board(with_full("1pct", 10))
    assert diagnostics.overlap(found.blocks[0]).chance == pytest.approx(10 / 1000)


def test_a_bar_is_as_long_as_its_share_of_the_longest():
    found = board([record("gtp"), record("random")])
    bars = charts.stage_bars(found.blocks[0])
    assert bars is not None
    total = {bar.label: sum(segment.width for segment in bar.segments) for bar in bars.bars}
    seconds = {line.row.label: line.total_seconds for line in found.lines}
    assert total["gtp"] == pytest.approx(100, abs=0.1)
    assert total["random"] == pytest.approx(100 * seconds["random"] / seconds["gtp"], abs=0.1)
    assert bars.stages == ("warmup", "gradients", "selection", "finetune", "evaluation")


def test_labels_beside_points_do_not_lie_on_each_other():
    moved = sorted(charts.spaced([10, 10.5, 50, 11, 90]))
    assert all(b - a >= 6.49 for a, b in zip(moved, moved[1:], strict=False))
    assert charts.spaced([10, 50, 90]) == [10, 50, 90]


def test_colours_tell_rows_apart_and_stay_the_same():
    found = board([record(f"s{i}") for i in range(16)] + [record("gtp"), record("random")])
    style = charts.styles([found], "random")
    assert len({(s.colour, s.dash) for s in style.values()}) == 18
    assert style["gtp"].colour == "k0" and style["random"].colour == "k8"


def test_overlap_is_over_equal_seeds_and_between_seeds_on_the_diagonal():
    found = board(
        [
            record("a", 0, loss=1, chosen=["1", "2", "3", "4"]),
            record("a", 1, loss=1, chosen=["1", "2", "9", "8"]),
            record("b", 0, loss=2, chosen=["1", "2", "3", "7"]),
            record("b", 2, loss=2, chosen=["5", "6", "7", "8"]),
            record("c", 5, loss=3, chosen=["1", "2"]),
        ]
    )
    overlap = diagnostics.overlap(found.blocks[0])
    assert [line.row.label for line in overlap.lines] == ["a", "b", "c"]
    assert overlap.shared == ((0.5, 0.75, None), (0.75, 0.25, None), (None, None, None))
    assert overlap.chance == pytest.approx((4 * 4 + 2) / 5 / 1000)


def test_shares_are_of_yes_and_no_labels_and_of_the_target():
    run = record(
        label_mix={"skill": {"sorting": 0.5, "roman": 0.25, "dates": 0.25}, "corrupted": {"False": 1.0}},
        pool_mix={"skill": {"dates": 1.0}, "corrupted": {"True": 0.1, "False": 0.9}},
    )
    found = board([run])
    assert diagnostics.facts(found.lines[0].row).shares == {"on target": 0.75, "corrupted": 0.0}
    assert diagnostics.pool_shares(found) == {"on target": 0.0, "corrupted": 0.1}


def test_a_label_that_knows_no_target_value_says_nothing_of_the_target():
    """A pool's own column `name` has nothing to do with the benchmark's name."""
    mix = {"name": {"flan": 0.5, "cot": 0.5}}
    run = record(label_mix=mix, pool_mix=mix, config={"benchmark": {"name": "creak"}})
    assert diagnostics.facts(board([run]).lines[0].row).shares == {}


def test_a_mix_folds_rare_values_and_still_sums_to_one():
    values = {f"v{i:02d}": 1 / 30 for i in range(30)}
    found = board([record(label_mix={"source": values}, pool_mix={"source": values})])
    (mix,) = diagnostics.mixes(found.blocks[0])
    assert len(mix.values) == diagnostics.MIX_VALUES + 1 and mix.values[-1] == "other"
    assert sum(mix.pool.values()) == pytest.approx(1) == sum(mix.rows[0][1].values())


@pytest.mark.parametrize(
    ("given_diagnostics", "curves"),
    [
        ({"residual": [1.0, 0.5]}, {"residual": (1.0, 0.5)}),
        ({"residuals": [[1.0, 0.5], [0.4, 0.3]]}, {"residuals 1": (1.0, 0.5), "residuals 2": (0.4, 0.3)}),
        ({"rounds": {"residual": [1, 2, 3]}}, {"rounds residual": (1.0, 2.0, 3.0)}),
        (
            {"rounds": [{"residual": 0.5, "curve": [0.9, 0.5]}, {"curve": [0.4, 0.3], "residual": 0.3}]},
            {"rounds 1 residual": (0.9, 0.5), "rounds 2 residual": (0.4, 0.3)},
        ),
        ({"rounds": [{"curve": [0.9, 0.5]}]}, {}),
        ({"residual": 0.4, "losses": [1.0, 2.0], "residual_names": ["a", "b"]}, {}),
    ],
)
def test_residual_curves_are_found_however_they_are_nested(given_diagnostics, curves):
    found = board([record(diagnostics=given_diagnostics)])
    assert {c.label: c.values for c in diagnostics.residual_curves(found.lines[0])} == curves


def test_what_a_selector_reports_is_averaged_or_shown_as_it_is():
    runs = [
        record(seed=0, diagnostics={"fill": "aligned", "rounds": 2, "rows_by_round": [3, 4], "rows": [{}]}),
        record(seed=1, diagnostics={"fill": "none", "rounds": 4, "rows_by_round": [9], "flag": True}),
    ]
    facts = diagnostics.facts(board(runs).lines[0].row)
    assert facts.numbers == {"rounds": 3.0}
    assert facts.texts == {"fill": "aligned", "rows_by_round": "3, 4"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.93e-05, "+0.000"),
        (-0.0004, "\u22120.000"),
        (0.001, "+0.001"),
        (-1.5, "\u22121.500"),
        (0.0, "0.000"),
    ],
)
def test_differences_of_a_loss_have_three_decimals(value, text):
    assert metric_named("nats_per_token").show_difference(value) == text
