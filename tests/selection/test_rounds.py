"""The fill behind the rounds, in a budget of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import gtp_exp
from gtp_exp.selection import rounds
from gtp_exp.selection.apart import Apart
from gtp_exp.selection.atoms.duplicates import no_copies
from gtp_exp.selection.rounds import fill_budget
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.pursuit import Pursuit

N, COSINE = 300, 0.8


@dataclass
class Watched:
    """Atoms in memory that tell which of their rows were read."""

    matrix: torch.Tensor
    read: list[int] = field(default_factory=list)

    def rows(self, index):
        self.read += index.tolist()
        return self.matrix[index]


def pursuit_of(support):
    """A pursuit that has found these rows."""
    k = len(support)
    one, none = torch.ones(k, 1, dtype=torch.float64), torch.empty(0, dtype=torch.long)
    return Pursuit(support, one, one[:, 0], 0.0, 0.0, 0.0, 1, 0.0, (), none, torch.zeros(3, 1))


def filled_behind(found, tokens, cost, seed=0):
    """Return what fills the budget behind one round that has found some rows, the atoms and the values."""
    draw = torch.Generator().manual_seed(seed)
    rows, correlation = torch.randn(N, 3, generator=draw), torch.randn(N, 1, generator=draw)
    atoms = Watched(rows)
    apart = Apart(no_copies(N), atoms, COSINE)
    filled = fill_budget(
        lambda **_: pursuit_of(found),
        correlation=correlation,
        apart=apart,
        rows=None,
        tokens=tokens,
        cost=cost,
        round_rows=N,
        max_rounds=1,
    )
    return filled, atoms, correlation[:, 0].double()


@pytest.mark.parametrize("tokens", [120, 400, 1500, 9000])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_do_not_fit_change_nothing_in_what_fills_a_budget_of_tokens(tokens, seed, monkeypatch):
    monkeypatch.setattr(rounds, "BLOCK", 16)
    cost = torch.randint(10, 60, (N,), generator=torch.Generator().manual_seed(seed))
    found = torch.tensor([3, 7])
    filled, atoms, value = filled_behind(found, tokens, cost, seed)
    value = torch.where(value > 0, value / cost, value)
    unit = torch.nn.functional.normalize(atoms.matrix, dim=1)
    expected, left, near = found.tolist(), tokens - int(cost[found].sum()), []
    order = [i for i in value.argsort(descending=True, stable=True).tolist() if i not in expected]
    for i in order:  # as a slow loop has it, which compares every row
        if (unit[expected] @ unit[i] > COSINE).any():
            near.append(i)
        elif int(cost[i]) <= left:
            expected.append(i)
            left -= int(cost[i])
    for i in near:
        if int(cost[i]) <= left:
            expected.append(i)
            left -= int(cost[i])
    assert filled.indices.tolist() == expected


def test_where_nothing_fits_no_row_is_read():
    """Each was compared with all chosen rows before it was passed over."""
    filled, atoms, _ = filled_behind(torch.tensor([3, 7]), 39, torch.full((N,), 15))
    assert filled.indices.tolist() == [3, 7] and not set(atoms.read) - {3, 7}
    cost = torch.where(torch.arange(N) < 20, 2, 15)
    filled, atoms, _ = filled_behind(torch.tensor([103, 107]), 39, cost)
    assert len(filled.indices) == 6 and not set(atoms.read) - {103, 107, *range(20)}


@dataclass
class Counted:
    """CoSaMP that counts its pursuits."""

    name: str = "cosamp"
    pursuits: int = 0

    def pursue(self, problem):
        self.pursuits += 1
        return CoSaMP().pursue(problem)


def test_near_copies_of_chosen_rows_cost_few_pursuits(monkeypatch):
    """Rows of a few kinds: every kind is chosen soon, and what is left of it repeats what is chosen."""
    draw = torch.Generator().manual_seed(0)
    kinds = torch.randn(20, 64, generator=draw)
    pool = kinds[torch.arange(4000) % 20] + 0.02 * torch.randn(4000, 64, generator=draw)
    target = kinds + 0.5 * torch.randn(20, 64, generator=draw)

    def chosen():
        solver = Counted()
        gtp = gtp_exp.GTP(solver=solver, regularisation="fixed", round_rows=5)
        return gtp_exp.select(pool, target, budget=40, selector=gtp).diagnostics, solver.pursuits

    bounded, fewer = chosen()
    monkeypatch.setattr(rounds, "FRUITLESS", 10**9)
    unbounded, pursuits = chosen()
    assert sum(bounded["rows_by_round"]) == sum(unbounded["rows_by_round"]) == 20
    assert fewer < pursuits / 2 and fewer <= 4 * len(bounded["rows_by_round"]) + 4


@pytest.mark.parametrize("length", [1.0, 2.0**-46])
def test_near_copies_are_told_however_short_their_rows_are(length):
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    apart = Apart(no_copies(3), Watched(length * rows), 0.98)
    assert apart.repeats(torch.tensor([1, 2]), torch.tensor([0])).tolist() == [False, True]
    assert apart.among(torch.arange(3)).fill_diagonal_(False).nonzero().tolist() == [[0, 2], [2, 0]]
