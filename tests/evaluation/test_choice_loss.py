"""The loss of a right choice, by its two parts."""

from __future__ import annotations

import math

import pytest

from gtp_exp.evaluation.choice_loss import choice_loss
from gtp_exp.leaderboard.metrics import metric_named


def row(probabilities, right):
    return {"filtered_resps": [(math.log(p), False) for p in probabilities], "target": right}


def test_the_parts_add_up_to_the_loss_of_the_right_choice():
    metrics = choice_loss([row([0.1, 0.3], 1), row([0.02, 0.02], 0)])
    content, form = -math.log(0.75), -math.log(0.4)
    assert metrics["content"] == pytest.approx((content + math.log(2)) / 2)
    assert metrics["form"] == pytest.approx((form - math.log(0.04)) / 2)
    assert metrics["content"] + metrics["form"] == pytest.approx((-math.log(0.3) - math.log(0.02)) / 2)


def test_standard_errors_are_over_rows():
    metrics = choice_loss([row([0.5, 0.5], 0), row([0.75, 0.25], 1)])
    assert metrics["content_stderr"] == pytest.approx(math.log(2) / 2)  # half the difference of two values
    assert "content_stderr" not in choice_loss([row([0.5, 0.5], 0)])


def test_a_choice_without_any_share_is_finite():
    sample = {"filtered_resps": [(-2000.0, False), (-1.0, True)], "target": 0}
    assert choice_loss([sample])["content"] == pytest.approx(1999)


@pytest.mark.parametrize("right", [0, 1])
def test_a_choice_that_is_listed_twice_is_one_answer(right):
    twice = row([0.4, 0.4, 0.1], right) | {"arguments": [("Q:", " yes"), ("Q:", " yes"), ("Q:", " no")]}
    assert choice_loss([twice]) == pytest.approx(choice_loss([row([0.4, 0.1], 0)]))


@pytest.mark.parametrize(
    "other",
    [
        {"filtered_resps": ["a generated text"], "target": "a text"},
        {"filtered_resps": ["one", "two"], "target": 0},
        {"filtered_resps": [(-1.0, True), (-2.0, False)], "target": [0, 1]},
        {"filtered_resps": [(-1.0, True)], "target": 0},
        {"filtered_resps": [(-1.0, True), (-2.0, False)], "target": 2},
        {"filtered_resps": [(-1.0, True), (float("-inf"), False)], "target": 0},
    ],
)
def test_rows_without_one_right_choice_have_no_parts(other):
    assert choice_loss([row([0.5, 0.5], 0), other]) == {}


@pytest.mark.parametrize("name", ["content", "form"])
def test_less_is_better(name):
    assert not metric_named(name).higher_is_better and not metric_named(name).percent
