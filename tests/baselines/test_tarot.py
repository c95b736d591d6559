"""TAROT, against loops in float64, a linear program, and what the official code chooses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_problems import RATES, features, problem, with_rows
from fixed_rows import POOL, TARGET, fixed_problem
from scipy.optimize import linprog

from gtp_baselines.ranking import tie_order
from gtp_baselines.tarot import TAROT, Whitening, new_rows_of_layers, potentials
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import MemoryFeatures, TensorRows
from gtp_exp.selection.base import Budget, Unit

# 1e-5 on the covariance of the fixed rows, as the official code adds
OFFICIAL_RIDGE = 1e-5 / float(np.trace(np.cov(np.array(POOL + TARGET).T, bias=True)) / 4)


def matrix(given, side):
    return getattr(given, f"{side}_gradients").matrices[-1]["sgd"].double().numpy()


def slow_whitened(pool, target, ridge):
    """Unit rows of both, whitened by the inverse of the Cholesky factor."""
    everything = np.concatenate([pool, target])
    everything = everything - everything.mean(0)
    n, dim = everything.shape
    covariance = sum(np.outer(row, row) for row in everything) / n
    lam = ridge * np.trace(covariance) / min(dim, n - 1)
    white = everything @ np.linalg.inv(np.linalg.cholesky(covariance + lam * np.eye(dim))).T
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    return white[: len(pool)], white[len(pool) :]


def slow_potentials(x, y, blur):
    """Sinkhorn's updates, one exponential at a time, from the diameter of the box around all points."""
    box = np.concatenate([x, y])
    epsilon = float(((box.max(0) - box.min(0)) ** 2).sum())
    d = [[max(0.0, 2 - 2 * float(a @ b)) ** 0.5 for b in y] for a in x]

    def update_f(g, e):
        return [
            -e * np.logaddexp.reduce([(g[j] - row[j]) / e - np.log(len(y)) for j in range(len(y))])
            for row in d
        ]

    def update_g(f, e):
        return [
            -e * np.logaddexp.reduce([(f[i] - d[i][j]) / e - np.log(len(x)) for i in range(len(x))])
            for j in range(len(y))
        ]

    steps = [epsilon, epsilon]
    while steps[-1] / 4 > blur**2:
        steps.append(steps[-1] / 4)
    steps.append(blur**2)
    f, g = update_f([0.0] * len(y), steps[0]), update_g([0.0] * len(x), steps[0])
    for e in steps:
        f, g = (
            [(a + b) / 2 for a, b in zip(f, update_f(g, e), strict=True)],
            [(a + b) / 2 for a, b in zip(g, update_g(f, e), strict=True)],
        )
    return update_f(g, blur**2)


def slow_order(pool, target, ridge, cost, limit):
    """All of the layers that fit, then the next by its potentials."""
    x, y = slow_whitened(pool, target, ridge)
    cosine = y @ x.T
    lists = [sorted(range(len(x)), key=lambda i: -cosine[j, i]) for j in range(len(y))]
    chosen: list[int] = []
    for depth in range(len(x)):
        layer = sorted({one[depth] for one in lists} - set(chosen), key=lambda i: -cosine[:, i].max())
        if sum(cost[i] for i in chosen + layer) > limit:
            f = slow_potentials(x[layer], y, 0.01)
            return chosen + [layer[k] for k in sorted(range(len(layer)), key=lambda k: -f[k])]
        chosen += layer
    return chosen


@pytest.mark.parametrize("subtasks", [1, 3])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 6, 10, 23, 40])
def test_the_rows_are_those_of_the_slow_layers(rows, ridge, subtasks):
    given = with_rows(problem(subtasks=subtasks), rows)
    expected = slow_order(matrix(given, "pool"), matrix(given, "target"), ridge, [1] * 40, rows)[:rows]
    assert TAROT(ridge=ridge).select(given).indices.tolist() == expected


def test_fewer_rows_than_dimensions_share_the_ridge_of_those_they_span():
    given = problem(dim=128)
    expected = slow_order(matrix(given, "pool"), matrix(given, "target"), 0.5, [1] * 40, 10)[:10]
    selection = TAROT(ridge=0.5).select(given)
    assert selection.indices.tolist() == expected
    white, aims = slow_whitened(matrix(given, "pool"), matrix(given, "target"), 0.5)
    assert selection.scores.tolist() == pytest.approx((white @ aims.T).max(1).tolist(), abs=1e-5)


def test_a_budget_in_tokens_takes_layers_by_their_tokens():
    given = replace(problem(), budget=Budget(Unit.TOKENS, 250))
    cost = given.n_tokens.tolist()
    order = slow_order(matrix(given, "pool"), matrix(given, "target"), 1.0, cost, 250)
    assert sum(cost[i] for i in order) > 250
    expected = given.budget.take(torch.tensor(order), given.n_tokens)
    selection = TAROT().select(given)
    assert torch.equal(selection.indices, expected)
    assert 0 < selection.diagnostics["rows_of_whole_layers"] < len(expected)


@pytest.mark.parametrize("tokens", range(20, 400, 20))
def test_a_budget_in_tokens_is_used_while_any_row_fits(tokens):
    given = replace(problem(), budget=Budget(Unit.TOKENS, tokens))
    chosen = TAROT().select(given).indices
    left = torch.ones(len(given.n_tokens), dtype=torch.bool)
    left[chosen] = False
    assert not left.any() or int(given.n_tokens[chosen].sum() + given.n_tokens[left].min()) > tokens


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, [9]),
        (2, [0, 9]),
        (4, [0, 8, 9, 13]),
        (5, [0, 6, 8, 9, 13]),
        (7, [0, 6, 7, 8, 9, 11, 13]),
        (9, [0, 1, 4, 6, 7, 8, 9, 11, 13]),
        (11, [0, 1, 2, 4, 6, 7, 8, 9, 11, 12, 13]),
    ],
)
def test_the_rows_are_those_of_the_official_code(rows, expected):
    """`fixed_size` of tarot/data_selector.py of github.com/vita-epfl/TAROT at commit bbb6ce2 with geomloss
    0.3.1, on features whitened by the lines of `get_wfd` in float32, their product with the whitening matrix
    put right: the code multiplies by its transpose, which does not make the covariance the identity."""
    assert sorted(TAROT(ridge=OFFICIAL_RIDGE).select(fixed_problem(rows)).indices.tolist()) == expected


def test_scores_and_potentials_are_those_of_the_official_code():
    """As above; the potentials are those of the first six rows against all target rows."""
    given = fixed_problem(3)
    pool, target = given.pool_gradients.features(0, "sgd"), given.target_gradients.features(0, "sgd")
    cosines = [
        [0.96511, -0.24322, 0.62424, -0.63134, -0.66126],
        [-0.50465, -0.03594, 0.07590, 0.27134, 0.55807],
        [-0.18900, -0.82826, -0.29322, -0.49769, 0.02944],
        [-0.35739, -0.63953, -0.71840, -0.40252, -0.32018],
        [0.05940, -0.62860, 0.21424, -0.40015, 0.18938],
        [-0.61494, -0.44992, -0.94374, -0.12013, -0.02623],
    ]
    scores = TAROT(ridge=OFFICIAL_RIDGE).select(given).scores[:6].tolist()
    assert scores == pytest.approx([max(row) for row in cosines], abs=1e-4)
    whitening = Whitening.of([pool, target], OFFICIAL_RIDGE)
    x, y = whitening(pool.matrix[:6]), whitening(target.matrix)
    assert torch.allclose(x @ y.T, torch.tensor(cosines), atol=1e-4)
    box = torch.cat([x, y])
    f = potentials(torch.cdist(x, y).double(), float((box.amax(0) - box.amin(0)).norm()), 0.01)
    official = [0.0348611, 0.4293863, 0.8824903, 0.9192756, 0.6359986, 0.7867468]
    assert f.tolist() == pytest.approx(official, abs=1e-3)


def test_a_layer_that_fills_the_budget_is_the_last():
    """The official code goes on with a whole layer here, since its slice of the last 0 rows is all rows."""
    selection = TAROT(ridge=OFFICIAL_RIDGE).select(fixed_problem(3))
    assert sorted(selection.indices.tolist()) == [0, 9, 13]
    assert selection.diagnostics["whole_layers"] == 1


def test_the_potentials_all_but_solve_the_transport():
    """A dual feasible pair is at most the linear program's optimum; f with its best g comes near it."""
    generator = torch.Generator().manual_seed(3)
    d = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    rows = [np.kron(np.eye(7)[i], np.ones(5)) for i in range(7)]
    columns = [np.kron(np.ones(7), np.eye(5)[j]) for j in range(5)]
    optimum = linprog(d.flatten().numpy(), A_eq=np.stack(rows + columns), b_eq=[1 / 7] * 7 + [1 / 5] * 5).fun
    f = potentials(d, 2.0, 0.01)
    dual = float(f.mean() + (d - f[:, None]).amin(0).mean())
    assert 0.9 * optimum < dual <= optimum + 1e-9


def test_whitening_makes_the_covariance_of_all_chunks_the_identity():
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[3.0, 0, 0], [2, 0.5, 0], [-1, 1, 0.1]])
    rows = torch.randn(6000, 3, generator=generator) @ mix + torch.tensor([5.0, -2, 1])
    whitening = Whitening.of([TensorRows(rows[:5000]), TensorRows(rows[5000:])], 1e-9)
    white = (rows - whitening.mean).double() @ torch.linalg.inv(whitening.factor.double()).T
    assert torch.allclose(white.T @ white / 6000, torch.eye(3, dtype=torch.float64), atol=1e-3)


def test_equals_follow_the_order_of_ties_and_not_of_the_pool():
    ties = torch.tensor([3, 0, 2, 1])
    cosines = torch.tensor([[0.5, 0.5, 0.9, 0.5]])
    layers = new_rows_of_layers(cosines, ties, torch.ones(4, dtype=torch.long), 4)
    assert torch.cat(layers).tolist() == [2, 3, 0, 1]


def test_copies_of_gradients_are_told_apart_by_their_texts():
    given = problem()
    one = given.pool_gradients.matrices[-1]["sgd"][torch.arange(40) % 5]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    ids = []
    for index in (torch.arange(40), order):
        candidates = [given.candidates[i] for i in index.tolist()]
        pool = MemoryFeatures(({"sgd": one[index]},) * 2, RATES)
        asked = replace(given, candidates=candidates, pool_gradients=pool)
        ids.append([candidates[i].id for i in TAROT().select(asked).indices.tolist()])
    assert ids[0] == ids[1]
    first = tie_order(given.candidates, given.seed).tolist()
    assert int(ids[0][0].removeprefix("row-")) == min(
        (i for i in range(40) if i % 5 == int(ids[0][0].removeprefix("row-")) % 5), key=first.index
    )


@pytest.mark.parametrize("at_most", [12, 2048])
def test_in_domain_no_row_is_its_own_nearest(at_most):
    given = problem(targets=None)
    pool = matrix(given, "pool")
    white, _ = slow_whitened(pool, pool[:0], 1.0)
    rows = range(40) if at_most > 40 else [k * 40 // at_most for k in range(at_most)]
    expected = [max(float(white[i] @ white[j]) for j in rows if j != i) for i in range(40)]
    selection = TAROT(in_domain_rows=at_most).select(given)
    assert selection.scores.tolist() == pytest.approx(expected, abs=1e-4)
    assert selection.diagnostics["targets"] == min(at_most, 40)


@pytest.mark.parametrize("checkpoint", [0, 1])
def test_one_checkpoint_is_read(checkpoint):
    given = problem()
    other = replace(given, pool_gradients=features(40, 16, 9), target_gradients=features(6, 16, 8))
    parts = {}
    for side in ("pool_gradients", "target_gradients"):
        mixed = [getattr(other, side).matrices[t] for t in range(2)]
        mixed[checkpoint] = getattr(given, side).matrices[checkpoint]
        parts[side] = MemoryFeatures(tuple(mixed), RATES)
    chooser = TAROT(checkpoint=checkpoint)
    assert torch.equal(chooser.select(given).scores, chooser.select(replace(given, **parts)).scores)


@pytest.mark.parametrize("name", ["ridge", "blur", "in_domain_rows"])
def test_zero_is_refused(name):
    with pytest.raises(UserError, match=f"selector.{name}=0"):
        TAROT(**{name: 0})


def test_gradients_that_do_not_differ_are_refused():
    given = problem()
    same = {"sgd": torch.full((1, 16), 0.1)}
    pool, target = (MemoryFeatures(({"sgd": same["sgd"].expand(n, 16)},) * 2, RATES) for n in (40, 6))
    with pytest.raises(UserError, match="all the same"):
        TAROT().select(replace(given, pool_gradients=pool, target_gradients=target))


def test_a_ridge_that_rounding_swallows_is_refused():
    """300 rows span no more than 300 of 512 dimensions: without a ridge the covariance has no inverse."""
    rows = torch.randn(300, 512, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 512)
    with pytest.raises(UserError, match="selector.ridge=1e-16 is lost in the rounding .*raise it"):
        Whitening.of([TensorRows(rows)], 1e-16)
