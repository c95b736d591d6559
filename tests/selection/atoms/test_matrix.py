"""Passes over blocks of sketches equal products with the dense matrix of atoms."""

from __future__ import annotations

import pytest
import torch

from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms import matrix
from gtp_exp.selection.atoms.matrix import Block, BlockAtoms, dot, tensor_atoms


def blocks(n=300, d=24, dtype=torch.float32, k=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(3):
        rows = torch.randn(n, d, generator=generator).to(dtype)
        basis = None
        if k is not None:
            basis = torch.linalg.qr(torch.randn(d, k, generator=generator)).Q.T.contiguous()
        blocks.append(Block(TensorRows(rows), torch.rand(n, generator=generator), basis))
    return tuple(blocks)


def dense(parts):
    columns = []
    for block in parts:
        rows = block.rows.matrix.double()
        rows = rows if block.basis is None else rows @ block.basis.double().T
        columns.append(rows * block.scale.double()[:, None])
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [None, 7])
@pytest.mark.parametrize("chunk_rows", [1, 37, 10_000])
@pytest.mark.parametrize("columns", [1, 4])
def test_products_equal_the_dense_ones(dtype, k, chunk_rows, columns):
    parts = blocks(dtype=dtype, k=k)
    atoms, matrix = BlockAtoms(parts, chunk_rows), dense(parts)
    n, m = atoms.shape
    assert (n, m) == matrix.shape
    generator = torch.Generator().manual_seed(1)
    residual = torch.randn(m, columns, generator=generator, dtype=torch.float64)
    coefficients = torch.randn(n, columns, generator=generator, dtype=torch.float64)
    assert torch.allclose(atoms.correlate(residual).double(), matrix @ residual, atol=1e-4)
    assert torch.allclose(atoms.combine(coefficients), matrix.T @ coefficients, atol=1e-3)
    index = torch.tensor([5, 0, 299, 5])
    assert torch.allclose(atoms.rows(index).double(), matrix[index], atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_half_width_store_is_accumulated_in_float32(n, dtype):
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(n, 512, generator=generator).to(dtype)
    columns = torch.randn(512, 1, generator=generator)
    exact = rows.double() @ columns.double()
    assert torch.allclose(dot(rows, columns).double(), exact, atol=2e-4)


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_depends_neither_on_its_chunk_nor_on_the_threads(mkl, dtype, monkeypatch):
    if mkl and not matrix._mkl_is_quick():
        pytest.skip("this machine's torch.mv is not MKL's on an Intel processor")
    monkeypatch.setattr(matrix, "_mkl_is_quick", lambda: mkl)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2051, 65, generator=generator).to(dtype)
    column = torch.randn(65, 1, generator=generator)
    whole, threads = dot(rows, column), torch.get_num_threads()
    for size in (1, 2, 3, 6, 513, 1025):
        assert torch.equal(torch.cat([dot(chunk, column) for chunk in rows.split(size)]), whole)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(dot(rows, column), whole)
            assert torch.equal(dot(rows[1:], column), whole[1:])
    finally:
        torch.set_num_threads(threads)


def test_a_tensor_is_taken_as_it_is():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tensor_atoms(rows).rows(torch.arange(10)), rows)
