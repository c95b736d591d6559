"""Target rows that say the same are on one side of every fold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import clusters
from problems import gtp, problem

from conftest import conversation
from gtp_exp.data.examples import Example
from gtp_exp.data.links import linked_groups
from gtp_exp.gradients.features import TensorRows
from gtp_exp.selection import alike
from gtp_exp.selection.alike import alike_rows
from gtp_exp.selection.atoms.duplicates import exact_copies, row_hash
from gtp_exp.selection.atoms.matrix import tensor_atoms
from gtp_exp.selection.cross_validation import pool_folds, target_folds
from gtp_exp.selection.solvers.greedy import Greedy


def sides(rows, groups, alike, count=4, seed=0):
    """Return by fold the rows that are held out; rows are unit vectors, so means tell who is in them."""
    folds = target_folds(rows, groups, count, seed, alike)
    assert not isinstance(folds, str), folds
    return [set((fold.held_out.nan_to_num().abs().sum(1) > 0).nonzero().flatten().tolist()) for fold in folds]


def test_rows_of_one_kind_share_a_fold_and_folds_are_even():
    alike = [[0, 5, 9], [1, 2], [3], [4], [6], [7, 8], [10], [11]]
    held = sides(torch.eye(12), [""] * 12, alike)
    assert sorted(i for side in held for i in side) == list(range(12))
    assert all(any(set(unit) <= side for side in held) for unit in alike)
    assert {len(side) for side in held} == {3}


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_all_different_are_dealt_in_turn(seed):
    """As they were before any were kept together: group by group, on from where the last one ended."""
    groups = ["a"] * 7 + ["b"] * 6
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(7, generator=generator), 7 + torch.randperm(6, generator=generator)])
    expected = [set(order[k::4].tolist()) for k in range(4)]
    assert sides(torch.eye(13), groups, None, seed=seed) == expected
    assert sides(torch.eye(13), groups, [[i] for i in range(13)], seed=seed) == expected


@pytest.mark.parametrize(
    "groups, alike, told",
    [
        ([""] * 8, [[0, 1, 2, 3], [4, 5], [6, 7]], "8 target rows of 3 kinds"),
        (["a"] * 2 + ["b"] * 6, [[0, 1], [2], [3], [4], [5], [6], [7]], "subtask 'a' are all alike"),
    ],
)
def test_rows_that_cannot_be_divided_are_told(groups, alike, told):
    folds = target_folds(torch.eye(8), groups, 4, 0, alike)
    assert isinstance(folds, str) and told in folds


def test_alike_are_equal_questions_near_gradients_and_what_links_them():
    questions = ["What is 2?", "what is  2", "Who?", "When?", "Why?", "How?"]
    examples = [conversation(i, question, f"Answer {i}.") for i, question in enumerate(questions)]
    rows = torch.eye(6)
    rows[3] = rows[1] + 0.1 * rows[3]  # the cosine to row 1 is 0.995
    assert alike_rows(examples, rows, 0.98) == [[0, 1, 3], [2], [4], [5]]
    assert alike_rows(examples, rows, 0.999) == [[0, 1], [2], [3], [4], [5]]
    assert alike_rows(examples, rows, None) == [[0, 1], [2], [3], [4], [5]]


def test_rows_without_text_are_told_apart_by_their_gradients_alone():
    examples = [Example(f"target-{i}", ()) for i in range(4)]
    rows = torch.eye(4)
    rows[2] = 3 * rows[0]
    assert alike_rows(examples, rows, 0.98) == [[0, 2], [1], [3]]
    assert alike_rows(examples, 2.0**-46 * rows, 0.98) == [[0, 2], [1], [3]]


@pytest.mark.parametrize("cosine", [0.5, 0.7, 0.9])
def test_the_links_that_are_followed_give_the_groups_of_all_close_pairs(cosine, monkeypatch):
    monkeypatch.setattr(alike, "CHUNK", 16)  # rows are linked across blocks
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(150, 6, generator=draw)
    rows[::40] = 0
    unit = torch.nn.functional.normalize(rows, dim=1)
    pairs = [(i, j) for i, j in (unit @ unit.T > cosine).nonzero().tolist() if i < j]
    assert alike_rows([Example(f"{i}", ()) for i in range(150)], rows, cosine) == linked_groups(150, pairs)


def test_rows_that_are_all_alike_need_fewer_links_than_there_are_rows():
    """All their pairs, as a list, took 1.8 GiB for 4,000 rows."""
    assert len(list(alike._links(torch.ones(1500, 3), 0.98))) == 1499


def test_gtp_keeps_copies_of_target_rows_in_one_fold():
    """Each target row twice: were they dealt apart, every fold would be fitted to what it holds out."""
    data = clusters(300, 32, 0, count=20, wanted=3, noise=1.0)
    twice = data.target_rows.repeat(2, 1)

    def error(rows, near_copy_cosine):
        settings = {"regularisation": "cross_validation", "ridges": [0.03]}
        selector = gtp(**settings, near_copy_cosine=near_copy_cosine)
        selection = selector.select(problem([data.atoms], [rows], rows=20))
        return selection.diagnostics["cross_validation"][0]["error"]

    assert error(twice, 0.98) == pytest.approx(error(data.target_rows, 0.98), rel=0.15)
    assert error(twice, None) < 0.9 * error(twice, 0.98)


def test_no_ridge_is_chosen_on_rows_that_span_the_subspace(caplog):
    data = clusters(300, 32, 0, count=20, wanted=3)
    posed = problem([data.atoms], [data.target_rows], rows=20)
    chosen = gtp(subspace="svd", regularisation="cross_validation", ridge=0.7).select(posed)
    assert chosen.diagnostics["ridge"] == 0.7 and "svd" in chosen.diagnostics["cross_validation_skipped"]
    assert "svd" in caplog.text
    in_pca = gtp(subspace="pca", regularisation="cross_validation").select(replace(posed))
    assert in_pca.diagnostics["cross_validation_skipped"] is None


def test_where_nothing_can_be_cross_validated_it_is_said_why(caplog):
    data = clusters(200, 16, 0, count=10, wanted=3)
    few = problem([data.atoms], [data.target_rows[:7]], rows=20)
    asked = {"regularisation": "cross_validation", "ridge": 0.7}
    for settings, words in (
        ({}, "7 target rows are too few for 4 folds of at least 2 rows; selector.ridge=0.7 is taken"),
        ({"target_columns": "rows"}, "selector.target_columns=rows leaves no row of a column to be held out"),
        ({"solver": Greedy()}, "the solver greedy has no ridge and no rounds\n"),
    ):
        caplog.clear()
        gtp(**asked, **settings).select(few)
        assert f"nothing is cross-validated: {words}" in caplog.text
    caplog.clear()
    gtp(ridge=0.7).select(few)
    assert not caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_a_fold_of_rows_without_a_gradient_leaves_the_ridge_as_it_is(seed):
    """No error is over an energy of zero: it ended in an AttributeError."""
    data = clusters(200, 16, 0, count=10, wanted=3)
    target = data.target_rows[:8].clone()
    target[:7] = 0
    settings = {"regularisation": "cross_validation", "ridge": 0.7}
    chosen = gtp(**settings).select(problem([data.atoms], [target], rows=20, seed=seed))
    assert "a mean gradient of zero" in chosen.diagnostics["cross_validation_skipped"]
    assert chosen.diagnostics["ridge"] == 0.7 and len(chosen.indices) == 20
    pool = torch.zeros(200, 16)
    pool[:2] = data.atoms[:2]
    apart = gtp(**settings, collapse_copies=False)
    chosen = apart.select(problem([pool], None, rows=20, seed=seed))
    assert "a mean gradient of zero" in chosen.diagnostics["cross_validation_skipped"]


def test_in_domain_exact_copies_share_a_fold():
    """Ten kinds of rows, three copies of each: unit vectors, so that means tell which are in them."""
    rows = torch.eye(10).repeat(3, 1)
    originals = exact_copies([TensorRows(rows)], row_hash(rows, 0)).representative
    folds = pool_folds(tensor_atoms(rows), originals, 4, 0)
    assert not isinstance(folds, str), folds
    for fold in folds:
        assert not ((fold.train > 0) & (fold.held_out > 0)).any()
        assert fold.available.view(3, 10).float().std(0).max() == 0  # all copies of a row, or none
    assert sum(fold.available.logical_not().int() for fold in folds).eq(1).all()


def test_in_domain_a_pool_of_few_kinds_of_rows_cannot_be_divided():
    pool = torch.eye(7).repeat(4, 1)
    told = gtp(regularisation="cross_validation").select(problem([pool], None, rows=3))
    reason = told.diagnostics["cross_validation_skipped"]
    assert reason == "28 pool rows of 7 kinds are too few for 4 folds of at least 2 rows"
