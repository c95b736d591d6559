"""GradMatch's pursuit, against a slow one and scikit-learn's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_problems import RATES, problem, with_rows
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from gtp_baselines.grad_match_omp import GradMatchOMP
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.atoms.sketches import Normalise


def selector(ridge=0.5, normalise=Normalise.NONE):
    return GradMatchOMP("sgd", "sgd", normalise, ridge, 4096, 1.0)


def atoms(features):
    """Checkpoints side by side, times the root of their share: [n, T dim]."""
    share = [rate / sum(RATES) for rate in RATES]
    parts = [s**0.5 * m["sgd"].double().numpy() for s, m in zip(share, features.matrices, strict=True)]
    return np.concatenate(parts, 1)


def slow_omp(a, b, size, ridge):
    """One atom at a time, the ridge as extra equations of a non-negative least squares problem."""
    support: list[int] = []
    weights = np.zeros(0)
    while len(support) < size:
        correlation = a @ (b - a[support].T @ weights)
        correlation[support] = -np.inf
        if correlation.max() <= 0:
            break
        support.append(int(correlation.argmax()))
        stacked = np.concatenate([a[support].T, np.sqrt(ridge) * np.eye(len(support))])
        weights = nnls(stacked, np.concatenate([b, np.zeros(len(support))]))[0]
        support = [i for i, w in zip(support, weights, strict=True) if w > 0]
        weights = weights[weights > 0]
    return dict(zip(support, weights, strict=True))


@pytest.mark.parametrize("targets", [6, None])
@pytest.mark.parametrize("rows", [1, 6, 12])
def test_rows_and_weights_are_those_of_the_slow_pursuit(rows, targets):
    given = with_rows(problem(n=60, targets=targets), rows)
    a = atoms(given.pool_gradients)
    b = (a if targets is None else atoms(given.target_gradients)).mean(0)
    ridge = 0.5 * np.mean(np.linalg.norm(a, axis=1) ** 2)
    expected = slow_omp(a, b, rows, ridge)
    selection = selector().select(given)
    from_pursuit = len(expected)
    assert set(selection.indices[:from_pursuit].tolist()) == set(expected)
    assert selection.diagnostics["rows_by_fill"] == rows - from_pursuit
    ours = selection.weights[:from_pursuit].double().numpy()
    wanted = np.array([expected[i] for i in selection.indices[:from_pursuit].tolist()])
    assert np.allclose(ours / ours.sum(), wanted / wanted.sum(), atol=1e-5)


def test_a_planted_combination_is_found_as_scikit_learn_finds_it():
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(80, 64, generator=generator)
    rows = torch.nn.functional.normalize(rows, dim=1)
    planted = torch.tensor([3, 20, 41, 77])
    target = (torch.tensor([4.0, 3.0, 2.0, 1.5]) @ rows[planted])[None]
    given = with_rows(problem(n=80, targets=1), 4)
    given = replace(
        given,
        pool_gradients=MemoryFeatures(({"sgd": rows},), RATES[:1]),
        target_gradients=MemoryFeatures(({"sgd": target},), RATES[:1]),
    )
    weights = orthogonal_mp(rows.double().numpy().T, target[0].double().numpy(), n_nonzero_coefs=4)
    selection = selector(ridge=1e-9).select(given)
    assert sorted(selection.indices.tolist()) == np.flatnonzero(weights).tolist() == planted.tolist()
    ours = selection.weights.double().numpy()
    wanted = weights[selection.indices.numpy()]
    assert np.allclose(ours, wanted / wanted.mean(), atol=1e-4)


def test_the_fill_is_by_correlation_with_the_target():
    given = with_rows(problem(n=60), 60)
    selection = selector().select(given)
    pursued = 60 - selection.diagnostics["rows_by_fill"]
    assert 0 < pursued < 60
    fill = selection.scores[selection.indices[pursued:]]
    assert torch.equal(fill, fill.sort(descending=True).values)
    assert torch.allclose(selection.weights[pursued:], selection.weights.min())


@pytest.mark.parametrize("normalise", Normalise)
def test_the_scale_of_all_gradients_changes_nothing(normalise):
    given = problem(n=60)
    scaled = replace(
        given.pool_gradients,
        matrices=tuple({d: 64 * m for d, m in t.items()} for t in given.pool_gradients.matrices),
    )
    one = selector(normalise=normalise).select(given)
    other = selector(normalise=normalise).select(replace(given, pool_gradients=scaled))
    assert torch.equal(one.indices, other.indices)
    assert torch.allclose(one.weights, other.weights, atol=1e-4)


def test_a_ridge_of_zero_is_refused():
    with pytest.raises(UserError, match="ridge=0"):
        selector(ridge=0.0)


def test_a_target_direction_of_its_own_is_refused_in_domain():
    """The target is the pool's mean then, in the candidates' direction."""
    with pytest.raises(UserError, match="target_direction=adam has no use in-domain"):
        replace(selector(), target_direction="adam").select(with_rows(problem(n=30, targets=None), 5))
