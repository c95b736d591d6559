"""The pursuit with equal weights is a brute-force search where it holds all rows, and close to one else."""

from __future__ import annotations

import pytest
import torch
from planted import clusters
from problems import gtp, problem

from gtp_exp.errors import UserError
from gtp_exp.selection.atoms.matrix import BlockAtoms, tensor_atoms
from gtp_exp.selection.solvers import greedy
from gtp_exp.selection.solvers.greedy import Greedy
from gtp_exp.selection.solvers.pursuit import PursuitProblem


def cosine(unit, b, chosen):
    total = unit[chosen].sum(0)
    return float(total @ b / (total.norm() * b.norm()))


def brute_force(atoms, b, size, exchanges, cost=None, capacity=0):
    """Try every row at every step and every exchange."""
    unit = torch.nn.functional.normalize(atoms.double(), dim=1)
    rows = [i for i in range(len(atoms)) if float(unit[i] @ b) > 0]
    price = [0] * len(atoms) if cost is None else cost.tolist()
    chosen: list[int] = []

    def allowed(others, passed=()):
        spent = sum(price[i] for i in others)
        return [i for i in rows if i not in others and i not in passed and spent + price[i] <= capacity]

    while len(chosen) < size and (left := allowed(chosen)):
        chosen.append(max(left, key=lambda i: cosine(unit, b, [*chosen, i])))
    for _ in range(exchanges):
        before, out = list(chosen), []
        for place in range(len(chosen)):
            others = chosen[:place] + chosen[place + 1 :]
            if left := allowed(others, [chosen[place], *out]):
                best = max(left, key=lambda i, o=others: cosine(unit, b, [*o, i]))
                if cosine(unit, b, [*others, best]) > cosine(unit, b, chosen) + 1e-12:
                    out.append(chosen[place])
                    chosen[place] = best
        if chosen == before:
            break
    return chosen


def posed(n, m, seed=0, noise=0.4):
    data = clusters(n, m, seed, count=10, wanted=3, noise=noise)
    return data.atoms, data.target_rows.double().mean(0)


@pytest.mark.parametrize("n, m, size", [(60, 30, 5), (80, 12, 30), (40, 8, 1)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exchanges", [0, 1, 3])
def test_it_is_the_exact_search_where_all_rows_are_held(n, m, size, seed, exchanges):
    atoms, b = posed(n, m, seed)
    pursuit = Greedy(exchanges=exchanges).pursue(PursuitProblem(tensor_atoms(atoms), b[:, None], size, 0.0))
    assert pursuit.support.tolist() == brute_force(atoms, b, size, exchanges)


def test_a_cost_bounds_the_rows_of_the_exact_search():
    atoms, b = posed(60, 20)
    cost = torch.randint(5, 60, (60,), generator=torch.Generator().manual_seed(1))
    given = PursuitProblem(tensor_atoms(atoms), b[:, None], 60, 0.0, cost=cost, capacity=300)
    chosen = Greedy().pursue(given).support
    assert chosen.tolist() == brute_force(atoms, b, 60, 3, cost, 300)
    assert 200 < int(cost[chosen].sum()) <= 300


@pytest.mark.parametrize("size, steps", [(100, 10), (400, 20)])
def test_with_a_window_it_loses_little_of_the_cosine_and_takes_few_passes(monkeypatch, size, steps):
    data, passes = clusters(6000, 128, 0), []
    b = data.target_rows.double().mean(0)

    class Counting(BlockAtoms):
        def correlate_own(self, residual):
            passes.append(residual)
            return super().correlate_own(residual)

    given = PursuitProblem(Counting(tensor_atoms(data.atoms).blocks, 6000), b[:, None], size, 0.0)
    found = {}
    for width in (200, 6000):
        monkeypatch.setattr(greedy, "WINDOW", width)
        passes.clear()
        pursuit = Greedy(steps=steps).pursue(given)
        assert len(pursuit.support) == size
        found[width] = cosine(data.atoms.double(), b, pursuit.support)
        assert len(passes) <= 1 + 2 * steps + 3
    assert found[200] >= 0.999 * found[6000]
    ranked = (data.atoms.double() @ b).topk(size).indices
    assert found[200] > cosine(data.atoms.double(), b, ranked)


def test_the_result_is_what_it_says():
    data = clusters(600, 64, seed=1)
    atoms = data.atoms * torch.linspace(0.2, 3, 600)[:, None]
    b = data.target_rows.double().mean(0)
    pursuit = Greedy().pursue(PursuitProblem(tensor_atoms(atoms), b[:, None], 20, 0.0))
    rows = atoms[pursuit.support].double()
    shares = pursuit.weights[:, 0] * rows.norm(dim=1)
    assert torch.allclose(shares, shares[:1].expand(20))
    left = b - rows.T @ pursuit.weights[:, 0]
    assert float(left @ (rows.T @ pursuit.weights[:, 0])) == pytest.approx(0, abs=1e-9)  # the best scale
    assert pursuit.residual == pytest.approx(float(left.norm() / b.norm()), rel=1e-9)


@pytest.mark.parametrize("window", [50, 2000])
def test_near_copies_are_passed_over(monkeypatch, window):
    monkeypatch.setattr(greedy, "WINDOW", window)
    data = clusters(300, 64, seed=2)
    nearly = data.atoms + 1e-3 * torch.randn(data.atoms.shape, generator=torch.Generator().manual_seed(0))
    atoms = torch.nn.functional.normalize(torch.cat([data.atoms, nearly]), dim=1)
    b = data.target_rows.double().mean(0)[:, None]

    def repeats(**options):
        pursuit = Greedy(steps=6).pursue(PursuitProblem(tensor_atoms(atoms), b, 30, 0.0, **options))
        assert not set(pursuit.near_copies.tolist()) & set(pursuit.support.tolist())
        return int(((atoms[pursuit.support] @ atoms[pursuit.support].T).triu(1) > 0.98).sum())

    assert repeats() > 0 and repeats(near_copy_cosine=0.98) == 0


def test_gtp_asks_once_for_the_whole_budget_and_weighs_rows_the_same():
    data = clusters(400, 16, 0, count=20, wanted=3, target_rows=24)
    selection = gtp(solver=Greedy()).select(problem([data.atoms], [data.target_rows], rows=100))
    report = selection.diagnostics
    assert len(report["rows_by_round"]) == 1 and report["rows_by_fill"] == 0  # 100 rows of 16 numbers
    assert report["refit"] is None and "greedy" in report["cross_validation_skipped"]
    assert (selection.weights == 1).all()


def test_several_target_columns_are_refused():
    with pytest.raises(UserError, match="target_columns"):
        Greedy().pursue(PursuitProblem(tensor_atoms(torch.eye(4)), torch.ones(4, 2).double(), 2, 0.0))


@pytest.mark.parametrize("key, value", [("steps", 0), ("exchanges", -1)])
def test_a_useless_option_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=rf"selector\.solver\.{key}={value}"):
        Greedy(**{key: value})
