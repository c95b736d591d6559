"""The selector as a whole: exact budgets, no copies, invariance, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from planted import clusters
from problems import features, gtp, problem, with_features

from gtp_exp.errors import UserError
from gtp_exp.gradients.features import MemoryFeatures, TensorRows
from gtp_exp.selection.base import Unit

SOLVERS = ["cosamp", "omp", "block_omp", "elastic_net"]
FIXED = {"regularisation": "fixed"}


def two_checkpoints(n=300, m=32, seed=0, rows=24):
    """Pool and target sketches [2][., m] around the same clusters; the second checkpoint is a rotation."""
    data = clusters(n, m, seed, count=20, wanted=3, target_rows=rows)
    turn = torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(seed + 1))).Q
    return [data.atoms, data.atoms @ turn], [data.target_rows, data.target_rows @ turn]


def check(selection, made):
    """What must hold for any selection; returns the number of rows."""
    n, count = len(made.candidates), len(selection.indices)
    assert selection.indices.dtype == torch.int64 and 0 <= int(selection.indices.min())
    assert int(selection.indices.max()) < n and len(selection.indices.unique()) == count
    assert selection.weights.dtype == torch.float32 and (selection.weights > 0).all()
    assert float(selection.weights.mean()) == pytest.approx(1.0, abs=1e-4)
    assert selection.scores.shape == (n,) and selection.scores.dtype == torch.float32
    assert torch.isfinite(selection.scores).all()
    report = json.loads(json.dumps(selection.diagnostics))
    assert sum(report["rows_by_round"]) + report["rows_by_fill"] == count == report["rows"]
    if made.budget.unit is Unit.TOKENS:
        left = int(made.budget.amount) - int(made.n_tokens[selection.indices].sum())
        unchosen = torch.ones(n, dtype=torch.bool)
        unchosen[selection.indices] = False
        assert left >= 0 and not (made.n_tokens[unchosen] <= left).any()
    else:
        assert count == int(made.budget.amount)
    return count


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rows", [1, 10, 40, 150, 299, 300])
def test_exactly_the_budget_comes_out(solver, rows):
    """Also far beyond the 64 dimensions and the rows with a positive correlation."""
    pool, target = two_checkpoints()
    made = problem(pool, target, rows=rows)
    check(gtp(solver=solver, steps=5, **FIXED).select(made), made)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tokens", [60, 500, 3000, 10**6])
def test_a_token_budget_is_kept_and_used(solver, tokens):
    pool, target = two_checkpoints()
    made = problem(pool, target, tokens=tokens)
    check(gtp(solver=solver, steps=5, **FIXED).select(made), made)


def test_a_token_budget_below_the_shortest_row_is_refused():
    pool, target = two_checkpoints()
    with pytest.raises(UserError, match="budget.amount=9"):
        gtp(**FIXED).select(problem(pool, target, tokens=9))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalise": "none"},
        {"normalise": "checkpoint"},
        {"checkpoint_weights": "uniform"},
        {"subspace": "pca", "subspace_dim": 8},
        {"subspace": "svd", "subspace_dim": 8},
        {"subspace": "pca", "subspace_dim": 8, "memory_gib": 0.0},
        {"target_columns": "subtasks"},
        {"near_copy_cosine": None},
        {"collapse_copies": False},
        {"checkpoints": [-1]},
        {"weighting": "uniform"},
        {"prune_stages": 1, "candidates": 3.0},
        {"round_rows": 7},
        {"max_rounds": 1, "round_rows": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("in_domain", [False, True])
def test_every_option_gives_a_selection(settings, in_domain):
    if in_domain and settings.get("subspace") == "svd":
        pytest.skip("the span of the target needs a target")
    pool, target = two_checkpoints()
    subtasks = ["ab"[j % 2] for j in range(len(target[0]))]
    for rows in (10, 60):
        made = problem(pool, None if in_domain else target, rows=rows, subtasks=subtasks)
        check(gtp(**settings).select(made), made)


@pytest.mark.parametrize("n, d", [(1, 1), (1, 8), (2, 1), (12, 1)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_tiny_problems(n, d, solver):
    generator = torch.Generator().manual_seed(n + d)
    pool = [torch.randn(n, d, generator=generator)]
    target = [torch.randn(3, d, generator=generator).abs() + 0.1]
    for rows in {1, n}:
        made = problem(pool, target, rows=rows)
        check(gtp(solver=solver).select(made), made)


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_rows_equal(solver):
    made = problem([torch.ones(30, 4)], [torch.ones(5, 4)], rows=7)
    selection = gtp(solver=solver).select(made)
    check(selection, made)
    assert selection.indices.tolist() == list(range(7))  # lowest indices first


def test_no_row_points_towards_the_target():
    made = problem([-torch.rand(30, 4) - 0.1], [torch.ones(5, 4)], rows=7)
    selection = gtp(**FIXED).select(made)
    check(selection, made)
    assert selection.diagnostics["rows_by_fill"] == 7 and selection.diagnostics["shortfalls"]
    assert (selection.weights == 1).all()
    best = selection.scores.sort(descending=True).indices[:7]
    assert set(selection.indices.tolist()) == set(best.tolist())


def test_some_rows_have_no_gradient():
    pool, target = two_checkpoints(60)
    pool = [x.clone() for x in pool]
    for x in pool:
        x[::2] = 0
    for normalise in ("none", "atom", "checkpoint"):
        made = problem(pool, target, rows=40)
        selection = gtp(normalise=normalise, **FIXED).select(made)
        check(selection, made)
        assert (selection.indices[: sum(selection.diagnostics["rows_by_round"])] % 2 == 1).all()
        assert selection.diagnostics["zero_gradients"] == 30


def test_all_gradients_zero_or_a_zero_target_are_refused():
    with pytest.raises(UserError, match="zero"):
        gtp().select(problem([torch.zeros(20, 4)], [torch.ones(3, 4)], rows=2))
    with pytest.raises(UserError, match="target gradient is zero"):
        gtp().select(problem([torch.ones(20, 4)], [torch.zeros(3, 4)], rows=2))


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_exact_copy_while_distinct_rows_remain(solver):
    pool, target = two_checkpoints(200)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(5))
    doubled = [torch.cat([x, x])[order] for x in pool]
    original = order % 200
    for rows in (20, 100, 200):
        made = problem(doubled, target, rows=rows)
        selection = gtp(solver=solver, steps=5, near_copy_cosine=None, **FIXED).select(made)
        check(selection, made)
        assert len(original[selection.indices].unique()) == rows
        assert selection.diagnostics["exact_copies_collapsed"] == 200
    made = problem(doubled, target, rows=230)
    selection = gtp(solver=solver, steps=5, near_copy_cosine=None, **FIXED).select(made)
    check(selection, made)
    assert len(original[selection.indices].unique()) == 200
    assert selection.diagnostics["fill"]["exact_copies"] == 30


def test_fewer_near_copies_than_independent_top_k():
    pool, target = two_checkpoints(400, 32)
    generator = torch.Generator().manual_seed(2)
    nearly = [torch.cat([x, x + 0.005 * torch.randn(x.shape, generator=generator)]) for x in pool]
    made = problem(nearly, target, rows=60)
    selection = gtp(**FIXED).select(made)
    unit = torch.nn.functional.normalize(torch.cat(nearly, dim=1), dim=1)

    def pairs(index):
        return int(((unit[index] @ unit[index].T).triu(1) > 0.98).sum())

    assert pairs(selection.scores.topk(60).indices) > 20
    assert pairs(selection.indices) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"subspace": "pca", "subspace_dim": 8}], ids=str)
def test_the_choice_does_not_depend_on_chunks_memory_or_threads(dtype, settings):
    pool, target = two_checkpoints(3000, 64)
    pool = [x.to(dtype) for x in pool]
    settings = {**settings, "ridges": [0.3, 3.0], "folds": 2}
    made = problem(pool, target, rows=50)
    expected = gtp(**settings).select(made)
    threads = torch.get_num_threads()
    for other in ({"chunk_rows": 61}, {"chunk_rows": 333}, {"memory_gib": 0.0, "chunk_rows": 1000}):
        found = gtp(**settings, **other).select(made)
        assert found.indices.tolist() == expected.indices.tolist()
        assert torch.allclose(found.weights, expected.weights, rtol=1e-4)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert gtp(**settings).select(made).indices.tolist() == expected.indices.tolist()
    finally:
        torch.set_num_threads(threads)


def test_the_order_of_the_pool_does_not_matter():
    pool, target = two_checkpoints(500, 32)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    plain = gtp(**FIXED).select(problem(pool, target, rows=30))
    shuffled = gtp(**FIXED).select(problem([x[order] for x in pool], target, rows=30))
    assert order[shuffled.indices].tolist() == plain.indices.tolist()


def test_normalised_atoms_ignore_the_scale_of_rows_and_the_weights_undo_it():
    pool, target = two_checkpoints(300)
    stretch = torch.linspace(0.1, 10, 300)[:, None]
    plain = gtp(**FIXED).select(problem(pool, target, rows=20))
    scaled = gtp(**FIXED).select(problem([x * stretch for x in pool], target, rows=20))
    assert scaled.indices.tolist() == plain.indices.tolist()
    undone = scaled.weights * stretch[scaled.indices, 0]
    assert torch.allclose(undone / undone.mean(), plain.weights, rtol=1e-3)


def test_the_weights_reproduce_the_target_from_the_raw_gradients():
    """In the units of the gradients, whatever the normalisation: that is what training multiplies."""
    pool, target = two_checkpoints(400, 32)
    pool = [x * torch.linspace(0.5, 2, 400)[:, None] for x in pool]
    for normalise in ("none", "atom", "checkpoint"):
        made = problem(pool, target, rows=30, rates=(1e-4, 1e-4))
        selection = gtp(normalise=normalise, ridge=0.01, **FIXED).select(made)
        for x, y in zip(pool, target, strict=True):
            combined = selection.weights @ x[selection.indices]
            cosine = torch.nn.functional.cosine_similarity(combined, y.mean(0), dim=0)
            equal = torch.nn.functional.cosine_similarity(x[selection.indices].sum(0), y.mean(0), dim=0)
            assert float(cosine) > max(0.9, float(equal) - 0.01), normalise


def test_checkpoints_count_by_their_learning_rates():
    pool, target = two_checkpoints(300)
    both = gtp(**FIXED).select(problem(pool, target, rows=15, rates=(1.0, 0.0)))
    first = gtp(**FIXED).select(problem(pool[:1], target[:1], rows=15, rates=(3.0,)))
    assert both.indices.tolist() == first.indices.tolist()
    with pytest.raises(UserError, match="checkpoint_weights=uniform"):
        gtp(**FIXED).select(problem(pool, target, rows=20, rates=(0.0, 0.0)))


def test_the_whole_subspace_changes_nothing():
    pool, target = two_checkpoints(300, 16)
    plain = gtp(**FIXED).select(problem(pool, target, rows=20))
    rotated = gtp(subspace="pca", subspace_dim=16, **FIXED).select(problem(pool, target, rows=20))
    assert rotated.indices.tolist() == plain.indices.tolist()
    assert rotated.diagnostics["subspace_explained"] == pytest.approx([1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("settings", [{}, {"subspace": "pca", "subspace_dim": 8}], ids=str)
def test_a_gradient_that_is_not_finite_is_refused_by_name(value, settings):
    pool, target = two_checkpoints(300)
    broken = [x.clone() for x in pool]
    broken[1][123, 4] = value
    with pytest.raises(UserError, match="'row-123'"):
        gtp(chunk_rows=50, **settings).select(problem(broken, target, rows=5))
    broken = [x.clone() for x in target]
    broken[0][7, 0] = value
    with pytest.raises(UserError, match="'target-7'"):
        gtp(**settings).select(problem(pool, broken, rows=5))


def test_a_missing_direction_is_refused_with_the_remedy():
    pool, target = two_checkpoints(50)
    made = problem(pool, target, rows=5)
    only_sgd = features(pool, directions=("sgd",))
    with pytest.raises(UserError, match="gradients.directions"):
        gtp(direction="adam").select(with_features(made, only_sgd))
    with pytest.raises(UserError, match="gradients.directions"):
        gtp(direction="sgd", target_direction="less").select(made)


def test_gradients_of_different_trajectories_are_refused():
    pool, target = two_checkpoints(50)
    with pytest.raises(ValueError, match="different trajectories"):
        gtp().select(with_features(problem(pool, target, rows=5), features(pool[:1], rates=[1e-4])))


@pytest.mark.parametrize(
    "key, value",
    [
        ("ridge", -0.1),
        ("ridges", []),
        ("ridges", [1.0, 0.1]),
        ("folds", 1),
        ("checkpoints", []),
        ("partitions", 0),
        ("candidates", 0.5),
        ("round_rows", 0),
        ("near_copy_cosine", 1.5),
        ("tolerance", 1.0),
        ("memory_gib", -1.0),
    ],
)
def test_a_useless_setting_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=f"selector.{key}="):
        gtp(**{key: value})


def test_some_checkpoints_alone_are_a_shorter_trajectory():
    pool, target = two_checkpoints()
    for taken in ([0], [-1], [1, 0]):
        positions = sorted(t % 2 for t in taken)
        short = problem([pool[t] for t in positions], [target[t] for t in positions], rows=20)
        expected = gtp(**FIXED).select(short)
        found = gtp(checkpoints=taken, **FIXED).select(problem(pool, target, rows=20))
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.weights, expected.weights)
        assert found.diagnostics["checkpoints"] == positions
    with pytest.raises(UserError, match="2 is not on the trajectory of 2 checkpoints"):
        gtp(checkpoints=[2], **FIXED).select(problem(pool, target, rows=20))


@pytest.mark.parametrize("budget", [{"rows": 40}, {"rows": 300}, {"tokens": 800}], ids=str)
def test_parts_of_the_pool_are_chosen_from_and_then_merged(budget):
    pool, target = two_checkpoints()
    made = problem(pool, target, **budget)
    found = gtp(partitions=3, **FIXED).select(made)
    count = len(found.indices)
    assert count == budget.get("rows", count) and len(found.indices.unique()) == count
    if "tokens" in budget:
        assert int(made.n_tokens[found.indices].sum()) <= 800
    whole = gtp(**FIXED).select(made)
    assert found.diagnostics["refit"]["residual"] <= 1.1 * whole.diagnostics["refit"]["residual"]
    torch.testing.assert_close(found.scores, whole.scores)
    assert json.dumps(found.diagnostics) and found.diagnostics["partitions"] == 3


def test_a_part_that_nothing_can_be_chosen_from_adds_nothing():
    pool, target = two_checkpoints()
    for matrix in pool:
        matrix[:100] = 0.0  # the first of three parts
    found = gtp(partitions=3, **FIXED).select(problem(pool, target, rows=20))
    assert len(found.indices) == 20 and int(found.indices.min()) >= 100
    assert torch.equal(found.scores[:100], torch.zeros(100))
    made = problem(pool, target, tokens=40)
    lengths = torch.where(torch.arange(300) < 200, 50, 5)
    found = gtp(partitions=3, **FIXED).select(replace(made, n_tokens=lengths))
    assert int(found.indices.min()) >= 200
    with pytest.raises(UserError, match="40 tokens is below the shortest"):
        made = problem(*two_checkpoints(), tokens=40)
        gtp(partitions=3, **FIXED).select(replace(made, n_tokens=torch.full((300,), 50)))


def test_parts_need_a_target_and_a_row_each():
    pool, target = two_checkpoints()
    with pytest.raises(UserError, match="selector.partitions=2 needs target rows"):
        gtp(partitions=2).select(problem(pool, None, rows=5))
    with pytest.raises(UserError, match="selector.partitions=301"):
        gtp(partitions=301).select(problem(pool, target, rows=5))


def test_uncollapsed_copies_compete():
    pool, target = two_checkpoints()
    pool = [torch.cat([rows, rows]) for rows in pool]
    made = problem(pool, target, rows=40)
    both = gtp(collapse_copies=False, near_copy_cosine=None, **FIXED).select(made)
    one = gtp(**FIXED).select(made)

    def copies(chosen):
        return len(chosen.indices) - len((chosen.indices % 300).unique())

    assert copies(both) > 0 and copies(one) == 0
    assert both.diagnostics["exact_copies_collapsed"] == 0


class Counted:
    """Rows that remember how many were asked for at once."""

    def __init__(self, matrix: torch.Tensor, log: list[int]) -> None:
        self.inner, self.log = TensorRows(matrix), log

    @property
    def shape(self):
        return self.inner.shape

    @property
    def dtype(self):
        return self.inner.dtype

    def chunks(self, size):
        for start, chunk in self.inner.chunks(size):
            self.log.append(len(chunk))
            yield start, chunk

    def rows(self, index):
        self.log.append(len(index))
        return self.inner.rows(index)


class CountedFeatures(MemoryFeatures):
    log: list[int]

    def features(self, checkpoint, direction):
        return Counted(self.matrices[checkpoint][direction], self.log)


def test_a_streamed_store_is_never_asked_for_more_rows_than_chunks_and_candidates():
    asked = {}
    for n in (1000, 8000):
        pool, target = two_checkpoints(n, 64)
        made = problem(pool, target, rows=20)
        counted = CountedFeatures(tuple({"sgd": x, "adam": x} for x in pool), (1e-4, 5e-5))
        object.__setattr__(counted, "log", [])
        selector = gtp(memory_gib=0.0, chunk_rows=128, **FIXED)
        streamed = selector.select(with_features(made, counted))
        assert streamed.indices.tolist() == gtp(**FIXED).select(made).indices.tolist()
        assert streamed.diagnostics["held_in_memory"] is False
        asked[n] = max(counted.log)
    assert asked[8000] == asked[1000] <= 128
