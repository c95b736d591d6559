"""Aggregation over target rows, against plain loops over the full table of similarities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baseline_problems import problem, with_rows

import gtp_exp
from gtp_baselines.aggregation import Aggregation, choose_by_similarity, group_target
from gtp_baselines.ranking import rank, tie_order
from gtp_baselines.round_robin import RoundRobin
from gtp_exp.selection.base import Budget, Unit


@pytest.fixture
def table():
    """Similarity of each of 6 target rows to each of 40 candidates."""
    return torch.randn(6, 40, generator=torch.Generator().manual_seed(5))


def grouped(table, given, aggregation):
    groups = group_target(given, aggregation)
    sums = torch.zeros(len(groups.names), table.shape[1], dtype=torch.float64)
    groups.sums(table[:4], 0, sums)  # in two chunks
    groups.sums(table[4:], 4, sums)
    return groups.means(sums)


def test_the_mean_ranks_by_the_mean_over_all_target_rows(table):
    given = problem()
    chosen, scores = choose_by_similarity(grouped(table, given, Aggregation.MEAN), given, Aggregation.MEAN)
    assert torch.allclose(scores, table.mean(0))
    assert chosen.tolist() == table.mean(0).argsort(descending=True)[:10].tolist()


@pytest.mark.parametrize("subtasks", [2, 4])  # with 4, subtasks have unequal numbers of rows
def test_max_subtask_ranks_by_the_best_subtask_mean(table, subtasks):
    given = problem(subtasks=subtasks)
    best = []
    for i in range(40):
        means = []
        for s in range(subtasks):
            rows = [float(table[j, i]) for j in range(6) if j % subtasks == s]
            means.append(sum(rows) / len(rows))
        best.append(max(means))
    chosen, scores = choose_by_similarity(
        grouped(table, given, Aggregation.MAX_SUBTASK), given, Aggregation.MAX_SUBTASK
    )
    assert scores.tolist() == pytest.approx(best, abs=1e-6)
    assert chosen.tolist() == sorted(range(40), key=lambda i: -best[i])[:10]


@pytest.mark.parametrize("rows", [1, 4, 6, 15, 40])
def test_in_round_robin_every_target_row_takes_its_best_row_that_is_left(table, rows):
    given = with_rows(problem(), rows)
    turns = tie_order(given.target, given.seed).tolist()
    queues = [table[j].argsort(descending=True).tolist() for j in turns]
    expected: list[int] = []
    while len(expected) < rows:
        queue = queues[len(expected) % 6]
        expected.append(next(i for i in queue if i not in expected))
    chosen, _ = choose_by_similarity(
        grouped(table, given, Aggregation.ROUND_ROBIN), given, Aggregation.ROUND_ROBIN
    )
    assert chosen.tolist() == expected


def test_round_robin_serves_a_target_row_that_the_mean_would_ignore():
    table = torch.zeros(6, 40)
    table[:5, :20] = 1.0
    table[5, 30] = 0.5
    given = with_rows(problem(), 6)
    assert 30 in choose_by_similarity(table, given, Aggregation.ROUND_ROBIN)[0]
    mean = grouped(table, given, Aggregation.MEAN)
    assert 30 not in choose_by_similarity(mean, given, Aggregation.MEAN)[0]


def test_a_round_that_is_not_full_serves_no_row_for_its_place_in_the_file():
    """Two rows for six target rows, each of which likes its own: every target row has a turn for some seed,
    and another order of the target changes nothing."""
    table = torch.zeros(6, 40)
    table[range(6), range(6)] = 1.0
    served = set()
    for seed in range(20):
        given = replace(with_rows(problem(), 2), seed=seed)
        first = choose_by_similarity(table, given, Aggregation.ROUND_ROBIN)[0].tolist()
        order = [3, 1, 5, 0, 2, 4]
        moved = replace(given, target=[given.target[j] for j in order])
        assert choose_by_similarity(table[order], moved, Aggregation.ROUND_ROBIN)[0].tolist() == first
        served |= set(first)
    assert served == set(range(6))


def test_rows_of_arrays_which_have_no_text_take_turns_by_the_seed():
    """Two rows for six target rows, each of which likes its own."""
    axes = torch.eye(6)
    pairs = {
        frozenset(gtp_exp.select(axes, axes, budget=2, selector=RoundRobin(), seed=seed).indices.tolist())
        for seed in range(20)
    }
    assert frozenset().union(*pairs) == set(range(6)) and len(pairs) > 5


@pytest.mark.parametrize("aggregation", Aggregation)
def test_a_token_budget_holds(table, aggregation):
    given = replace(problem(), budget=Budget(Unit.TOKENS, 111))
    chosen, _ = choose_by_similarity(grouped(table, given, aggregation), given, aggregation)
    assert 111 - int(given.n_tokens.max()) < int(given.n_tokens[chosen].sum()) <= 111


@pytest.mark.parametrize("aggregation", Aggregation)
def test_in_domain_the_pool_is_one_group(aggregation):
    groups = group_target(problem(targets=None), aggregation)
    assert groups.names == ("pool",) and groups.member.tolist() == [0] * 40


@pytest.mark.parametrize("aggregation", Aggregation)
def test_ties_fall_by_the_seed_and_not_by_the_order_of_the_pool(aggregation):
    given = problem()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = replace(
        given,
        candidates=[given.candidates[i] for i in order.tolist()],
        n_tokens=given.n_tokens[order],
        n_completion_tokens=given.n_completion_tokens[order],
    )

    def ids(one):
        alike = torch.ones(len(group_target(one, aggregation).names), 40)
        return [one.candidates[i].id for i in choose_by_similarity(alike, one, aggregation)[0].tolist()]

    assert ids(given) == ids(shuffled)
    assert ids(given) != ids(replace(given, seed=1))


def test_ties_are_broken_evenly():
    counts = torch.zeros(40)
    for seed in range(400):
        counts[rank(torch.zeros(40), replace(problem(), seed=seed))[:10]] += 1
    expected = 400 * 10 / 40
    chi_square = float(((counts - expected) ** 2 / (expected * 0.75)).sum())
    assert 15 < chi_square < 80  # mean 39, standard deviation 9
