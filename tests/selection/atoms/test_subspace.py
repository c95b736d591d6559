"""The subspace of a checkpoint is the span of the leading singular vectors."""

from __future__ import annotations

import pytest
import torch

from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms import subspace
from gtp_exp.selection.atoms.subspace import evenly_spaced, principal_rows


def low_rank(n, d, rank, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(n, rank, generator=generator), torch.randn(rank, d, generator=generator)
    return left * torch.linspace(3, 1, rank) @ right + noise * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize("n, d", [(40, 100), (100, 40)])
def test_small_matrices_are_factorised_exactly(n, d):
    rows = low_rank(n, d, 10, 0.1)
    basis = principal_rows(rows, 6, seed=0)
    assert torch.allclose(basis.vectors @ basis.vectors.T, torch.eye(6), atol=1e-5)
    _, values, vectors = torch.linalg.svd(rows.double(), full_matrices=False)
    projector = vectors[:6].T @ vectors[:6]
    assert torch.allclose((basis.vectors.T @ basis.vectors).double(), projector, atol=1e-5)
    assert basis.explained == pytest.approx(
        float(values[:6].square().sum() / values.square().sum()), abs=1e-6
    )


def test_the_randomised_factorisation_explains_as_much_as_the_exact_one(monkeypatch):
    rows = low_rank(600, 500, 30, 0.5)
    exact = principal_rows(rows, 20, seed=0)
    monkeypatch.setattr(subspace, "EXACT", 64)
    approximate = principal_rows(rows, 20, seed=0)
    assert not torch.equal(exact.vectors, approximate.vectors)
    assert approximate.explained == pytest.approx(exact.explained, abs=1e-3)
    assert torch.allclose(approximate.vectors @ approximate.vectors.T, torch.eye(20), atol=1e-4)
    assert torch.equal(principal_rows(rows, 20, seed=0).vectors, approximate.vectors)


def test_the_dimension_is_at_most_the_rank():
    assert len(principal_rows(low_rank(50, 40, 7, 0.0), 20, seed=0).vectors) == 7
    assert len(principal_rows(torch.zeros(5, 8), 3, seed=0).vectors) == 0


def test_the_mean_direction_is_not_taken_out():
    rows = torch.ones(30, 10) + 0.01 * torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    leading = principal_rows(rows, 1, seed=0).vectors[0]
    assert float(leading.sum().abs()) / 10**0.5 > 0.999


def test_a_sample_is_spread_over_the_rows():
    rows = torch.arange(1000).float()[:, None]
    sample = evenly_spaced(TensorRows(rows), 10)[:, 0]
    assert sample.tolist() == [float(100 * i) for i in range(10)]
    assert len(evenly_spaced(TensorRows(rows), 5000)) == 1000
