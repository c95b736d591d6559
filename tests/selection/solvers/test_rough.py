"""Rough fits agree with exact ones, and the cosines that they work on stay those of the rows."""

from __future__ import annotations

import pytest
import torch
from planted import clusters

from gtp_exp.selection.solvers.nnls import GramCache, columns_of, nnls
from gtp_exp.selection.solvers.rough import LEAST_RIDGE, rough_fit


def test_cosines_follow_the_columns():
    rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    cache = GramCache()
    first = columns_of(rows[:20], torch.arange(20), cache).with_cosines()
    kept = first.select(torch.tensor([3, 17, 5]))
    joined = kept.join(columns_of(rows[20:], torch.arange(20, 30), cache)).with_cosines(kept.cosines)
    unit = torch.nn.functional.normalize(rows[[3, 17, 5, *range(20, 30)]], dim=1)
    assert torch.allclose(joined.cosines, unit @ unit.T, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.03, 1.0])
def test_a_rough_fit_is_the_exact_one_to_float32(ridge):
    data = clusters(400, 64, seed=1)
    target = torch.stack([data.target_rows.double().mean(0), data.target_rows[0].double()], dim=1)
    rows = data.atoms * (0.5 + torch.rand(400, 1, generator=torch.Generator().manual_seed(2)))
    columns = columns_of(rows, torch.arange(400), GramCache())
    fit = rough_fit(columns, target, ridge, torch.zeros(400, 2, dtype=torch.float64)).guessed()
    for s in range(2):
        exact = nnls(rows, target[:, s], ridge=ridge).weights
        ours = fit.u[:, s].double() / columns.norms
        off = torch.linalg.vector_norm(rows.double().T @ (ours - exact))
        assert off < 0.02 * torch.linalg.vector_norm(rows.double().T @ exact)
        assert (ours >= 0).all()


def test_the_same_columns_solved_again_are_exact_on_their_support():
    data = clusters(60, 128, seed=3)
    target = data.target_rows.double().mean(0)[:, None]
    columns = columns_of(data.atoms, torch.arange(60), GramCache())
    exact = nnls(data.atoms, target[:, 0], ridge=0.3).weights
    again = rough_fit(columns, target, 0.3, exact[:, None]).solved()
    assert torch.allclose(again.u[:, 0].double(), exact * columns.norms, atol=1e-5)
    few = again.select((exact > 0).nonzero().flatten())
    assert torch.allclose(few.solved().u, few.u, atol=1e-5)


def test_copies_without_a_ridge_are_held_apart():
    row = torch.nn.functional.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)))
    columns = columns_of(row.repeat(8, 1), torch.arange(8), GramCache())
    fit = rough_fit(columns, row.double().T, 0.0, torch.ones(8, 1, dtype=torch.float64)).solved()
    assert torch.allclose(fit.u, torch.full((8, 1), 1 / (8 + LEAST_RIDGE)), rtol=1e-2)
