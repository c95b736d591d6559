"""Every pursuit recovers a planted support, keeps its bounds, and is as good as the classical baseline."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from planted import clusters
from sklearn.linear_model import orthogonal_mp

from gtp_benchmarks.performance.sparse import sparse
from gtp_exp.errors import UserError
from gtp_exp.selection.atoms.matrix import BlockAtoms, tensor_atoms
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.elastic_net import ElasticNet
from gtp_exp.selection.solvers.nnls import GramCache, columns_of, kkt_residual
from gtp_exp.selection.solvers.omp import OMP, BlockOMP
from gtp_exp.selection.solvers.pruning import prune
from gtp_exp.selection.solvers.pursuit import Pursuit, PursuitProblem, Solver
from gtp_exp.selection.solvers.rough import rough_fit

SOLVERS: dict[str, Solver] = {
    "cosamp": CoSaMP(),
    "cosamp_single_prune": CoSaMP(prune_stages=1),
    "omp": OMP(),
    "block_omp": BlockOMP(steps=8),
    "elastic_net": ElasticNet(),
}


def pursue(solver: Solver, atoms: torch.Tensor, target: torch.Tensor, **options: Any) -> Pursuit:
    """Pursue a target [m, S] among atoms [n, m]."""
    return solver.pursue(PursuitProblem(tensor_atoms(atoms), target, **options))


@pytest.mark.parametrize("n, m, size", [(1000, 128, 8), (1000, 128, 16), (1500, 256, 32)])
@pytest.mark.parametrize("name", ["cosamp", "cosamp_single_prune", "omp", "elastic_net"])
def test_a_planted_support_is_recovered_exactly(name, n, m, size):
    for seed in range(3):
        problem = sparse(n, m, size, noise=0.0, seed=seed)
        pursuit = pursue(SOLVERS[name], problem.atoms, problem.target, size=size, ridge=1e-9)
        assert set(pursuit.support.tolist()) == problem.support
        assert pursuit.residual < 1e-6


def test_with_noise_the_recall_is_at_least_that_of_orthogonal_matching_pursuit():
    ours: dict[str, float] = dict.fromkeys(SOLVERS, 0.0)
    reference = 0.0
    for seed in range(4):
        problem = sparse(1000, 128, 16, noise=0.5, seed=seed)
        for name, solver in SOLVERS.items():
            pursuit = pursue(solver, problem.atoms, problem.target, size=16, ridge=1e-3)
            ours[name] += len(problem.support & set(pursuit.support.tolist())) / 64
        weights = orthogonal_mp(
            problem.atoms.double().T.numpy(), problem.target.numpy()[:, 0], n_nonzero_coefs=16
        )
        reference += len(problem.support & set(weights.nonzero()[0].tolist())) / 64
    assert 0.4 < reference < 1  # hard enough to tell solvers apart
    assert ours["cosamp"] >= reference and ours["omp"] >= reference, (ours, reference)
    assert min(ours.values()) > 0.8 * reference, (ours, reference)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_result_is_what_it_says(name, ridge):
    """Bounds, order, objective, residual and optimality, all recomputed from the atoms."""
    data = clusters(600, 64, seed=1)
    atoms = data.atoms * torch.linspace(0.2, 3, 600)[:, None]
    target = data.target_rows.double().mean(0)[:, None]
    pursuit = pursue(SOLVERS[name], atoms, target, size=20, ridge=max(ridge, 1e-9))
    assert 1 <= len(pursuit.support) <= 20 and len(pursuit.support.unique()) == len(pursuit.support)
    assert (pursuit.weights > 0).all()
    assert (pursuit.contributions[:-1] >= pursuit.contributions[1:]).all()
    rows = atoms[pursuit.support].double()
    left = target[:, 0] - rows.T @ pursuit.weights[:, 0]
    objective = 0.5 * left.square().sum() + 0.5 * max(ridge, 1e-9) * pursuit.weights.square().sum()
    assert pursuit.objective == pytest.approx(float(objective), rel=1e-9)
    assert pursuit.residual == pytest.approx(float(left.norm() / target.norm()), rel=1e-9)
    assert torch.allclose(pursuit.fitted[:, 0], rows.T @ pursuit.weights[:, 0])
    assert kkt_residual(rows, target[:, 0], pursuit.weights[:, 0], max(ridge, 1e-9)) < 1e-8
    assert pursuit.kkt < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 500])
def test_cosamp_fits_as_well_as_orthogonal_matching_pursuit(size):
    data = clusters(20_000, 1024, seed=0)
    target = data.target_rows.double().mean(0)[:, None]
    ours = pursue(CoSaMP(), data.atoms, target, size=size, ridge=0.0)
    classical = pursue(BlockOMP(steps=size), data.atoms, target, size=size, ridge=0.0)
    assert len(ours.support) == len(classical.support) == size
    assert ours.residual <= 1.02 * classical.residual


def test_rough_fits_of_what_is_pruned_cost_no_accuracy_near_the_rank():
    data = clusters(5_000, 512, seed=0)
    target = data.target_rows.double().mean(0)[:, None]
    ours = pursue(CoSaMP(), data.atoms, target, size=250, ridge=1e-3)
    classical = pursue(OMP(), data.atoms, target, size=250, ridge=1e-3)
    assert len(ours.support) == len(classical.support) == 250
    assert ours.residual <= 1.02 * classical.residual
    assert ours.kkt < 1e-8


@pytest.mark.parametrize("name", SOLVERS)
def test_correlations_that_are_known_change_nothing_but_save_a_pass(name):
    data, passes = clusters(300, 64, seed=2), []

    class Counting(BlockAtoms):
        def correlate_own(self, residual):
            passes.append(residual)
            return super().correlate_own(residual)

    target = data.target_rows.double().mean(0)[:, None]
    atoms = Counting(tensor_atoms(data.atoms).blocks, 100)
    problem = PursuitProblem(atoms, target, 20, 0.3)
    without, counted = SOLVERS[name].pursue(problem), len(passes)
    known = tensor_atoms(data.atoms).correlate_own(target.float())
    passes.clear()
    with_them = SOLVERS[name].pursue(replace(problem, correlation=known))
    assert len(passes) == counted - 1
    assert torch.equal(with_them.support, without.support)
    assert torch.equal(with_them.weights, without.weights)


@pytest.mark.parametrize("name", SOLVERS)
def test_near_copies_are_passed_over(name):
    data = clusters(300, 64, seed=2)
    generator = torch.Generator().manual_seed(0)
    nearly = data.atoms + 1e-3 * torch.randn(data.atoms.shape, generator=generator)
    atoms = torch.nn.functional.normalize(torch.cat([data.atoms, nearly]), dim=1)
    target = data.target_rows.double().mean(0)[:, None]
    solve = functools.partial(pursue, SOLVERS[name], atoms, target, size=30, ridge=0.3)

    def repeats(support):
        cosines = atoms[support] @ atoms[support].T
        return int((cosines.triu(1) > 0.98).sum())

    assert repeats(solve().support) > 0
    pursuit = solve(near_copy_cosine=0.98)
    assert repeats(pursuit.support) == 0 and len(pursuit.near_copies) > 0
    assert not set(pursuit.near_copies.tolist()) & set(pursuit.support.tolist())


@pytest.mark.parametrize("name", SOLVERS)
def test_a_cost_bounds_the_rows(name):
    data = clusters(400, 64, seed=3)
    target = data.target_rows.double().mean(0)[:, None]
    cost = torch.randint(5, 60, (400,), generator=torch.Generator().manual_seed(1))
    pursuit = pursue(SOLVERS[name], data.atoms, target, size=200, ridge=0.1, cost=cost, capacity=300)
    spent = int(cost[pursuit.support].sum())
    assert 150 < spent <= 300


@pytest.mark.parametrize("name", SOLVERS)
def test_only_available_rows_with_a_positive_correlation_are_chosen(name):
    data = clusters(200, 32, seed=4)
    target = data.target_rows.double().mean(0)[:, None]
    available = torch.arange(200) % 2 == 0
    pursuit = pursue(SOLVERS[name], data.atoms, target, size=20, ridge=0.1, available=available)
    assert len(pursuit.support) and (pursuit.support % 2 == 0).all()
    away = -data.atoms * (data.atoms.double() @ target).sign().float()
    nothing = pursue(SOLVERS[name], away, target, size=20, ridge=0.1)
    assert len(nothing.support) == 0 and nothing.residual == pytest.approx(1.0)


def test_several_targets_share_their_rows():
    data = clusters(500, 64, seed=5)
    target = torch.stack([data.atoms[data.cluster == k].double().mean(0) for k in (0, 1)], dim=1)
    pursuit = pursue(CoSaMP(), data.atoms, target, size=12, ridge=0.1)
    assert pursuit.weights.shape == (12, 2) and pursuit.fitted.shape == (64, 2)
    chosen = data.cluster[pursuit.support]
    assert {0, 1} <= set(chosen.tolist())
    # Rows of cluster 0 serve the first column, rows of cluster 1 the second.
    assert pursuit.weights[chosen == 0, 0].sum() > pursuit.weights[chosen == 0, 1].sum()
    assert pursuit.weights[chosen == 1, 1].sum() > pursuit.weights[chosen == 1, 0].sum()


def test_equal_columns_give_the_rows_of_one():
    data = clusters(500, 64, seed=6)
    target = data.target_rows.double().mean(0)[:, None]
    one = pursue(CoSaMP(), data.atoms, target, size=12, ridge=0.1)
    two = pursue(CoSaMP(), data.atoms, target.repeat(1, 3), size=12, ridge=0.1)
    assert set(one.support.tolist()) == set(two.support.tolist())


@pytest.mark.parametrize("name", ["omp", "block_omp", "elastic_net"])
def test_solvers_of_one_target_refuse_several(name):
    data = clusters(50, 16, seed=7)
    with pytest.raises(UserError, match="target_columns"):
        pursue(SOLVERS[name], data.atoms, torch.ones(16, 2), size=3, ridge=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_fitted_exactly_wherever_the_weights_begin(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(60, 40, generator=generator, dtype=torch.float64) + 0.5
    target = torch.randn(40, 1, generator=generator, dtype=torch.float64) + 0.5
    columns = columns_of(rows, torch.arange(60), GramCache())
    problem = PursuitProblem(tensor_atoms(rows.float()), target, 60, 1e-3)
    fitted = rough_fit(columns, target, 1e-3, torch.ones(60, 1, dtype=torch.float64))
    kept, weights, _, kkt = prune(columns, fitted, problem, stages=4)
    assert kkt < 1e-8
    assert kkt_residual(rows[kept.ids], target[:, 0], weights[:, 0], 1e-3) < 1e-8
