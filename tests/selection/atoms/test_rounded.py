"""Rounded rows in memory: their bounds hold, what they propose is exact, and the store is hardly read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import clusters
from problems import CountedFeatures, CountedRows, gtp, problem, with_features

from gtp_exp.selection.atoms.matrix import Block, BlockAtoms, dot
from gtp_exp.selection.atoms.rounded import RoundedRows
from gtp_exp.selection.solvers.pursuit import alignment, strongest

N, DIM = 4000, 64
ROUNDED = N * 2 * DIM / 2**30  # GiB that hold a byte of every number, and not four


def rounded(rows, seed=0):
    kept = RoundedRows.empty(*rows.shape, seed)
    kept.put(range(len(rows)), rows)
    return kept


def atoms_of(rows, scale):
    return BlockAtoms((Block(CountedRows(rows), scale, None, rounded=rounded(rows.float())),), 1000)


def rows_of(kind, generator):
    rows = torch.randn(N, DIM, generator=generator)
    if kind == "one large number":
        rows[:, 3] *= 1000
    if kind == "all sizes":
        rows *= 10.0 ** torch.randint(-20, 15, (N, 1), generator=generator)
    if kind == "half zero":
        rows[::2] = 0
    if kind == "half precision":
        rows = rows.half()
    return rows


KINDS = ("normal", "one large number", "all sizes", "half zero", "half precision")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 3])
def test_the_products_of_rows_lie_within_the_bounds(kind, columns):
    generator = torch.Generator().manual_seed(0)
    rows, residual = rows_of(kind, generator), torch.randn(DIM, columns, generator=generator)
    kept = rounded(rows.float())
    middle, squares = kept.products(residual, dot)
    exact = rows.double() @ residual.double()
    assert ((exact - middle).square() <= squares).all()
    lengths = kept.steps[:, None] * torch.linalg.vector_norm(residual, dim=0)
    torch.testing.assert_close(squares, 21.07 * lengths.square(), rtol=1e-3, atol=0)


def test_atoms_of_two_checkpoints_lie_within_the_bounds():
    generator = torch.Generator().manual_seed(5)
    residual, blocks, most = torch.randn(3 * DIM, 2, generator=generator), [], 0
    for t, dim in enumerate((DIM, 2 * DIM)):
        rows, scale = torch.randn(N, dim, generator=generator), 10 ** torch.randn(N, generator=generator)
        blocks.append(Block(CountedRows(rows), scale, None, None, rounded(rows, t)))
        most = most + scale * torch.linalg.vector_norm(rows, dim=1)
    atoms = BlockAtoms(tuple(blocks), 1000)
    low, high = atoms.bounds(residual)
    exact = atoms.rows(torch.arange(N)).double() @ residual.double()
    assert ((low <= exact) & (exact <= high)).all()
    assert (high - low <= 0.1 * most[:, None] * torch.linalg.vector_norm(residual, dim=0)).all()
    assert not any(block.rows.passes for block in atoms.blocks)


def test_rounding_is_right_in_the_mean_and_off_by_less_than_a_step():
    rows = torch.randn(50, DIM, generator=torch.Generator().manual_seed(3))
    found = [rounded(rows, seed) for seed in range(400)]
    read = torch.stack([kept.steps[:, None] * kept.numbers for kept in found])
    step = found[0].steps[:, None]
    assert ((read - rows).abs() < step).all()
    # The variance of a number is a quarter of a squared step at most, and 400 are averaged.
    assert ((read.mean(0) - rows).abs() < 6 * 0.5 * step / 400**0.5).all()


def test_numbers_of_every_size_are_held():
    largest = torch.cat([torch.logspace(-37, 37, 500), torch.tensor([0.0, 1e-44])])
    rows = torch.stack([largest, -largest, largest / 3], 1)
    for offset in (0.0, 0.5, 1 - 2**-24):  # of what torch.rand gives, the largest
        kept = replace(RoundedRows.empty(*rows.shape, 0), offsets=torch.full((3,), offset))
        kept.put(range(len(rows)), rows)
        assert torch.isfinite(kept.steps).all()
        assert ((kept.steps[:, None] * kept.numbers - rows).abs() <= 1.001 * kept.steps[:, None]).all()


def test_the_errors_of_two_checkpoints_are_independent():
    """Or their squares could not be added up: equal offsets would make the errors of equal rows equal."""
    rows = torch.randn(200, DIM, generator=torch.Generator().manual_seed(4))
    pool = problem([rows, rows], [rows[:3]] * 2, rows=5)
    selector = gtp(memory_gib=200 * 2 * DIM / 2**30)
    features = CountedFeatures.of([rows, rows])
    first, second = (
        block.rounded for block in selector.pursuit_data(with_features(pool, features)).atoms.blocks
    )
    assert torch.equal(first.steps, second.steps)
    off = [(one.steps[:, None] * one.numbers - rows).flatten() for one in (first, second)]
    assert abs(float(torch.corrcoef(torch.stack(off))[0, 1])) < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("above", "share"), [(0.0, 0.9), (0.5, 0.9), (0.0, 0.05)])
def test_the_strongest_rows_are_those_of_exact_products(kind, columns, above, share):
    generator = torch.Generator().manual_seed(1)
    rows, residual = rows_of(kind, generator), torch.randn(DIM, columns, generator=generator)
    available, scale = torch.rand(N, generator=generator) < share, 10 ** torch.randn(N, generator=generator)
    atoms = atoms_of(rows, scale)
    index, found = strongest(atoms, residual, available, 10, above)
    values = alignment(atoms.rows(torch.arange(N)).double() @ residual.double())
    values = torch.where(available & (values > above), values, 0.0)
    assert index.tolist() == values.topk(10).indices.tolist()
    assert torch.equal(found, atoms.rows(index))


def test_few_rows_are_read_and_no_pass_is_made_where_the_bounds_are_tight():
    generator = torch.Generator().manual_seed(2)
    rows, residual = rows_of("normal", generator), torch.randn(DIM, 1, generator=generator)
    atoms = atoms_of(rows, torch.ones(N))
    stored = atoms.blocks[0].rows
    strongest(atoms, residual, torch.ones(N, dtype=torch.bool), 10)
    assert not stored.passes and max(stored.sizes) < N / 16
    # Where one number of each row drowns the others, a step is too long to tell the others apart.
    rows[:, 3], residual[3] = 3000, 0
    atoms = atoms_of(rows, torch.ones(N))
    strongest(atoms, residual, torch.ones(N, dtype=torch.bool), 10)
    assert atoms.blocks[0].rows.passes == 1


SETTINGS = (
    {},
    {"target_columns": "subtasks"},
    {"subspace": "pca", "subspace_dim": DIM // 2},
    {"metric": "whitened", "metric_dim": 16},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_choice_is_that_of_passes_over_the_store_and_two_of_these_suffice(settings, dtype):
    data = clusters(N, DIM, 0, count=20, wanted=3, target_rows=24)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))).Q
    pool = [data.atoms.to(dtype), (data.atoms @ turn).to(dtype)]
    target = [data.target_rows, data.target_rows @ turn]
    asked = problem(pool, target, rows=20, subtasks=["a", "b"] * 12)
    share = 1 if "subspace" not in settings else 0.5
    chosen, passes = {}, {}
    for kept, memory in (("nothing", 0.0), ("rounded", ROUNDED * share), ("whole", 4.0)):
        features = CountedFeatures.of(pool)
        chosen[kept] = gtp(memory_gib=memory, **settings).select(with_features(asked, features))
        passes[kept] = features.counted[0].passes
        assert chosen[kept].diagnostics["in_memory"] == kept
    for kept in ("rounded", "whole"):
        assert chosen[kept].indices.tolist() == chosen["nothing"].indices.tolist()
        torch.testing.assert_close(chosen[kept].weights, chosen["nothing"].weights, rtol=1e-4, atol=1e-5)
    # What is held whole is read to measure it; rounded, it is read once more to correlate it with the target.
    assert passes["rounded"] == passes["whole"] + 1 < passes["nothing"]
