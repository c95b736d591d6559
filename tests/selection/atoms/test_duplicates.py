"""Copies are found whatever the storage type, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms.duplicates import exact_copies, near_copies, row_hash


def random_rows(n, d, dtype=torch.float32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [1, 7, 64])
def test_copies_stand_for_their_lowest_index(dtype, d):
    rows = torch.arange(1, 901).float()[:, None] * random_rows(1, d) if d == 1 else random_rows(900, d)
    rows = rows.to(dtype)
    if d == 1 and dtype != torch.float32:
        rows = torch.linspace(0.5, 1, 100).to(dtype).unique()[:, None]
    n = len(rows)
    original, copy = n // 3, [n // 2, n - 1]
    rows[copy] = rows[original].clone()
    copies = exact_copies([TensorRows(rows)], row_hash(rows, 0))
    assert copies.collapsed == 2
    assert (copies.representative[copy] == original).all()
    assert int(copies.multiplicity[original]) == 3 and int(copies.multiplicity.sum()) == n
    others = torch.ones(n, dtype=torch.bool)
    others[copy] = False
    assert torch.equal(copies.representative[others], torch.arange(n)[others])


def test_all_rows_equal():
    rows = torch.ones(500, 8)
    copies = exact_copies([TensorRows(rows)], row_hash(rows, 0))
    assert copies.collapsed == 499 and int(copies.multiplicity[0]) == 500


def test_minus_zero_is_zero():
    rows = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    assert exact_copies([TensorRows(rows)], row_hash(rows, 0)).collapsed == 1


def test_a_difference_at_one_checkpoint_tells_rows_apart():
    first = torch.ones(4, 6)
    second = torch.ones(4, 6)
    second[2, 3] = 2.0
    hashes = row_hash(first, 0) + row_hash(second, 1)
    copies = exact_copies([TensorRows(first), TensorRows(second)], hashes)
    assert copies.representative.tolist() == [0, 0, 2, 0]


def test_a_hash_collision_does_not_collapse():
    rows = random_rows(50, 8)
    copies = exact_copies([TensorRows(rows)], torch.zeros(50, dtype=torch.int64))
    assert copies.collapsed == 0


def test_hashes_do_not_depend_on_the_chunk():
    rows = random_rows(1000, 16)
    whole = row_hash(rows, 3)
    pieces = torch.cat([row_hash(part, 3) for part in rows.split(77)])
    assert torch.equal(whole, pieces)
    assert not torch.equal(whole, row_hash(rows, 4))


def test_near_copies_are_greedy_in_order():
    # 0-1 and 1-2 are close, 0-2 are not: 1 goes, 2 stays, because what it repeats has gone.
    gram = torch.tensor([[1, 0.99, 0.9], [0.99, 1, 0.99], [0.9, 0.99, 1]])
    assert near_copies(gram, 0.98, kept=0).tolist() == [False, True, False]
    assert near_copies(gram, 0.98, kept=2).tolist() == [False, False, True]
    assert near_copies(gram, 0.995, kept=0).tolist() == [False, False, False]


def test_no_kept_pair_is_close_and_every_near_copy_is_close_to_a_kept_one():
    rows = torch.nn.functional.normalize(random_rows(400, 3), dim=1)
    gram = rows @ rows.T
    near = near_copies(gram, 0.95, kept=0)
    kept = (~near).nonzero().flatten()
    assert (gram[kept][:, kept].triu(1) <= 0.95).all()
    assert near.any() and (gram[near][:, kept] > 0.95).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_differ_in_a_high_bit_of_one_number_have_different_hashes(dtype):
    rows = torch.cat([torch.eye(512), -torch.eye(512)]).to(dtype)
    assert len(row_hash(rows, 0).unique()) == len(rows)
