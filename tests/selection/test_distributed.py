"""Several processes choose what one chooses, and send little for it."""

from __future__ import annotations

import json

import forked
import one_of_several
import pytest
import torch
from one_of_several import CASES, OF_THREE, N

from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection.atoms.sharded import Slice, share_of
from gtp_exp.selection.solvers.pursuit import SLACK


@pytest.fixture(scope="module")
def chosen_by(tmp_path_factory):
    """Return by number of processes what each rank chose, by case."""
    folder = tmp_path_factory.mktemp("chosen")
    for size in (1, 2, 3):
        forked.connected(size, one_of_several.main, folder)
    return {
        size: [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]
        for size in (1, 2, 3)
    }


@pytest.mark.parametrize(
    ("size", "name"), [*((2, name) for name in CASES), *((3, name) for name in OF_THREE)]
)
def test_the_choice_is_that_of_one_process(chosen_by, name, size):
    (alone,) = chosen_by[1]
    for rank in chosen_by[size]:
        assert rank[name].get("error") == alone[name].get("error")
        if "indices" in alone[name]:
            assert rank[name]["indices"] == alone[name]["indices"]
            weights = (torch.tensor(one[name]["weights"]) for one in (rank, alone))
            torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_a_row_that_is_not_finite_is_named_by_every_process(chosen_by):
    assert {rank["not finite"]["error"] for ranks in chosen_by.values() for rank in ranks} == {
        chosen_by[1][0]["not finite"]["error"]
    }
    assert "is not finite" in chosen_by[1][0]["not finite"]["error"]


@pytest.mark.parametrize("size", [2, 3])
def test_what_is_sent_are_the_rows_looked_at(chosen_by, size):
    """A pass sends 2 M candidates and some slack, m numbers each, and every process's offer of as many.

    Only to begin and to end, numbers are sent for each of the N rows."""
    m, wanted = 2 * 64, 90
    looked_at = 2 * wanted + SLACK
    for rank in chosen_by[size]:
        passes = rank["one round"]["passes"]
        assert passes > 3
        assert 0 < rank["one round"]["sent"] <= (passes + 1) * looked_at * (m + 2 * size) + 8 * N
    assert chosen_by[1][0]["one round"]["sent"] == 0


@pytest.mark.parametrize("n", [1, 2, 5, 1023, 2048, 5000, 100_000])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_are_the_whole_without_overlap(n, size):
    shares = [share_of(n, rank, size) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    if n >= 1024 * size:
        assert all(share.start % 1024 == 0 and len(share) for share in shares)


def test_a_slice_counts_from_its_own_start():
    matrix = torch.arange(40.0).view(20, 2)
    part = Slice(TensorRows(matrix), range(5, 17))
    assert part.shape == (12, 2) and torch.equal(part.rows(torch.tensor([0, 11])), matrix[[5, 16]])
    for size in (1, 5, 100):
        chunks = list(part.chunks(size))
        assert [start for start, _ in chunks] == list(range(0, 12, size))
        assert torch.equal(torch.cat([chunk for _, chunk in chunks]), matrix[5:17])
