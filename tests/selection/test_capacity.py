"""Rows are taken in turn while they fit."""

from __future__ import annotations

import random

import pytest
import torch

from gtp_exp.errors import NothingToChoose
from gtp_exp.selection.base import Budget, Unit
from gtp_exp.selection.capacity import fitting


def test_what_does_not_fit_is_passed_over_and_the_limit_may_be_reached():
    assert fitting([5, 4, 3, 2], capacity=9) == [0, 1]
    assert fitting([5, 6, 3, 2, 1], capacity=9) == [0, 2, 4]
    assert fitting([1, 1, 1], capacity=9, most=2) == [0, 1]
    assert fitting([1, 1], capacity=9, most=0) == fitting([3], capacity=2) == fitting([], capacity=9) == []
    assert fitting([0, 7, 0], capacity=0) == [0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_each_row_is_taken_exactly_if_it_fits_beside_those_before_it(seed):
    drawn = random.Random(seed)
    prices, capacity = [drawn.randrange(20) for _ in range(30)], drawn.randrange(200)
    taken = fitting(prices, capacity)
    for position, price in enumerate(prices):
        spent = sum(prices[i] for i in taken if i < position)
        assert (position in taken) == (spent + price <= capacity)


def test_a_budget_below_every_row_of_an_order_names_the_shortest_of_them():
    n_tokens, budget = torch.tensor([5, 30, 20, 40]), Budget(Unit.TOKENS, 10)
    with pytest.raises(NothingToChoose, match=r"amount=10 tokens is below .* \(20 tokens\)"):
        budget.take(torch.tensor([3, 2, 1]), n_tokens)
    assert budget.take(torch.tensor([3, 0, 1]), n_tokens).tolist() == [0]
    assert not len(budget.take(torch.empty(0, dtype=torch.long), n_tokens))
