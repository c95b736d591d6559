"""CRAIG, against greedy facility location that recomputes everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from baseline_problems import RATES, problem, with_rows

import gtp_exp
from gtp_baselines import craig
from gtp_baselines.craig import CRAIG, GradientCloseness, facility_location
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.base import Budget, Unit


def symmetric(n, seed=0):
    points = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distances = torch.cdist(points, points)
    return (distances.max() - distances).float()


def value(similarity, chosen):
    return float(similarity[:, chosen].double().max(1).values.sum())


@pytest.mark.parametrize(("n", "size"), [(30, 1), (30, 12), (200, 25), (90, 90)])
def test_lazy_greedy_gains_what_greedy_gains(n, size):
    similarity = symmetric(n)
    chosen: list[int] = []
    for _ in range(size):
        left = [i for i in range(n) if i not in chosen]
        chosen.append(max(left, key=lambda i: value(similarity, [*chosen, i])))
    lazy = facility_location(similarity, size).tolist()
    assert len(set(lazy)) == size
    for k in range(1, size + 1):
        assert value(similarity, lazy[:k]) == pytest.approx(value(similarity, chosen[:k]), rel=1e-6)


def test_the_choice_is_submodlibs():
    submodlib = pytest.importorskip("submodlib")
    similarity = symmetric(150)
    function = submodlib.FacilityLocationFunction(
        n=150, mode="dense", sijs=similarity.numpy(), separate_rep=False
    )
    expected = [i for i, _ in function.maximize(budget=20, optimizer="NaiveGreedy")]
    assert value(similarity, facility_location(similarity, 20).tolist()) == pytest.approx(
        value(similarity, expected), rel=1e-5
    )


def clusters(sizes, dim=32):
    """Rows around one random centre per cluster, and the cluster of each."""
    generator = torch.Generator().manual_seed(4)
    label = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    centres = torch.nn.functional.normalize(torch.randn(len(sizes), dim, generator=generator), dim=1)
    rows = 10 * centres[label] + 0.1 * torch.randn(len(label), dim, generator=generator)
    given = problem(n=len(label))
    return replace(given, pool_gradients=MemoryFeatures(({"sgd": rows}, {"sgd": rows * 2}), RATES)), label


@pytest.mark.parametrize("similarity", GradientCloseness)
def test_each_cluster_is_represented_once_and_weighs_its_size(similarity):
    sizes = [30, 12, 9, 25, 4]
    given, label = clusters(sizes)
    selection = CRAIG("sgd", similarity, 8192).select(with_rows(given, 5))
    chosen = label[selection.indices]
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]
    expected = torch.tensor([sizes[c] for c in chosen.tolist()]) / 16
    assert torch.allclose(selection.weights, expected)


def test_the_similarity_of_a_trajectory_weighs_checkpoints_by_learning_rate():
    given = problem()
    pool = given.pool_gradients
    share = [r / sum(RATES) for r in RATES]
    rows = torch.arange(40)
    squares = sum(
        s * torch.cdist(*[m["sgd"].double()] * 2).square() for s, m in zip(share, pool.matrices, strict=True)
    )
    distance = squares.sqrt()
    found = CRAIG("sgd", GradientCloseness.EUCLIDEAN, 99).similarities(given, pool, rows)
    assert torch.allclose(found.double(), distance.max() - distance, atol=1e-5)
    unit = [torch.nn.functional.normalize(m["sgd"].double(), dim=1) for m in pool.matrices]
    cosine = sum(s * u @ u.T for s, u in zip(share, unit, strict=True))
    found = CRAIG("sgd", GradientCloseness.COSINE, 99).similarities(given, pool, rows)
    assert torch.allclose(found.double(), 1 + cosine, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 17, 80])
def test_a_pool_in_parts_still_gives_exactly_the_budget_and_counts_every_row(rows):
    given, _ = clusters([30, 12, 9, 25, 4])
    selection = CRAIG("sgd", GradientCloseness.EUCLIDEAN, 20).select(with_rows(given, rows))
    assert selection.diagnostics["parts"] == 4
    assert len(selection.indices.unique()) == rows
    if rows >= 4:
        counts = selection.weights * 80 / rows
        assert torch.allclose(counts, counts.round(), atol=1e-4)  # every row of the pool is counted once


def test_parts_are_the_same_whatever_the_order_of_the_pool():
    given, _ = clusters([30, 12, 9, 25, 4])
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    matrices = tuple({"sgd": m["sgd"][order]} for m in given.pool_gradients.matrices)
    shuffled = replace(
        given,
        candidates=[given.candidates[i] for i in order.tolist()],
        n_tokens=given.n_tokens[order],
        pool_gradients=MemoryFeatures(matrices, RATES),
    )
    craig = CRAIG("sgd", GradientCloseness.EUCLIDEAN, 20)
    ids = [[p.candidates[i].id for i in craig.select(p).indices.tolist()] for p in (given, shuffled)]
    assert ids[0] == ids[1]


def test_a_token_budget_holds_in_parts():
    given, _ = clusters([30, 12, 9, 25, 4])
    given = replace(given, budget=Budget(Unit.TOKENS, 333))
    selection = CRAIG("sgd", GradientCloseness.COSINE, 20).select(given)
    assert 333 - int(given.n_tokens.max()) < int(given.n_tokens[selection.indices].sum()) <= 333


def test_an_exact_copy_of_a_chosen_row_adds_nothing():
    given = problem(n=40)
    matrices = tuple({"sgd": m["sgd"].clone() * 30} for m in given.pool_gradients.matrices)
    for m in matrices:
        m["sgd"][20:] = m["sgd"][:20]
    given = with_rows(replace(given, pool_gradients=MemoryFeatures(matrices, RATES)), 20)
    selection = CRAIG("sgd", GradientCloseness.EUCLIDEAN, 99).select(given)
    assert sorted(i % 20 for i in selection.indices.tolist()) == list(range(20))
    assert selection.weights.tolist() == [1.0] * 20
    more = CRAIG("sgd", GradientCloseness.EUCLIDEAN, 99).select(with_rows(given, 21))
    assert more.diagnostics["rows_without_weight"] == 1


def test_of_many_copies_of_a_row_one_is_compared(monkeypatch):
    """3,000 copies are millions of close pairs, each of which was taken in its turn."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(30, 64, generator=draw)
    kinds[1] = kinds[0] * (1 + 1e-5)
    compared = []
    own = craig.squared_distances

    def watched(left, right):
        compared.append((len(left), len(right)))
        return own(left, right)

    monkeypatch.setattr(craig, "squared_distances", watched)
    chosen = gtp_exp.select(kinds[torch.arange(3000) % 30], None, budget=35, selector=CRAIG())
    assert compared == [(30, 30), (30, 30)]
    assert len({i % 30 for i in chosen.indices.tolist()}) == 30
    assert torch.allclose(torch.tensor(sorted(chosen.weights)), torch.tensor([0.0] * 5 + [35 / 30] * 30))


def test_distances_to_copies_are_those_of_all_pairs():
    given = problem()
    copied = torch.tensor([3, 1, 3, 2, 1])
    rows = given.pool_gradients.matrices[0]["sgd"][copied]
    pool = MemoryFeatures(({"sgd": rows},), RATES[:1])
    distance = torch.cdist(rows.double(), rows.double())
    some = torch.tensor([4, 0])
    for columns in (None, some):
        of = slice(None) if columns is None else columns
        found = CRAIG().similarities(given, pool, torch.arange(5), columns)
        expected = distance[:, of].max() - distance[:, of]
        assert torch.allclose(found.double(), expected, atol=1e-5)
