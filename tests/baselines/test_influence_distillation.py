"""First-order Influence Distillation, against its formulas and the official code's turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from baseline_problems import problem, with_rows
from fixed_rows import fixed_problem
from scipy.optimize import minimize

from gtp_baselines.aggregation import Aggregation
from gtp_baselines.influence_distillation import InfluenceDistillation, objective_weights
from gtp_baselines.ranking import tie_order
from gtp_exp.errors import UserError
from gtp_exp.selection.base import Budget, Unit


def slow_cosines(given, checkpoint):
    """p [N, n], one pair of rows at a time."""
    x = given.pool_gradients.matrices[checkpoint]["less"].double().numpy()
    y = given.target_gradients.matrices[checkpoint]["sgd"].double().numpy()
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in y] for a in x])


def slow_turns(given, p, ties, size):
    """In turn, each target row takes its best candidate left, first of equals."""
    turns, chosen = tie_order(given.target, given.seed).tolist(), []
    while len(chosen) < size:
        column = p[:, turns[len(chosen) % len(turns)]]
        chosen.append(max((i for i in ties if i not in chosen), key=lambda i: column[i]))
    return chosen


@pytest.mark.parametrize("checkpoint", [0, -1])
@pytest.mark.parametrize("rows", [1, 6, 17, 40])
def test_target_rows_take_turns(rows, checkpoint):
    given = with_rows(problem(), rows)
    p = slow_cosines(given, checkpoint)
    selection = InfluenceDistillation(checkpoint=checkpoint).select(given)
    assert selection.indices.tolist() == slow_turns(given, p, range(40), rows)
    assert selection.scores.tolist() == pytest.approx(p.max(1).tolist(), abs=1e-6)
    assert set(selection.weights.tolist()) == {1.0}


def test_a_budget_in_tokens_cuts_the_turns():
    given = replace(problem(), budget=Budget(Unit.TOKENS, 200))
    order = torch.tensor(slow_turns(given, slow_cosines(given, -1), range(40), 40))
    expected = given.budget.take(order, given.n_tokens)
    assert torch.equal(InfluenceDistillation().select(given).indices, expected)


def test_copies_of_a_gradient_fall_by_their_texts():
    given = with_rows(problem(), 12)
    copied = tuple({d: m[torch.arange(40) % 4] for d, m in t.items()} for t in given.pool_gradients.matrices)
    given = replace(given, pool_gradients=replace(given.pool_gradients, matrices=copied))
    ties = tie_order(given.candidates, given.seed).tolist()
    expected = slow_turns(given, slow_cosines(given, -1).round(6), ties, 12)
    assert InfluenceDistillation().select(given).indices.tolist() == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (3, [0, 13, 9]),
        (5, [0, 13, 9, 11, 4]),
        (9, [0, 13, 9, 11, 4, 7, 12, 1, 8]),
        (14, [0, 13, 9, 11, 4, 7, 12, 1, 8, 2, 6, 10, 3, 5]),
    ],
)
def test_the_rows_are_those_of_the_official_turns(rows, expected):
    """`_perform_selection_rr` of infdist/distil.py of github.com/MNikdan/influence_distillation at commit
    fdd5210, on the cosines of the fixed rows, its random order of the target rows put in their own order."""
    given = fixed_problem(rows)
    in_turn = [given.target[j] for j in tie_order(given.target, given.seed)]  # texts whose turns are in order
    assert InfluenceDistillation().select(replace(given, target=in_turn)).indices.tolist() == expected


def test_for_one_target_the_official_code_ranks():
    """As above, with the mean of the cosines over the target rows as the only column."""
    chooser = InfluenceDistillation(aggregation=Aggregation.MEAN)
    assert chooser.select(fixed_problem(6)).indices.tolist() == [13, 9, 11, 0, 4, 1]


@pytest.mark.parametrize("subtasks", [2, 4])
def test_the_best_subtask_ranks_where_asked(subtasks):
    given = problem(subtasks=subtasks)
    p = slow_cosines(given, -1)
    best = np.max([p[:, s::subtasks].mean(1) for s in range(subtasks)], axis=0)
    chooser = InfluenceDistillation(aggregation=Aggregation.MAX_SUBTASK)
    assert chooser.select(given).indices.tolist() == np.argsort(-best, kind="stable")[:10].tolist()


def test_the_weights_solve_the_objective():
    """A general solver over all 40 rows, at the lam that belongs to the threshold."""
    given = with_rows(problem(), 7)
    p = slow_cosines(given, -1).mean(1)
    top = np.argsort(-p)
    tau = p[top[7]]
    lam = (p[top[:7]] - tau).sum() / 7
    solved = minimize(
        lambda w: -p @ w + lam / 2 * w @ w,
        np.full(40, 7 / 40),
        jac=lambda w: -p + lam * w,
        bounds=[(0, None)] * 40,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 7},
        options={"ftol": 1e-12, "maxiter": 500},
    ).x
    chooser = InfluenceDistillation(aggregation=Aggregation.MEAN, use_objective=True)
    selection = chooser.select(given)
    assert selection.indices.tolist() == top[:7].tolist()
    assert np.allclose(selection.weights.numpy(), solved[top[:7]], atol=1e-3)
    assert np.allclose(np.delete(solved, top[:7]), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("p", "chosen", "expected"),
    [
        ([5.0, 3.0, 1.0, 0.0], [0, 1], [4 / 3, 2 / 3]),
        ([5.0, 3.0, 1.0, 0.0], [0, 2], [5 / 3, 1 / 3]),  # row 1 did not fit the tokens
        ([5.0, 3.0], [0, 1], [1.0, 1.0]),  # all of them
        ([2.0, 2.0, 2.0], [1, 2], [1.0, 1.0]),  # none above the rest
    ],
)
def test_the_threshold_is_the_largest_p_below_the_choice(p, chosen, expected):
    weights = objective_weights(torch.tensor(p), torch.tensor(chosen))
    assert weights.tolist() == pytest.approx(expected)


def test_weights_of_several_targets_are_refused():
    with pytest.raises(UserError, match="aggregation=mean"):
        InfluenceDistillation(use_objective=True)
