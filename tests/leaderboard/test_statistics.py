"""Intervals cover what they claim, tests equal scipy's, corrections equal the textbook's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gtp_exp.leaderboard.statistics import (
    compare_ranks,
    holm,
    paired,
    summarise,
    t_interval,
)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_the_interval_of_a_mean_holds_the_truth_about_as_often_as_it_says(n):
    draws = np.random.default_rng(0).normal(size=(400, n))
    intervals = [summarise(list(draw)).interval for draw in draws]
    held = np.mean([i is not None and i.low <= 0 <= i.high for i in intervals])
    # 400 draws: standard error 1.1 points.
    assert 0.90 <= held <= 0.985


def test_without_results_of_single_rows_the_interval_is_students_from_two_seeds_on():
    methods = [summarise([float(i) for i in range(n)]).interval for n in (1, 2, 4, 5, 9)]
    assert [m and m.method for m in methods] == [None, "t", "t", "t", "t"]


def test_a_single_seed_has_no_spread():
    summary = summarise([1.5])
    assert (summary.n, summary.mean, summary.sd, summary.interval) == (1, 1.5, None, None)


def test_the_t_interval_equals_scipys():
    sample = np.array([2.1, 1.9, 2.4])
    expected = stats.ttest_1samp(sample, 0.0).confidence_interval(0.95)
    found = t_interval(sample)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("n", [2, 6])
def test_equal_seeds_give_no_interval(n):
    """One of no width would claim certainty."""
    found = summarise([0.1 + 0.2] * n)
    assert (found.n, found.sd, found.interval) == (n, 0.0, None)


def test_the_paired_test_equals_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=6), rng.normal(0.3, size=6)
    found = paired(dict(enumerate(a)), dict(enumerate(b)), higher_is_better=False)
    expected = stats.ttest_rel(a, b)
    assert found is not None and found.interval is not None
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx((a - b).mean())
    bounds = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high))


def test_only_equal_seeds_are_paired():
    found = paired({0: 1.0, 1: 5.0, 7: 100.0}, {1: 4.0, 0: 3.0, 2: -9.0}, higher_is_better=True)
    assert found is not None
    assert (found.n, found.difference, found.win_rate) == (2, -0.5, 0.5)
    assert paired({0: 1.0}, {1: 1.0}, higher_is_better=True) is None


@pytest.mark.parametrize(("higher", "wins"), [(True, 0.375), (False, 0.625)])
def test_the_win_rate_follows_the_direction_and_halves_ties(higher, wins):
    found = paired(
        {0: 1.0, 1: 2.0, 2: 2.0, 3: 0.0}, {0: 0.0, 1: 2.0, 2: 3.0, 3: 1.0}, higher_is_better=higher
    )
    assert found is not None and found.win_rate == wins


def test_equal_means_that_are_added_up_otherwise_have_no_difference():
    found = paired({0: 0.1, 1: 0.5}, {0: 0.3, 1: 0.3}, higher_is_better=True)
    assert found is not None and (found.difference, found.win_rate) == (0.0, 0.5)


def test_without_spread_nothing_is_tested():
    """Equal differences at every seed would give p = 0: a sign of a seed that does nothing."""
    constant = paired({0: 1.1, 1: 2.1, 2: 3.1}, {0: 1.0, 1: 2.0, 2: 3.0}, higher_is_better=True)
    equal = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, higher_is_better=True)
    single = paired({0: 1.0}, {0: 2.0}, higher_is_better=True)
    assert constant is not None and constant.p is None and constant.interval is None
    assert equal is not None and equal.p == 1.0
    assert single is not None and single.p is None and single.interval is None


def test_holm_equals_the_textbook():
    # Holm (1979): 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_lowers_and_never_exceeds_one_and_keeps_what_was_not_tested():
    p = [0.2, None, 0.5, 0.9, None]
    adjusted = holm(p)
    assert [q is None for q in adjusted] == [x is None for x in p]
    tested = [(x, q) for x, q in zip(p, adjusted, strict=True) if x is not None and q is not None]
    assert all(x <= q <= 1 for x, q in tested)
    assert holm([]) == []


def test_holm_counts_only_tests_that_were_made():
    assert holm([0.01, None]) == holm([0.01]) + [None]


def test_the_critical_difference_equals_demsars_table():
    """Demsar (2006), table 5(a): q = 2.343 for 3 classifiers and 2.728 for 5, at 0.05."""
    rng = np.random.default_rng(0)
    three = compare_ranks(rng.normal(size=(10, 3)), higher_is_better=True)
    five = compare_ranks(rng.normal(size=(30, 5)), higher_is_better=True)
    assert three.critical_difference == pytest.approx(2.343 * (3 * 4 / 60) ** 0.5, abs=1e-3)
    assert five.critical_difference == pytest.approx(2.728 * (5 * 6 / 180) ** 0.5, abs=1e-3)


def test_mean_ranks_follow_the_direction():
    values = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 2.0]])
    assert compare_ranks(values, higher_is_better=False).mean_ranks == pytest.approx((1, 7.5 / 3, 7.5 / 3))
    assert compare_ranks(values, higher_is_better=True).mean_ranks == pytest.approx((3, 4.5 / 3, 4.5 / 3))


def test_all_tied_blocks_are_no_difference():
    assert compare_ranks(np.ones((4, 3)), higher_is_better=True).mean_ranks == (2.0, 2.0, 2.0)
