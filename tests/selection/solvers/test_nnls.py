"""NNLS is exact: it satisfies the optimality conditions and agrees with scipy where that is unique."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from gtp_exp.selection.solvers.nnls import kkt_residual, nnls


def gaussian(n, m, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, m, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(m, generator=generator, dtype=torch.float64).to(dtype),
    )


def clustered(n, m, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(
        torch.randn(20, m, generator=generator, dtype=torch.float64), dim=1
    )
    cluster = torch.randint(20, (n,), generator=generator)
    rows = centres[cluster] + torch.randn(n, m, generator=generator, dtype=torch.float64) / m**0.5
    return rows.to(dtype), (centres[:3].sum(0) + 0.02 * torch.randn(m, generator=generator)).to(dtype)


def rank_deficient(n, m, seed=0, dtype=torch.float64):
    rows, target = gaussian(n, 5, seed)
    lift, _ = gaussian(m, 5, seed + 1)
    return (rows @ lift.T).to(dtype), (target @ lift.T).to(dtype)


def with_copies(n, m, seed=0, dtype=torch.float64):
    rows, target = gaussian(n, m, seed, dtype)
    rows[n // 2 :] = rows[: n - n // 2].clone()
    return rows, target


def with_zero_columns(n, m, seed=0, dtype=torch.float64):
    rows, target = gaussian(n, m, seed, dtype)
    rows[::3] = 0
    return rows, target


def badly_scaled(n, m, seed=0, dtype=torch.float64):
    rows, target = gaussian(n, m, seed, dtype)
    return rows * torch.logspace(-2, 2, n, dtype=dtype)[:, None], target


FAMILIES = [gaussian, clustered, rank_deficient, with_copies, with_zero_columns, badly_scaled]


def scipy_fit(rows, target, ridge):
    """A^T w of the ridge problem as plain NNLS on the augmented matrix."""
    a = np.vstack([rows.double().numpy().T, np.sqrt(ridge) * np.eye(len(rows))])
    w, _ = scipy.optimize.nnls(a, np.concatenate([target.double().numpy(), np.zeros(len(rows))]))
    return torch.from_numpy(w)


def objective(rows, target, weights, ridge):
    left = target - rows.T @ weights
    return float(0.5 * left @ left + 0.5 * ridge * weights @ weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (20, 40), (60, 40), (200, 30)])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1, 10.0])
def test_agrees_with_scipy(family, shape, ridge):
    rows, target = family(*shape)
    ours, theirs = nnls(rows, target, ridge=ridge), scipy_fit(rows, target, ridge)
    assert ours.kkt <= 1e-6 and kkt_residual(rows, target, ours.weights, ridge) <= 1e-6
    excess = objective(rows, target, ours.weights, ridge) - objective(rows, target, theirs, ridge)
    assert excess <= 1e-8 * float(target @ target)
    if kkt_residual(rows, target, theirs, ridge) > 1e-6:
        return  # scipy 1.17 gives zero columns weight in a few of these cases
    # The fit A^T w is unique even where w is not.
    assert torch.allclose(rows.T @ ours.weights, rows.T @ theirs, atol=1e-6 * float(target.norm()))
    if ridge >= 0.1:
        assert torch.allclose(ours.weights, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(500, 256), (1500, 300)])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 3.0])
def test_optimality_conditions_hold(family, shape, ridge, dtype):
    rows, target = family(*shape, dtype=dtype)
    solution = nnls(rows, target, ridge=ridge)
    assert (solution.weights >= 0).all() and torch.isfinite(solution.weights).all()
    assert kkt_residual(rows, target, solution.weights, ridge) <= 1e-6
    assert torch.allclose(solution.residual, target.double() - rows.double().T @ solution.weights, atol=1e-8)


@pytest.mark.parametrize("n, m, ridge", [(4000, 256, 0.0), (4000, 256, 1e-3), (12000, 64, 1e-4)])
def test_many_more_columns_than_dimensions(n, m, ridge):
    """Where block principal pivoting cycles."""
    rows, target = clustered(n, m, dtype=torch.float32)
    solution = nnls(rows, target, ridge=ridge)
    assert kkt_residual(rows, target, solution.weights, ridge) <= 1e-6


def test_no_positive_correlation_gives_zero():
    rows, _ = gaussian(50, 20)
    solution = nnls(-rows.abs(), torch.ones(20, dtype=torch.float64), ridge=0.1)
    assert (solution.weights == 0).all() and solution.kkt == 0


def test_zero_target_and_no_columns_give_zero():
    rows, _ = gaussian(50, 20)
    assert (nnls(rows, torch.zeros(20)).weights == 0).all()
    assert len(nnls(torch.zeros(0, 20), torch.ones(20)).weights) == 0


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_a_warm_start_changes_the_path_but_not_the_solution(ridge):
    rows, target = clustered(300, 100)
    cold = nnls(rows, target, ridge=ridge)
    generator = torch.Generator().manual_seed(7)
    warm = nnls(rows, target, ridge=ridge, start=torch.rand(300, generator=generator, dtype=torch.float64))
    assert torch.allclose(rows.T @ cold.weights, rows.T @ warm.weights, atol=1e-9)
    assert nnls(rows, target, ridge=ridge, start=cold.weights).iterations <= cold.iterations + 1


@pytest.mark.parametrize("l1", [0.01, 0.3, 2.0])
def test_the_l1_term_enters_the_optimality_conditions(l1):
    rows, target = clustered(400, 100)
    solution = nnls(rows, target, ridge=0.1, l1=l1)
    assert kkt_residual(rows, target, solution.weights, 0.1, l1) <= 1e-8
    assert int((solution.weights > 0).sum()) <= int((nnls(rows, target, ridge=0.1).weights > 0).sum())


def test_a_ridge_gives_exact_copies_equal_weights():
    rows, target = clustered(60, 40)
    weights = nnls(torch.cat([rows, rows]), target, ridge=0.1).weights
    assert torch.allclose(weights[:60], weights[60:], atol=1e-12) and (weights > 0).any()


def test_the_conditions_reject_a_wrong_solution():
    """The measure that the other tests rely on does see an error of a percent, and a missing column."""
    rows, target = clustered(100, 60)
    right = nnls(rows, target, ridge=0.1).weights
    assert kkt_residual(rows, target, right * 1.01, 0.1) > 1e-4
    without = right.clone()
    without[int(right.argmax())] = 0
    assert kkt_residual(rows, target, without, 0.1) > 1e-3


def test_the_ridge_is_not_the_one_of_the_normal_equations():
    """The trap: plain NNLS on (G + lam I) w = A b is another problem, with another solution."""
    rows, target = clustered(80, 60)
    gram = rows @ rows.T + 0.5 * torch.eye(80, dtype=torch.float64)
    trap = torch.from_numpy(scipy.optimize.nnls(gram.numpy(), (rows @ target).numpy())[0])
    assert kkt_residual(rows, target, trap, 0.5) > 1e-3
    assert nnls(rows, target, ridge=0.5).kkt < 1e-9


def with_l1(rows, target, weights, l1):
    return float(0.5 * (rows.T @ weights - target).square().sum() + l1 * weights.sum())


def best_of_all_supports(rows, target, l1):
    """The least objective over all supports of at most m columns: some solution has no more."""
    n, m = rows.shape
    found = [torch.zeros(n, dtype=torch.float64)]
    for size in range(1, m + 1):
        for support in map(list, itertools.combinations(range(n), size)):
            own = rows[support]
            fitted = torch.linalg.lstsq(own @ own.T, (own @ target - l1)[:, None]).solution[:, 0]
            if (fitted >= 0).all():
                found.append(torch.zeros(n, dtype=torch.float64).index_copy(0, torch.tensor(support), fitted))
    return min(with_l1(rows, target, weights, l1) for weights in found)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_column_in_the_span_of_others_takes_the_place_of_one_where_that_costs_less(m):
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        base = torch.randn(2, m, generator=draw, dtype=torch.float64).abs()
        rows = base[torch.arange(12) % 2] + 0.05 * torch.randn(12, m, generator=draw, dtype=torch.float64)
        target = torch.rand(m, generator=draw, dtype=torch.float64)
        weights = nnls(rows, target, l1=1e-3).weights
        best = best_of_all_supports(rows, target, 1e-3)
        assert with_l1(rows, target, weights, 1e-3) == pytest.approx(best, rel=1e-9, abs=1e-14)
        assert kkt_residual(rows, target, weights, l1=1e-3) < 1e-8


def test_columns_too_close_to_be_told_from_a_dependent_one_are_exchanged():
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        base = torch.randn(4, 16, generator=draw, dtype=torch.float64)
        rows = base[torch.arange(60) % 4] + 1e-6 * torch.randn(60, 16, generator=draw, dtype=torch.float64)
        target = torch.randn(16, generator=draw, dtype=torch.float64)
        assert kkt_residual(rows, target, nnls(rows, target).weights) < 2e-9, seed


def test_of_many_columns_in_one_span_a_few_are_tried_in_turn():
    """Rows of rank 16 but for the rounding to float32. With the worst column alone the fit ended at 301; with
    every one that violates the conditions it took a thousand factorisations."""
    draw = torch.Generator().manual_seed(500)
    span = torch.randn(16, 128, generator=draw, dtype=torch.float64)
    rows = (torch.randn(500, 16, generator=draw, dtype=torch.float64) @ span).float()
    mean, outside = rows[:300].double().mean(0), torch.randn(128, generator=draw, dtype=torch.float64)
    target = mean + 10 * mean.norm() * torch.nn.functional.normalize(outside, dim=0)
    solution = nnls(rows, target)
    assert 0.5 * float(solution.residual.square().sum()) < 240
    assert solution.iterations < 400 and solution.kkt < 1e-6
