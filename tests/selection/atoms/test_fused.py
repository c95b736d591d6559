"""The compiled pass over narrow rows equals the plain one, row by row; only large pools ask for it."""

from __future__ import annotations

import shutil

import pytest
import torch

from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms import fused
from gtp_exp.selection.atoms.matrix import Block, BlockAtoms

DIM = 96


@pytest.fixture
def fresh():
    """No kernel of another test, and none left for the next."""
    fused._compiled.cache_clear()
    yield
    fused._compiled.cache_clear()


def numbers(n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = 30 if dtype == torch.int8 else 1
    return (size * torch.randn(n, DIM, generator=generator)).to(dtype), torch.randn(DIM, generator=generator)


def kernel_for(dtype):
    kernel = fused.widen_and_dot(DIM, dtype)
    if kernel is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    assert kernel is not None
    return kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_equals_the_float64_product_and_a_row_does_not_depend_on_its_chunk(fresh, dtype):
    kernel = kernel_for(dtype)
    rows, column = numbers(3000, dtype)
    whole = kernel(rows, column)
    assert whole.dtype == torch.float32
    most = rows.double().norm(dim=1) * column.norm()
    assert ((whole.double() - rows.double() @ column.double()).abs() < 1e-5 * most).all()
    for size in (1, 7, 1023, 1024, 2999):
        parts = [kernel(part, column) for part in rows[:1100].split(size)]
        assert torch.equal(torch.cat(parts), whole[:1100])


def test_a_large_pass_uses_it_and_a_small_one_does_not(fresh, monkeypatch):
    kernel_for(torch.bfloat16)
    asked = []
    plain = fused.widen_and_dot
    monkeypatch.setattr(fused, "widen_and_dot", lambda *a: asked.append(a) or plain(*a))
    rows, column = numbers(2000, torch.bfloat16)
    atoms = BlockAtoms((Block(TensorRows(rows), torch.rand(2000), None),) * 2, 300)
    residual = torch.cat([column, -column.flip(0)])[:, None]
    small = atoms.correlate(residual)
    assert not asked
    monkeypatch.setattr(fused, "WORTH", 2 * 2000 * DIM)
    large = atoms.correlate(residual)
    assert asked == [(DIM, torch.bfloat16)] * 2
    assert torch.allclose(small, large, atol=1e-4)


def test_where_nothing_can_be_compiled_the_pass_is_as_before(fresh, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    rows, column = numbers(1500, torch.bfloat16)
    atoms = BlockAtoms((Block(TensorRows(rows), torch.ones(1500), None),), 400)
    expected = atoms.correlate(column[:, None])
    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(fused, "WORTH", 1)
    caplog.set_level("INFO")
    assert torch.equal(atoms.correlate(column[:, None]), expected)
    assert "no compiler" in caplog.text


def test_a_wrong_kernel_is_not_used(fresh, monkeypatch, caplog):
    def wrong(rows, column):
        return rows.float() @ (column * 1.01)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: wrong)
    assert fused.widen_and_dot(DIM, torch.bfloat16) is None
    assert "is wrong here" in caplog.text
