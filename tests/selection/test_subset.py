"""Choosing while some rows are in quarantine: as if they had never been there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import gtp, problem

from gtp_exp.errors import UserError
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.gradients.picked import picked
from gtp_exp.selection.base import Budget, Unit
from gtp_exp.selection.subset import others, select_outside_quarantine, some_candidates

NONE = torch.tensor([], dtype=torch.long)
BAD = torch.tensor([3, 17, 39])


@pytest.fixture
def asked():
    generator = torch.Generator().manual_seed(0)
    pool, target = ([torch.randn(n, 16, generator=generator) + 0.3 for _ in range(2)] for n in (40, 9))
    return problem(pool, target, rows=8)


def without(features, index):
    return MemoryFeatures(
        tuple({d: m[index] for d, m in one.items()} for one in features.matrices), features.learning_rates
    )


def test_the_choice_is_that_among_the_other_rows(asked):
    kept = others(40, BAD)
    expected = gtp().select(some_candidates(asked, kept, without(asked.pool_gradients, kept)))
    found = select_outside_quarantine(gtp(), asked, BAD, NONE)
    assert found.indices.tolist() == kept[expected.indices].tolist() and len(found.indices) == 8
    assert torch.equal(found.weights, expected.weights)
    assert torch.equal(found.scores[kept], expected.scores)
    assert (found.scores[BAD] == expected.scores.min()).all()
    assert found.diagnostics["quarantined_ids"] == [asked.candidates[i].id for i in BAD.tolist()]


def test_target_rows_in_quarantine_are_not_aimed_at(asked):
    bad = torch.tensor([0, 5])
    left = others(9, bad)
    fewer = replace(
        asked,
        target=[asked.target[i] for i in left.tolist()],
        target_gradients=without(asked.target_gradients, left),
    )
    found = select_outside_quarantine(gtp(), asked, NONE, bad)
    assert found.indices.tolist() == gtp().select(fewer).indices.tolist()
    assert found.diagnostics["quarantined"] == 2


def test_without_quarantine_nothing_is_touched(asked):
    found = select_outside_quarantine(gtp(), asked, NONE, NONE)
    assert "quarantined" not in found.diagnostics
    assert found.indices.tolist() == gtp().select(asked).indices.tolist()


def test_a_share_of_the_pool_stays_that_of_the_whole_pool(asked):
    whole = replace(asked, budget=Budget(Unit.FRACTION, 0.5))
    assert len(select_outside_quarantine(gtp(), whole, BAD, NONE).indices) == 20
    every = replace(asked, budget=Budget(Unit.FRACTION, 1.0))
    assert len(select_outside_quarantine(gtp(), every, BAD, NONE).indices) == 37


def test_where_nothing_is_left_it_is_said_of_what(asked):
    with pytest.raises(UserError, match="none of the 40 rows of the pool has a finite gradient"):
        select_outside_quarantine(gtp(), asked, torch.arange(40), NONE)
    with pytest.raises(UserError, match="none of the 9 rows of the target has a finite gradient"):
        select_outside_quarantine(gtp(), asked, NONE, torch.arange(9))


def test_fewer_rows_than_the_budget_are_warned_of(asked, caplog):
    assert len(select_outside_quarantine(gtp(), asked, torch.arange(35), NONE).indices) == 5
    assert (
        "35 of 40 rows of the pool have no finite gradient: 5 are chosen, and the budget is 8" in caplog.text
    )
    caplog.clear()
    select_outside_quarantine(gtp(), asked, BAD, NONE)
    assert not caplog.text


def test_picked_rows_are_read_as_any_others(asked):
    index = torch.tensor([5, 1, 30, 2])
    rows = picked(asked.pool_gradients, index).features(0, "sgd")
    expected = asked.pool_gradients.features(0, "sgd").rows(index)
    assert rows.shape == (4, 16)
    assert torch.equal(torch.cat([chunk for _, chunk in rows.chunks(3)]), expected)
    assert [start for start, _ in rows.chunks(2, range(1, 4))] == [1, 3]
    assert torch.equal(rows.rows(torch.tensor([2, 0])), expected[[2, 0]])
