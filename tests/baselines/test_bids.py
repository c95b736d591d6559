"""BIDS, against its algorithm written as loops over all candidates and target rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_problems import RATES, problem, with_rows

from gtp_baselines.bids import BIDS, balanced_order, standardise
from gtp_baselines.less import LESS
from gtp_baselines.ranking import tie_order
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.base import Budget, Unit


def slow_influences(given):
    """A [N, n] by the formula of LESS, one pair of rows at a time."""
    pool, target = given.pool_gradients, given.target_gradients
    a = np.zeros((pool.n, target.n))
    for t, rate in enumerate(RATES):
        x, y = pool.matrices[t]["less"].double().numpy(), target.matrices[t]["sgd"].double().numpy()
        for i in range(pool.n):
            for j in range(target.n):
                cosine = x[i] @ y[j] / np.linalg.norm(x[i]) / np.linalg.norm(y[j])
                a[i, j] += rate / sum(RATES) * cosine
    return a


def slow_order(b, ties, size):
    """The row of the largest max_j (B_ij - mean over the choice), looked for among all, first of equals."""
    chosen: list[int] = []
    while len(chosen) < size:
        average = b[chosen].mean(0) if chosen else np.zeros(b.shape[1])
        left = [i for i in ties if i not in chosen]
        chosen.append(max(left, key=lambda i: max(b[i] - average)))
    return chosen


def slow_choice(given, size):
    a = slow_influences(given)
    b = (a - a.mean(0)) / a.std(0)
    return slow_order(b, tie_order(given.candidates, given.seed).tolist(), size)


@pytest.mark.parametrize("rows", [1, 2, 7, 25, 40])
@pytest.mark.parametrize("subtasks", [1, 4])
def test_the_rows_and_their_order_are_those_of_the_algorithm(rows, subtasks):
    given = with_rows(problem(subtasks=subtasks), rows)
    assert BIDS().select(given).indices.tolist() == slow_choice(given, rows)


def test_a_budget_in_tokens_cuts_the_whole_order():
    given = replace(problem(), budget=Budget(Unit.TOKENS, 200))
    expected = given.budget.take(torch.tensor(slow_choice(given, 40)), given.n_tokens)
    assert torch.equal(BIDS().select(given).indices, expected)


@pytest.mark.parametrize("seed", range(5))
def test_ties_between_rows_and_between_target_rows_fall_by_the_order_of_ties(seed):
    """Whole numbers from 0 to 2: nearly every step ties."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randint(3, (4, 30), generator=generator).float()
    ties = torch.randperm(30, generator=generator)
    assert balanced_order(b, ties, 30).tolist() == slow_order(b.T.double().numpy(), ties.tolist(), 30)


def test_a_target_row_that_was_served_waits():
    """Row 0 serves the first target row best; the second row then gains more than the next of the first."""
    b = torch.tensor([[3.0, 2.9, 0.0, -1.0], [0.0, 0.0, 1.0, -1.0]])
    # after row 0 the averages are 3 and 0: row 1 gains max(-0.1, 0), row 2 gains 1
    assert balanced_order(b, torch.arange(4), 3).tolist() == [0, 2, 1]


def test_the_scale_and_the_mean_of_a_target_rows_influences_change_nothing():
    a = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    loud = a * torch.tensor([1.0, 100, 1, 0.01, 1])[:, None] + torch.arange(5.0)[:, None]
    ties = torch.arange(50)
    ours = standardise(a.clone())
    assert torch.equal(balanced_order(ours, ties, 20), balanced_order(standardise(loud), ties, 20))
    wanted = a.double().numpy()
    wanted = (wanted - wanted.mean(1, keepdims=True)) / wanted.std(1, keepdims=True)
    assert np.allclose(ours.numpy(), wanted, atol=1e-5)


def test_a_target_row_without_gradient_is_left_out():
    given = problem()
    target = tuple({d: m.clone() for d, m in t.items()} for t in given.target_gradients.matrices)
    for checkpoint in target:
        checkpoint["sgd"][4] = 0
    silent = replace(given, target_gradients=MemoryFeatures(target, RATES))
    kept = [0, 1, 2, 3, 5]
    without = replace(
        given,
        target=[given.target[j] for j in kept],
        target_gradients=MemoryFeatures(tuple({"sgd": t["sgd"][kept]} for t in target), RATES),
    )
    selection = BIDS().select(silent)
    assert torch.equal(selection.indices, BIDS().select(without).indices)
    assert selection.diagnostics["targets_left_out"] == 1


def test_in_domain_it_ranks_as_less_does():
    given = problem(targets=None)
    assert torch.equal(BIDS().select(given).indices, LESS().select(given).indices)
