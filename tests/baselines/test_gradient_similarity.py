"""LESS and GIST, against their formulas written as loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_problems import RATES, problem

import gtp_exp
from gtp_baselines.aggregation import Aggregation
from gtp_baselines.bids import BIDS
from gtp_baselines.craig import CRAIG, GradientCloseness
from gtp_baselines.gist import GIST
from gtp_baselines.influence_distillation import InfluenceDistillation
from gtp_baselines.less import LESS
from gtp_baselines.ranking import tie_order
from gtp_baselines.round_robin import RoundRobin
from gtp_baselines.tarot import TAROT
from gtp_baselines.top_k import TopK
from gtp_exp.errors import NothingToChoose, UserError
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.atoms.metric import Metric
from gtp_exp.selection.gtp import GTP


def unit(x):
    return x / np.linalg.norm(x)


def array(features, t, direction):
    return features.matrices[t][direction].double().numpy()


def test_less_is_its_published_formula():
    given = problem(subtasks=2)
    expected = []
    for i in range(40):
        per_subtask = []
        for s in range(2):
            total = 0.0
            for t, rate in enumerate(RATES):
                row = unit(array(given.pool_gradients, t, "less")[i])
                target = array(given.target_gradients, t, "sgd")
                total += rate / sum(RATES) * np.mean([row @ unit(target[j]) for j in range(6) if j % 2 == s])
            per_subtask.append(total)
        expected.append(max(per_subtask))
    selection = LESS("less", "sgd", Aggregation.MAX_SUBTASK).select(given)
    assert selection.scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert selection.indices.tolist() == sorted(range(40), key=lambda i: -expected[i])[:10]


def test_less_in_domain_is_the_mean_similarity_to_the_pool():
    given = problem(targets=None)
    expected = 0
    for t, rate in enumerate(RATES):
        left = np.stack([unit(x) for x in array(given.pool_gradients, t, "adam")])
        right = np.stack([unit(x) for x in array(given.pool_gradients, t, "sgd")])
        expected = expected + rate / sum(RATES) * (left @ right.T).mean(1)
    scores = LESS("adam", "sgd", Aggregation.MAX_SUBTASK).select(given).scores
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_in_round_robin_target_rows_take_turns_by_the_influence_of_less():
    given = problem(rows=20)
    influence = np.zeros((6, 40))
    for t, rate in enumerate(RATES):
        rows = np.stack([unit(x) for x in array(given.pool_gradients, t, "less")])
        targets = np.stack([unit(x) for x in array(given.target_gradients, t, "sgd")])
        influence += rate / sum(RATES) * targets @ rows.T
    left, expected = list(range(40)), []
    turns = tie_order(given.target, given.seed).tolist()
    for turn in range(20):
        expected.append(max(left, key=lambda i: influence[turns[turn % 6], i]))
        left.remove(expected[-1])
    selection = RoundRobin().select(given)
    assert selection.indices.tolist() == expected
    assert selection.scores.tolist() == pytest.approx(influence.max(0).tolist(), abs=1e-6)
    assert expected != LESS(aggregation=Aggregation.MEAN).select(given).indices.tolist()


def test_in_round_robin_a_row_that_is_taken_costs_no_turn():
    """Both target rows like candidate 0 best; the second takes its next best."""
    pool = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    target = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0]])
    chosen = gtp_exp.select(pool, target, budget=2, selector=RoundRobin("sgd"))
    assert chosen.indices.tolist() == [0, 1]


@pytest.mark.parametrize(("rank", "checkpoint"), [(3, -1), (6, 0), (150, 1)])
def test_gist_is_the_cosine_inside_the_targets_top_singular_vectors(rank, checkpoint):
    given = problem(subtasks=2)
    target = array(given.target_gradients, checkpoint, "sgd")
    basis = np.linalg.svd(target)[2][: min(rank, 6)]
    expected = []
    for row in array(given.pool_gradients, checkpoint, "sgd"):
        means = [target[s::2].mean(0) for s in range(2)]
        expected.append(max(unit(basis @ row) @ unit(basis @ mean) for mean in means))
    selection = GIST("sgd", checkpoint, rank, 8192, Aggregation.MAX_SUBTASK).select(given)
    assert selection.scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert selection.indices.tolist() == sorted(range(40), key=lambda i: -expected[i])[:10]
    assert selection.diagnostics["rank"] == min(rank, 6)


def test_gist_ignores_what_is_orthogonal_to_the_target():
    given = problem(targets=6, dim=16)
    target = {"sgd": torch.cat([torch.randn(6, 8), torch.zeros(6, 8)], 1)}
    given = replace(given, target_gradients=MemoryFeatures((target, target), RATES))
    noise = {d: torch.cat([m[:, :8], 100 * m[:, 8:]], 1) for d, m in given.pool_gradients.matrices[1].items()}
    noisy = replace(given, pool_gradients=MemoryFeatures((noise, noise), RATES))
    gist = GIST("sgd", -1, 150, 8192, Aggregation.MAX_SUBTASK)
    assert torch.allclose(gist.select(given).scores, gist.select(noisy).scores, atol=1e-4)


def test_gist_refuses_a_checkpoint_off_the_trajectory():
    with pytest.raises(UserError, match="checkpoint=2"):
        GIST("sgd", 2, 150, 8192, Aggregation.MAX_SUBTASK).select(problem())


SHORT = 2.0**-46  # 1e-14: so short are gradients of answers that a model is sure of


def shortened(features):
    return MemoryFeatures(
        tuple({d: SHORT * matrix for d, matrix in one.items()} for one in features.matrices), RATES
    )


@pytest.mark.parametrize(
    "selector",
    [
        *(LESS(), LESS(metric=Metric.WHITENED), RoundRobin(), BIDS(), InfluenceDistillation(), GIST()),
        *(TopK(), TopK(metric=Metric.WHITENED), CRAIG(similarity=GradientCloseness.COSINE), TAROT(), GTP()),
    ],
    ids=lambda selector: f"{type(selector).__name__} {getattr(selector, 'metric', '')}",
)
def test_choices_by_direction_do_not_depend_on_how_short_all_gradients_are(selector):
    given = problem()
    short = replace(
        given,
        pool_gradients=shortened(given.pool_gradients),
        target_gradients=shortened(given.target_gradients),
    )
    one, other = selector.select(given), selector.select(short)
    assert other.indices.tolist() == one.indices.tolist()
    assert torch.allclose(other.weights, one.weights, atol=1e-4)


@pytest.mark.parametrize("side", ["pool", "target"])
@pytest.mark.parametrize("selector", [LESS(), RoundRobin(), BIDS(), InfluenceDistillation(), TopK(), GIST()])
def test_where_all_gradients_are_zero_chance_does_not_choose(selector, side):
    given = problem()
    none = torch.zeros(40 if side == "pool" else 6, 16)
    zero = MemoryFeatures(({"sgd": none, "less": none},) * 2, RATES)
    with pytest.raises(UserError, match="zero"):
        selector.select(replace(given, **{f"{side}_gradients": zero}))


@pytest.mark.parametrize(
    "target", [torch.eye(16)[8:14], torch.ones(6, 16) * torch.tensor([[1.0], [-1.0]] * 3)]
)
def test_gradients_that_are_not_zero_and_have_no_similarity_are_not_called_zero_alone(target):
    given = problem()
    pool = MemoryFeatures(({"sgd": torch.eye(16)[torch.arange(40) % 8]},) * 2, RATES)
    posed = replace(
        given, pool_gradients=pool, target_gradients=MemoryFeatures(({"sgd": target},) * 2, RATES)
    )
    with pytest.raises(NothingToChoose, match="cancel out in their mean, or the two are at right angles"):
        TopK().select(posed)


@pytest.mark.parametrize(("selector", "side"), [(CRAIG(), "pool"), (TAROT(), "pool"), (TAROT(), "target")])
def test_where_all_gradients_are_zero_distances_do_not_choose(selector, side):
    given = problem()
    zero = MemoryFeatures(({"sgd": torch.zeros(40 if side == "pool" else 6, 16)},) * 2, RATES)
    with pytest.raises(NothingToChoose, match="gradient is zero, so no row can be preferred"):
        selector.select(replace(given, **{f"{side}_gradients": zero}))


@pytest.mark.parametrize(
    "selector",
    [LESS("less", "sgd", Aggregation.MEAN), GIST("sgd", -1, 150, 8192, Aggregation.MEAN)],
    ids=["less", "gist"],
)
def test_a_target_row_that_is_not_finite_is_refused_by_its_id(selector):
    given = problem()
    pool, target = (
        [m["sgd"] for m in side.matrices] for side in (given.pool_gradients, given.target_gradients)
    )
    target[1][3, 2] = float("nan")
    with pytest.raises(UserError, match="target-3"):
        gtp_exp.select(pool, target, budget=10, selector=selector)
