"""The selector as a whole: exact budgets, no copies, invariance, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from planted import clusters
from problems import CountedFeatures, features, gtp, problem, with_features
from tqdm import tqdm

from gtp_exp.errors import UserError
from gtp_exp.selection import gtp as gtp_module
from gtp_exp.selection.base import Budget, Unit
from gtp_exp.selection.cross_validation import CrossValidationPoint, RegularisationChoice
from gtp_exp.selection.gtp import GTP
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.elastic_net import ElasticNet
from gtp_exp.selection.solvers.greedy import Greedy
from gtp_exp.selection.solvers.omp import OMP, BlockOMP

SOLVERS = {
    "cosamp": CoSaMP(),
    "omp": OMP(),
    "block_omp": BlockOMP(steps=5),
    "elastic_net": ElasticNet(),
    "greedy": Greedy(),
}
FIXED = {"regularisation": "fixed"}
CROSS_VALIDATED = {"regularisation": "cross_validation"}


def two_checkpoints(n=300, m=32, seed=0, rows=24):
    """Pool and target sketches [2][., m] around the same clusters; the second checkpoint is a rotation."""
    data = clusters(n, m, seed, count=20, wanted=3, target_rows=rows)
    turn = torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(seed + 1))).Q
    return [data.atoms, data.atoms @ turn], [data.target_rows, data.target_rows @ turn]


def check(selection, posed):
    """What must hold for any selection; returns the number of rows."""
    n, count = len(posed.candidates), len(selection.indices)
    assert selection.indices.dtype == torch.int64 and 0 <= int(selection.indices.min())
    assert int(selection.indices.max()) < n and len(selection.indices.unique()) == count
    assert selection.weights.dtype == torch.float32 and (selection.weights > 0).all()
    assert float(selection.weights.mean()) == pytest.approx(1.0, abs=1e-4)
    assert selection.scores.shape == (n,) and selection.scores.dtype == torch.float32
    assert torch.isfinite(selection.scores).all()
    report = json.loads(json.dumps(selection.diagnostics))
    assert sum(report["rows_by_round"]) + report["rows_by_fill"] == count == report["rows"]
    if posed.budget.unit is Unit.TOKENS:
        left = int(posed.budget.amount) - int(posed.n_tokens[selection.indices].sum())
        unchosen = torch.ones(n, dtype=torch.bool)
        unchosen[selection.indices] = False
        assert left >= 0 and not (posed.n_tokens[unchosen] <= left).any()
    else:
        assert count == int(posed.budget.amount)
    return count


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rows", [1, 10, 40, 150, 299, 300])
def test_exactly_the_budget_comes_out(solver, rows):
    """Also far beyond the 64 dimensions and the rows with a positive correlation."""
    pool, target = two_checkpoints()
    posed = problem(pool, target, rows=rows)
    check(gtp(solver=SOLVERS[solver], **FIXED).select(posed), posed)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tokens", [60, 500, 3000, 10**6])
def test_a_token_budget_is_kept_and_used(solver, tokens):
    pool, target = two_checkpoints()
    posed = problem(pool, target, tokens=tokens)
    check(gtp(solver=SOLVERS[solver], **FIXED).select(posed), posed)


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
        {"target_columns": "rows"},
        {"near_copy_cosine": None},
        {"collapse_copies": False},
        {"checkpoints": [-1]},
        {"weighting": "uniform"},
        {"solver": CoSaMP(prune_stages=1, candidates=3.0)},
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
        posed = problem(pool, None if in_domain else target, rows=rows, subtasks=subtasks)
        check(gtp(**settings).select(posed), posed)


def test_a_column_per_target_row_is_not_met_by_a_row_between_them():
    """The first candidate points between two target rows: it makes up their mean by itself, and neither of
    them."""
    pool, target = [torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.2], [0.0, 1.0, 0.2]])], [torch.eye(3)[:2]]
    posed = problem(pool, target, rows=1)
    assert gtp(**FIXED).select(posed).indices.tolist() == [0]
    posed = problem(pool, target, rows=2)
    assert 0 in gtp(**FIXED).select(posed).indices.tolist()
    each = gtp(target_columns="rows", **FIXED).select(posed)
    assert sorted(each.indices.tolist()) == [1, 2]
    assert each.diagnostics["target_columns"] == ["row 0", "row 1"]


@pytest.mark.parametrize("n, d", [(1, 1), (1, 8), (2, 1), (12, 1)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_tiny_problems(n, d, solver):
    generator = torch.Generator().manual_seed(n + d)
    pool = [torch.randn(n, d, generator=generator)]
    target = [torch.randn(3, d, generator=generator).abs() + 0.1]
    for rows in {1, n}:
        posed = problem(pool, target, rows=rows)
        check(gtp(solver=SOLVERS[solver]).select(posed), posed)


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_rows_equal(solver):
    posed = problem([torch.ones(30, 4)], [torch.ones(5, 4)], rows=7)
    selection = gtp(solver=SOLVERS[solver]).select(posed)
    check(selection, posed)
    assert selection.indices.tolist() == list(range(7))  # lowest indices first


def test_no_row_points_towards_the_target(caplog):
    posed = problem([-torch.rand(30, 4) - 0.1], [torch.ones(5, 4)], rows=7)
    selection = gtp(near_copy_cosine=None, **FIXED).select(posed)
    assert "as no candidate's gradient points towards the target's: the 7 rows that correlate" in caplog.text
    check(selection, posed)
    assert selection.diagnostics["rows_by_fill"] == 7 and selection.diagnostics["shortfalls"]
    assert (selection.weights == 1).all()
    best = selection.scores.sort(descending=True).indices[:7]
    assert set(selection.indices.tolist()) == set(best.tolist())


def test_a_ridge_that_leaves_no_weight_is_told(caplog):
    pool, target = two_checkpoints()
    selection = gtp(ridge=1e30).select(problem(pool, target, rows=7))
    assert selection.diagnostics["rows_by_fill"] == 7
    assert "no pursuit has found a row, as the ridge is too large" in caplog.text


@pytest.mark.parametrize("columns", ["mean", "subtasks", "rows"])
@pytest.mark.parametrize("rows", [1, 7])
def test_no_row_points_towards_any_of_the_target_columns(columns, rows):
    posed = problem([-torch.rand(30, 4) - 0.1], [torch.ones(6, 4)], rows=rows, subtasks=list("aabbcc"))
    selection = gtp(target_columns=columns, **FIXED).select(posed)
    check(selection, posed)
    assert selection.diagnostics["rows_by_fill"] == rows and (selection.weights == 1).all()


def test_in_tokens_the_fill_begins_with_what_points_away_the_least():
    """Spread over its tokens, what is below zero would be nearer to zero for a long row than for a short."""
    pool = torch.tensor([[1.0, 0, 0], [-0.05, 1, 0], [-0.9, 0, 0.4]])
    posed = problem([pool], [torch.tensor([[1.0, 0, 0]] * 3)], tokens=60)
    posed = replace(posed, n_tokens=torch.tensor([10, 2, 50]))
    selection = gtp(**FIXED).select(posed)
    check(selection, posed)
    assert selection.indices.tolist() == [0, 1]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("budget", [{"rows": 120}, {"rows": 200}, {"tokens": 2000}], ids=str)
def test_no_round_and_no_fill_chooses_near_copies_of_what_is_chosen(solver, budget):
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(200, 32, generator=generator), dim=1)
    again = torch.nn.functional.normalize(base + 0.02 * torch.randn(200, 32, generator=generator), dim=1)
    target = base[:60].mean(0) + 0.05 * torch.randn(20, 32, generator=generator)
    posed = problem([torch.cat([base, again])], [target], **budget)
    selection = gtp(solver=SOLVERS[solver], **FIXED).select(posed)
    check(selection, posed)
    assert float((base * again).sum(1).min()) > 0.98 > float((base @ base.T - torch.eye(200)).max())
    rows = torch.cat([base, again])[selection.indices]
    assert int((torch.tril(rows @ rows.T, -1) > 0.98).sum()) == selection.diagnostics["fill"]["near_copies"]
    assert selection.diagnostics["fill"]["near_copies"] == 0 or len(selection.indices) > 200


def test_some_rows_have_no_gradient():
    pool, target = two_checkpoints(60)
    pool = [x.clone() for x in pool]
    for x in pool:
        x[::2] = 0
    for normalise in ("none", "atom", "checkpoint"):
        posed = problem(pool, target, rows=40)
        selection = gtp(normalise=normalise, **FIXED).select(posed)
        check(selection, posed)
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
        posed = problem(doubled, target, rows=rows)
        selection = gtp(solver=SOLVERS[solver], near_copy_cosine=None, **FIXED).select(posed)
        check(selection, posed)
        assert len(original[selection.indices].unique()) == rows
        assert selection.diagnostics["exact_copies_collapsed"] == 200
    posed = problem(doubled, target, rows=230)
    selection = gtp(solver=SOLVERS[solver], near_copy_cosine=None, **FIXED).select(posed)
    check(selection, posed)
    assert len(original[selection.indices].unique()) == 200
    assert selection.diagnostics["fill"]["exact_copies"] == 30


def test_fewer_near_copies_than_independent_top_k():
    pool, target = two_checkpoints(400, 32)
    generator = torch.Generator().manual_seed(2)
    nearly = [torch.cat([x, x + 0.005 * torch.randn(x.shape, generator=generator)]) for x in pool]
    posed = problem(nearly, target, rows=60)
    selection = gtp(**FIXED).select(posed)
    unit = torch.nn.functional.normalize(torch.cat(nearly, dim=1), dim=1)

    def pairs(index):
        return int(((unit[index] @ unit[index].T).triu(1) > 0.98).sum())

    assert pairs(selection.scores.topk(60).indices) > 20
    assert pairs(selection.indices) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"subspace": "pca", "subspace_dim": 8}], ids=str)
def test_the_choice_does_not_depend_on_chunks_memory_or_threads(dtype, settings):
    pool, target = two_checkpoints(3000, 64)
    pool = [x.to(dtype) for x in pool]
    settings = {**settings, "ridges": [0.3, 3.0], "folds": 2}
    posed = problem(pool, target, rows=50)
    expected = gtp(**settings).select(posed)
    threads = torch.get_num_threads()
    rounded = [{"memory_gib": 3000 * 2 * dim / 2**30} for dim in (64, 8)]  # a byte a number, with pca 8 of 64
    for other in ({"chunk_rows": 61}, {"chunk_rows": 333}, {"memory_gib": 0.0, "chunk_rows": 1000}, *rounded):
        chosen = gtp(**settings, **other).select(posed)
        assert chosen.indices.tolist() == expected.indices.tolist()
        assert torch.allclose(chosen.weights, expected.weights, rtol=1e-4)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert gtp(**settings).select(posed).indices.tolist() == expected.indices.tolist()
    finally:
        torch.set_num_threads(threads)


def test_the_last_fit_depends_on_the_size_of_the_choice_and_not_on_memory(monkeypatch, caplog):
    pool, target = two_checkpoints(500, 32)
    posed = problem(pool, target, rows=30)
    fitted = [gtp(**FIXED, memory_gib=memory).select(posed) for memory in (0.0, 4.0)]
    assert all(selection.diagnostics["refit"] for selection in fitted) and not caplog.text
    assert torch.allclose(fitted[0].weights, fitted[1].weights)
    monkeypatch.setattr(gtp_module, "REFIT_MOST", 12 * 30 * 64 - 1)
    assert gtp(**FIXED, memory_gib=4.0).select(posed).diagnostics["refit"] is None
    assert "the weights are the rounds' average, as a last fit of all 30 rows" in caplog.text


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
        posed = problem(pool, target, rows=30, rates=(1e-4, 1e-4))
        selection = gtp(normalise=normalise, ridge=0.01, **FIXED).select(posed)
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
def test_a_gradient_that_is_not_finite_is_never_selected_from(value):
    """Rows like these are left out before; one that is not would pass for a row without a gradient."""
    pool, target = two_checkpoints(300)
    broken = [x.clone() for x in pool]
    broken[1][123, 4] = value
    with pytest.raises(ValueError, match="row 123 is not finite"):
        gtp(chunk_rows=50).select(problem(broken, target, rows=5))
    broken = [x.clone() for x in target]
    broken[0][7, 0] = value
    with pytest.raises(ValueError, match="row 7 is not finite"):
        gtp().select(problem(pool, broken, rows=5))


def test_a_missing_direction_is_refused_with_the_remedy():
    pool, target = two_checkpoints(50)
    posed = problem(pool, target, rows=5)
    only_sgd = features(pool, directions=("sgd",))
    with pytest.raises(UserError, match="gradients.directions"):
        gtp(direction="adam").select(with_features(posed, only_sgd))
    with pytest.raises(UserError, match="gradients.directions"):
        gtp(direction="sgd", target_direction="less").select(posed)


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
        ("round_rows", 0),
        ("near_copy_cosine", 1.5),
        ("memory_gib", -1.0),
    ],
)
def test_a_useless_setting_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=f"selector.{key}="):
        gtp(**{key: value})


@pytest.mark.parametrize(
    "solver, key, value",
    [
        (CoSaMP, "candidates", 0.5),
        (CoSaMP, "prune_stages", 0),
        (CoSaMP, "max_iterations", 0),
        (CoSaMP, "tolerance", 1.0),
        (BlockOMP, "steps", 0),
        (ElasticNet, "candidates", 0.5),
        (ElasticNet, "prune_stages", 0),
        (ElasticNet, "max_iterations", 0),
    ],
)
def test_a_useless_option_of_a_solver_is_refused_by_name(solver, key, value):
    with pytest.raises(UserError, match=f"selector.solver.{key}={value} cannot be used"):
        solver(**{key: value})


def test_without_arguments_it_is_as_shipped():
    assert GTP() == gtp()


def test_some_checkpoints_alone_are_a_shorter_trajectory():
    pool, target = two_checkpoints()
    for taken in ([0], [-1], [1, 0]):
        positions = sorted(t % 2 for t in taken)
        short = problem([pool[t] for t in positions], [target[t] for t in positions], rows=20)
        expected = gtp(**FIXED).select(short)
        chosen = gtp(checkpoints=taken, **FIXED).select(problem(pool, target, rows=20))
        assert torch.equal(chosen.indices, expected.indices) and torch.equal(chosen.weights, expected.weights)
        assert chosen.diagnostics["checkpoints"] == positions
    with pytest.raises(UserError, match="2 is not on the trajectory of 2 checkpoints"):
        gtp(checkpoints=[2], **FIXED).select(problem(pool, target, rows=20))


@pytest.mark.parametrize("budget", [{"rows": 40}, {"rows": 300}, {"tokens": 800}], ids=str)
def test_parts_of_the_pool_are_chosen_from_and_then_merged(budget):
    pool, target = two_checkpoints()
    posed = problem(pool, target, **budget)
    chosen = gtp(partitions=3, ridge=1.0, **FIXED).select(posed)
    count = len(chosen.indices)
    assert count == budget.get("rows", count) and len(chosen.indices.unique()) == count
    if "tokens" in budget:
        assert int(posed.n_tokens[chosen.indices].sum()) <= 800
    whole = gtp(ridge=1.0, **FIXED).select(posed)
    assert chosen.diagnostics["refit"]["residual"] <= 1.1 * whole.diagnostics["refit"]["residual"]
    torch.testing.assert_close(chosen.scores, whole.scores)
    assert json.dumps(chosen.diagnostics) and chosen.diagnostics["partitions"] == 3


def test_a_part_that_nothing_can_be_chosen_from_adds_nothing():
    pool, target = two_checkpoints()
    for matrix in pool:
        matrix[:100] = 0.0  # the first of three parts
    chosen = gtp(partitions=3, **FIXED).select(problem(pool, target, rows=20))
    assert len(chosen.indices) == 20 and int(chosen.indices.min()) >= 100
    assert torch.equal(chosen.scores[:100], torch.zeros(100))
    posed = problem(pool, target, tokens=40)
    lengths = torch.where(torch.arange(300) < 200, 50, 5)
    chosen = gtp(partitions=3, **FIXED).select(replace(posed, n_tokens=lengths))
    assert int(chosen.indices.min()) >= 200
    with pytest.raises(UserError, match="40 tokens is below the shortest"):
        posed = problem(*two_checkpoints(), tokens=40)
        gtp(partitions=3, **FIXED).select(replace(posed, n_tokens=torch.full((300,), 50)))


@pytest.mark.parametrize("rows", [3, 10, 12, 20])
def test_rows_of_parts_without_a_gradient_fill_what_the_others_lack(rows):
    """Of 20 rows 5 have a gradient, all in the first of two parts: the union had 10."""
    pool, target = two_checkpoints()
    pool = [torch.cat([matrix[:5], torch.zeros(15, 32)]) for matrix in pool]
    posed = problem(pool, target, rows=rows)
    chosen = gtp(partitions=2, **FIXED).select(posed)
    assert len(chosen.indices.unique()) == rows
    assert chosen.diagnostics["rows_after_partitions"] == rows
    assert set(chosen.indices.tolist()) >= set(range(5)) or rows < 5
    whole = replace(posed, budget=Budget(Unit.ALL, 1))
    assert len(gtp(partitions=2, **FIXED).select(whole).indices) == 20


@pytest.mark.parametrize("seed", range(4))
def test_parts_leave_no_tokens_that_a_row_would_take(seed):
    """What the parts had chosen among them were dearer rows than the shortest of the pool."""
    pool, target = two_checkpoints()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 120, (300,), generator=generator)
    posed = replace(problem(pool, target, tokens=237), n_tokens=lengths)
    for parts in (1, 2, 5):
        chosen = gtp(partitions=parts, **FIXED).select(posed)
        left = 237 - int(lengths[chosen.indices].sum())
        unchosen = torch.ones(300, dtype=torch.bool)
        unchosen[chosen.indices] = False
        assert 0 <= left < int(lengths[unchosen].min())


def test_parts_need_a_target_and_a_row_each():
    pool, target = two_checkpoints()
    with pytest.raises(UserError, match="selector.partitions=2 needs target rows"):
        gtp(partitions=2).select(problem(pool, None, rows=5))
    with pytest.raises(UserError, match="selector.partitions=301"):
        gtp(partitions=301).select(problem(pool, target, rows=5))


def warnings_of(caplog, pool, target):
    """Return what is logged of a choice, and its diagnostics."""
    caplog.clear()
    chosen = gtp(**CROSS_VALIDATED).select(problem([pool], [target], rows=10))
    return " ".join(record.getMessage() for record in caplog.records), chosen.diagnostics


def test_a_choice_that_fits_no_held_out_row_is_warned_of(caplog):
    generator = torch.Generator().manual_seed(0)
    pool, noise = torch.randn(200, 24, generator=generator), torch.randn(12, 24, generator=generator)
    said, diagnostics = warnings_of(caplog, pool, noise)
    assert min(point["error"] for point in diagnostics["cross_validation"]) >= 1
    assert "on held-out rows, choosing nothing has 1" in said
    said, diagnostics = warnings_of(caplog, pool, noise + 3)
    assert min(point["error"] for point in diagnostics["cross_validation"]) < 1
    assert "held-out" not in said


@pytest.mark.parametrize(
    ("ridges", "told"),
    [
        ([1e-3, 1e-2, 1e-1], "the largest of selector.ridges, 0.1"),
        ([1e3, 1e4, 1e5], "the smallest of selector.ridges, 1000"),
        ([1e-3, 1e-1, 1.0, 1e3, 1e6], ""),
        ([0.1], ""),
    ],
)
def test_a_ridge_at_an_end_of_its_grid_is_warned_of(caplog, ridges, told):
    def error(ridge):  # the lowest at 1
        return abs(torch.tensor(ridge).log().item())

    curve = tuple(CrossValidationPoint(10, ridge, (error(ridge),) * 2) for ridge in ridges)
    best = min(curve, key=lambda point: point.error)
    said = " ".join(RegularisationChoice(10, best.ridge, curve).doubts(ridges))
    assert told in said if told else "cross-validation chose" not in said


def test_the_search_for_the_ridge_shows_how_far_it_is(monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append((self, self.total))

    monkeypatch.setattr("gtp_exp.selection.gtp.tqdm", Bar)
    generator = torch.Generator().manual_seed(0)
    pool, target = torch.randn(60, 8, generator=generator), torch.randn(8, 8, generator=generator) + 1
    gtp(folds=2, ridges=[0.1, 1.0], **CROSS_VALIDATED).select(problem([pool], [target], rows=12))
    ((bar, most),) = bars
    assert most == 2 * (2 + 2) and 0 < bar.n <= most and bar.total == bar.n


def test_the_two_ridges_have_two_names():
    generator = torch.Generator().manual_seed(0)
    pool, target = torch.randn(60, 8, generator=generator), torch.randn(8, 8, generator=generator) + 1
    settings = {"normalise": "none", "regularisation": "fixed", "ridge": 0.5, "round_rows": 4}
    report = gtp(**settings).select(problem([pool], [target], rows=12)).diagnostics
    scale = float(pool.square().sum(1).mean())
    assert report["ridge"] == 0.5 and len(report["rows_by_round"]) == 3
    assert report["refit"]["absolute_ridge"] == pytest.approx(3 * 0.5 * scale, rel=1e-5)
    assert "ridge" not in report["refit"]


def test_uncollapsed_copies_compete():
    pool, target = two_checkpoints()
    pool = [torch.cat([rows, rows]) for rows in pool]
    posed = problem(pool, target, rows=40)
    both = gtp(collapse_copies=False, near_copy_cosine=None, **FIXED).select(posed)
    one = gtp(**FIXED).select(posed)

    def copies(chosen):
        return len(chosen.indices) - len((chosen.indices % 300).unique())

    assert copies(both) > 0 and copies(one) == 0
    assert both.diagnostics["exact_copies_collapsed"] == 0


def test_a_streamed_store_is_never_asked_for_more_rows_than_chunks_and_candidates():
    asked = {}
    for n in (1000, 8000):
        pool, target = two_checkpoints(n, 64)
        posed = problem(pool, target, rows=20)
        counted = CountedFeatures.of(pool)
        selector = gtp(memory_gib=0.0, chunk_rows=128, **FIXED)
        streamed = selector.select(with_features(posed, counted))
        assert streamed.indices.tolist() == gtp(**FIXED).select(posed).indices.tolist()
        assert streamed.diagnostics["in_memory"] == "nothing"
        asked[n] = max(size for rows in counted.counted for size in rows.sizes)
    assert asked[8000] == asked[1000] <= 128
