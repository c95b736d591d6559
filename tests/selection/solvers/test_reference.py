"""GTP's pursuit chooses what an obvious dense float64 reading of the algorithm chooses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from planted import clusters

from gtp_exp.selection.atoms.matrix import tensor_atoms
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.omp import OMP
from gtp_exp.selection.solvers.pursuit import PursuitProblem


def fit(a, b, ridge):
    augmented = np.vstack([a.T, np.sqrt(ridge) * np.eye(len(a))])
    return scipy.optimize.nnls(augmented, np.concatenate([b, np.zeros(len(a))]))[0]


def dense_cosamp(a, b, size, ridge, stages, iterations=30, tolerance=1e-3):
    """Rows a [n, m], target b [m]: chosen rows, their weights."""
    support = np.array([], dtype=int)
    best, chosen, weights, residual = 0.5 * b @ b, support, np.array([]), b
    for _ in range(iterations):
        correlation = a @ residual
        correlation[support] = 0
        strongest = [i for i in np.argsort(-correlation, kind="stable")[: 2 * size] if correlation[i] > 0]
        merged = np.concatenate([support, np.array(strongest, dtype=int)])
        w = fit(a[merged], b, ridge)
        for stage in range(stages, 0, -1):
            positive = int((w > 0).sum())
            last = stage == 1 or positive <= size + 1
            keep = np.argsort(-w, kind="stable")[
                : min(positive, size if last else max(size, (positive + size) // 2))
            ]
            merged = merged[keep]
            w = fit(a[merged], b, ridge)
            if last or len(merged) <= size:
                break
        support, residual = merged, b - a[merged].T @ w
        objective = 0.5 * residual @ residual + 0.5 * ridge * w @ w
        improved = objective < best * (1 - tolerance)
        if objective < best:
            best, chosen, weights = objective, support, w
        if not improved or np.linalg.norm(residual) < 1e-12 * np.linalg.norm(b):
            break
    return chosen[weights > 0], weights[weights > 0]


def dense_omp(a, b, size, ridge):
    support, w = [], np.zeros(0)
    while len(support) < size:
        correlation = a @ (b - a[support].T @ w)
        correlation[support] = 0
        if correlation.max() <= 1e-9:
            break
        support.append(int(correlation.argmax()))
        w = fit(a[support], b, ridge)
        support, w = [i for i, x in zip(support, w, strict=True) if x > 0], w[w > 0]
    return support, w


def problem(n, m, seed, noise):
    data = clusters(n, m, seed, noise=noise, count=10, wanted=3)
    return data.atoms, data.target_rows.double().mean(0)


def same(pursuit, support, weights):
    assert set(pursuit.support.tolist()) == set(np.asarray(support).tolist())
    order = {int(i): x for i, x in zip(support, weights, strict=True)}
    expected = torch.tensor([order[i] for i in pursuit.support.tolist()], dtype=torch.float64)
    assert torch.allclose(pursuit.weights[:, 0], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ridge", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("n, m, size", [(60, 30, 5), (150, 40, 12), (80, 20, 30)])
def test_cosamp(n, m, size, ridge, seed):
    if size > m and ridge == 0:
        pytest.skip("more rows than dimensions and no ridge: the solution is not unique")
    atoms, target = problem(n, m, seed, noise=0.4)
    for stages in (1, 8):
        solver = CoSaMP(prune_stages=stages, tolerance=1e-3)
        pursuit = solver.pursue(PursuitProblem(tensor_atoms(atoms), target[:, None], size, ridge))
        same(pursuit, *dense_cosamp(atoms.double().numpy(), target.numpy(), size, ridge, stages))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ridge", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("n, m, size", [(60, 30, 5), (150, 40, 12)])
def test_omp(n, m, size, ridge, seed):
    atoms, target = problem(n, m, seed, noise=0.4)
    pursuit = OMP().pursue(PursuitProblem(tensor_atoms(atoms), target[:, None], size, ridge))
    same(pursuit, *dense_omp(atoms.double().numpy(), target.numpy(), size, ridge))
