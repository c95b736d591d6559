"""The metric of the pool's second moment equals its dense formula, and treats sampled rows like others."""

from __future__ import annotations

import pytest
import torch
from problems import features, gtp, problem

from gtp_baselines.aggregation import Aggregation
from gtp_baselines.less import LESS
from gtp_baselines.top_k import Similarity, TopK
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms.matrix import Block, BlockAtoms
from gtp_exp.selection.atoms.metric import Metric, MetricSettings

RATES = (3e-4, 1e-4)


def uneven(n, d, seed=0):
    """Rows with one strong common direction and eigenvalues that fall."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    rows = torch.randn(n, d, generator=generator) * torch.linspace(3, 0.1, d) @ turn + turn[0]
    return rows * (0.5 + torch.rand(n, 1, generator=generator))


def dense(rows, shrinkage):
    """Return the map [d, d] of the formula, in float64 and without thought for its cost."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    moment = unit.T @ unit / len(unit)
    mean = moment.trace() / len(moment)
    values, vectors = torch.linalg.eigh(moment + shrinkage * mean * torch.eye(len(moment)).double())
    return ((1 + shrinkage) * mean).sqrt() * vectors @ torch.diag(values.rsqrt()) @ vectors.T


def whitening(rows, shrinkage=0.1, dim=512, basis=None):
    found = MetricSettings(Metric.WHITENED, shrinkage, dim).of(TensorRows(rows), basis)
    assert found is not None
    return found


@pytest.mark.parametrize("n, d", [(200, 24), (15, 40), (24, 24), (1, 8)])
@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 1.0])
def test_a_pool_that_is_read_whole_is_whitened_by_the_dense_formula(n, d, shrinkage):
    """With fewer rows than dimensions, too: outside of their span the shrinkage alone is left."""
    rows, other = uneven(n, d), uneven(7, d, seed=1).double()
    torch.testing.assert_close(
        whitening(rows, shrinkage).apply(other), other @ dense(rows, shrinkage), rtol=1e-4, atol=1e-5
    )


def test_by_hand():
    """Three unit rows along x and one along y: eigenvalues 3/4 and 1/4, mean 1/2, shrinkage a half of it."""
    rows = torch.tensor([[2.0, 0.0], [5.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    found = whitening(rows, shrinkage=0.5).apply(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    expected = torch.tensor([[(0.75 / 1.0) ** 0.5, 0.0], [0.0, (0.75 / 0.5) ** 0.5]])
    torch.testing.assert_close(found, expected)


def test_isotropic_rows_stay_as_they_are():
    rows = torch.cat([torch.eye(6), -torch.eye(6)])
    torch.testing.assert_close(whitening(rows).apply(rows), rows)


def test_a_sampled_row_is_scaled_like_the_rows_beside_it():
    """Of a large pool with isotropic noise: its own noise is no direction of the pool."""
    generator = torch.Generator().manual_seed(0)
    common = torch.nn.functional.normalize(torch.randn(256, generator=generator), dim=0)
    rows = torch.randn(20_000, 256, generator=generator) / 16 + common
    seen = torch.nn.functional.normalize(whitening(rows, dim=32).apply(rows), dim=1)
    sampled = torch.zeros(len(rows), dtype=torch.bool)
    sampled[torch.arange(64) * len(rows) // 64] = True
    cosine = seen @ torch.nn.functional.normalize(whitening(rows, dim=32).apply(common[None]), dim=1)[0]
    assert float((cosine[sampled].mean() - cosine[~sampled].mean()).abs()) < 0.1 * float(
        cosine[~sampled].std()
    )
    # The common direction loses its lead, as it does with the exact second moment.
    exact = torch.nn.functional.normalize(rows.double() @ dense(rows, 0.1), dim=1)
    assert float(seen.mean(0).norm()) == pytest.approx(float(exact.mean(0).norm()), rel=0.1)
    assert float(seen.mean(0).norm()) < 0.5 * float(torch.nn.functional.normalize(rows, dim=1).mean(0).norm())


def test_rows_without_a_gradient_and_without_finite_numbers_are_left_out():
    rows = uneven(30, 8)
    with_zeros = torch.cat([rows, torch.zeros(30, 8), torch.full((1, 8), float("nan"))])
    other = uneven(5, 8, seed=1)
    torch.testing.assert_close(
        whitening(with_zeros).apply(other), whitening(rows).apply(other), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(whitening(torch.zeros(4, 8)).apply(other), other)


@pytest.mark.parametrize("k", [None, 7])
def test_products_in_the_metric_equal_the_dense_ones_in_one_read_of_the_store(k):
    rows, passes = uneven(300, 24), []

    class Counted(TensorRows):
        def chunks(self, size, span=None):
            passes.append(size)
            return super().chunks(size, span)

    basis = None if k is None else torch.linalg.qr(uneven(24, 24, seed=2)).Q[:, :k].T.contiguous()
    scale = torch.rand(300, generator=torch.Generator().manual_seed(3))
    block = Block(Counted(rows), scale, basis, whitening(rows, basis=basis))
    projected = rows.double() if basis is None else rows.double() @ basis.double().T
    matrix = projected @ dense(projected.float(), 0.1) * scale.double()[:, None]
    atoms, columns = BlockAtoms((block,), 50), uneven(matrix.shape[1], 3, seed=4).double()
    passes.clear()
    assert torch.allclose(atoms.correlate(columns).double(), matrix @ columns, rtol=1e-4, atol=1e-4)
    assert len(passes) == 1
    coefficients = torch.rand(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(atoms.combine(coefficients), matrix.T @ coefficients, rtol=1e-4, atol=1e-3)
    index = torch.tensor([5, 0, 299])
    assert torch.allclose(atoms.rows(index).double(), matrix[index], rtol=1e-4, atol=1e-4)


def whitened_by_hand(sides):
    """Return the pool and the target rows of every checkpoint, multiplied with the dense map of the pool."""
    maps = [dense(rows, 0.1) for rows in sides[0]]
    return [[(x.double() @ m).float() for x, m in zip(side, maps, strict=True)] for side in sides]


@pytest.mark.parametrize(
    "selector, settings",
    [
        (gtp, {"regularisation": "fixed", "ridge": 0.1}),
        (gtp, {"regularisation": "fixed", "ridge": 0.1, "memory_gib": 0.0}),
        (gtp, {"regularisation": "fixed", "ridge": 0.1, "normalise": "checkpoint"}),
        (TopK, {}),
        (TopK, {"similarity": Similarity.DOT}),
        (LESS, {"direction": "adam"}),
        (LESS, {"direction": "adam", "aggregation": Aggregation.MEAN}),
    ],
)
def test_a_selector_chooses_what_it_chooses_from_rows_that_were_whitened_before(selector, settings):
    sides = [[uneven(200, 24), uneven(200, 24, 1)], [uneven(12, 24, 2), uneven(12, 24, 3)]]
    subtasks = ["ab"[j % 2] for j in range(12)]
    posed, before = (
        problem(*given, rows=20, rates=RATES, subtasks=subtasks) for given in (sides, whitened_by_hand(sides))
    )
    chosen = selector(**settings, metric="whitened").select(posed)
    expected, plain = (selector(**settings).select(one) for one in (before, posed))
    assert chosen.indices.tolist() == expected.indices.tolist() != plain.indices.tolist()
    assert torch.allclose(chosen.scores, expected.scores, rtol=1e-3, atol=1e-5)


def test_in_domain_and_in_a_subspace_it_gives_a_selection():
    sides = [uneven(200, 24), uneven(200, 24, 1)]
    for settings in ({}, {"subspace": "pca", "subspace_dim": 8}, {"memory_gib": 0.0}):
        assert len(gtp(**settings, metric="whitened").select(problem(sides, None, rows=20)).indices) == 20


@pytest.mark.parametrize("selector", [gtp, TopK, LESS])
@pytest.mark.parametrize("key, value", [("metric_shrinkage", 0.0), ("metric_dim", 0)])
def test_a_useless_setting_is_refused_by_name(selector, key, value):
    with pytest.raises(UserError, match=f"selector.{key}={value}"):
        selector(**{key: value})


def test_a_row_that_is_not_finite_is_refused_by_its_number():
    rows = uneven(40, 8)
    rows[7, 3] = float("inf")
    posed = problem([rows], [uneven(5, 8, 1)], rows=5)
    with pytest.raises(ValueError, match="gradient row 7 is not finite"):
        gtp(metric="whitened").select(posed)
    assert features([rows]).n == 40
