"""Which objective predicts the loss: subsets, objectives and correlations have the values that hands give."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from gtp_benchmarks.validity.agreement import correlations, estimate, resamples, spearman, without
from gtp_benchmarks.validity.facts import TARGET_SHARE
from gtp_benchmarks.validity.objectives import (
    CHECKPOINTS,
    Objective,
    atoms_of,
    evaluate_objectives,
    whitening_of,
)
from gtp_benchmarks.validity.report import REFERENCE, Progress, changes, markdown, rows_of
from gtp_benchmarks.validity.subsets import RANDOM, draw, recipes, rising
from gtp_exp.data.examples import Example
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.atoms.metric import Metric, MetricSettings
from gtp_exp.selection.atoms.sketches import AtomSettings, Normalise, build_atoms
from gtp_exp.selection.base import Budget, SelectionProblem, Unit

PREFERENCES = ("a", "b", "c")


def drawn(count=40, size=10, n=200, seed=0):
    chances = {name: rising(torch.randn(n, generator=_seeded(i)), size) for i, name in enumerate(PREFERENCES)}
    allowed = torch.ones(n, dtype=torch.bool)
    allowed[5] = False
    return [draw(recipe, chances, allowed, size, seed) for recipe in recipes(count, PREFERENCES)]


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def features(*checkpoints, rates=(1.0,), directions=("sgd",)):
    """Return features with the same rows for each direction."""
    matrices = [{name: torch.tensor(rows) for name in directions} for rows in checkpoints]
    return MemoryFeatures(tuple(matrices), rates)


def test_subsets_are_the_same_for_the_same_seed_and_begin_those_of_a_larger_count():
    assert drawn() == drawn()
    assert drawn(count=12) == drawn()[:12]
    assert [s.rows for s in drawn(seed=1)] != [s.rows for s in drawn()]


def test_subsets_have_the_rows_that_they_should():
    for subset in drawn():
        assert len(set(subset.rows)) == len(subset.rows) == 10
        assert 5 not in subset.rows and max(subset.rows) < 200
        assert subset.preferred == round(subset.recipe.share * 10)


@pytest.mark.parametrize("count", [16, 40, 100])
def test_any_beginning_spans_the_share_and_takes_every_preference_as_often(count):
    made = recipes(count, PREFERENCES)
    times = [sum(recipe.preference == name for recipe in made) for name in (RANDOM, *PREFERENCES)]
    assert max(times) - min(times) <= 1
    assert all(recipe.share == 0 for recipe in made if recipe.preference == RANDOM)
    turns = count // 4
    shares = {name: [r.share for r in made if r.preference == name][:turns] for name in PREFERENCES}
    assert shares["a"] == shares["b"] == shares["c"]  # or one would seem better for its purer subsets
    ends = [0.0, *sorted(shares["a"]), 1.0]
    assert max(b - a for a, b in zip(ends, ends[1:], strict=False)) < 2 / turns
    assert abs(sum(shares["a"]) / turns - 0.5) < 0.1


def test_a_preference_draws_its_best_rows():
    scores = torch.arange(1000.0)
    recipe = replace(recipes(2, ["best"])[1], share=1.0)
    rows = torch.tensor(draw(recipe, {"best": rising(scores, 50)}, scores >= 0, 50, 0).rows)
    assert float(scores[rows].mean()) > 850  # of rows drawn uniformly 500
    assert_close(rising(torch.tensor([1.0, 3.0, 2.0]), 2).log() * -2, torch.tensor([2.0, 0.0, 1.0]).double())


def test_where_too_few_rows_are_preferred_all_of_them_are_taken():
    like = torch.zeros(30, dtype=torch.double)
    like[[3, 7, 9]] = 1
    recipe = replace(recipes(2, ["like"])[1], share=1.0)
    subset = draw(recipe, {"like": like}, torch.ones(30, dtype=torch.bool), 10, 0)
    assert {3, 7, 9} <= set(subset.rows) and subset.preferred == 3 and len(subset.rows) == 10
    with pytest.raises(UserError, match=r"10 rows cannot be drawn from 3 candidates.*lower budget.amount"):
        draw(recipe, {"like": like}, like > 0, 10, 0)


def test_every_objective_has_the_value_of_a_hand():
    pool = features([[3.0, 0.0], [0.0, 4.0], [1.0, 1.0]])
    target = {"1": features([[2.0, 0.0], [4.0, 0.0]])}  # raw mean (3, 0), unit mean (1, 0)
    values = evaluate_objectives(pool, target, [torch.tensor([0, 1]), torch.tensor([1])])
    raw, unit = Objective(atoms="raw"), Objective(atoms="unit")
    expected = {
        replace(raw, formula="dot"): [4.5, 0.0],
        raw: [0.6, 0.0],  # (1.5, 2) against (1, 0)
        replace(unit, formula="dot"): [0.5, 0.0],
        unit: [math.sqrt(0.5), 0.0],
        replace(unit, formula="residual", ridge=0.0): [0.0, 1.0],
        replace(unit, formula="residual", ridge=0.1): [1 - 1 / 1.1, 1.0],
        replace(unit, formula="residual", ridge=1.0): [0.5, 1.0],
        replace(unit, formula="fit", ridge=0.1): [0.1 / 1.1, 1.0],
        replace(unit, formula="fit", ridge=1.0): [0.5, 1.0],
    }
    for objective, value in expected.items():
        assert values[objective] == pytest.approx(value, abs=1e-6), objective.name
        assert values[replace(objective, checkpoints="last")] == pytest.approx(value, abs=1e-6)
    assert len(values) == 2 * 3 * (4 + 5)  # metrics; checkpoints; dot and cosine of two atoms, and fits
    assert len({objective.name for objective in values}) == len(values)


def test_whitened_objectives_have_the_value_of_an_inverted_matrix():
    wide = torch.randn(9, 4, generator=_seeded(4)).double() * torch.tensor([3.0, 1, 1, 0.2])
    pool = MemoryFeatures(({"sgd": wide.float()},), (1.0,))
    b = torch.tensor([1.0, 2, -1, 0.5]).double()
    targets = {"1": MemoryFeatures(({"sgd": b[None].float()},), (1.0,))}
    subsets = [torch.tensor([0, 3, 5]), torch.tensor([8, 2])]
    values = evaluate_objectives(pool, targets, subsets)
    unit = torch.nn.functional.normalize(wide, dim=1)
    moment = unit.T @ unit / 9
    mean = moment.trace() / 4
    inverse = 1.1 * mean * torch.linalg.inv(moment + 0.1 * mean * torch.eye(4).double())
    for k, index in enumerate(subsets):
        ours = wide[index].mean(0)
        dot = float(ours @ inverse @ b)
        norms = math.sqrt(float((ours @ inverse @ ours) * (b @ inverse @ b)))
        made = Objective(metric="whitened", atoms="raw")
        assert values[replace(made, formula="dot")][k] == pytest.approx(dot, rel=1e-4)
        assert values[made][k] == pytest.approx(dot / norms, rel=1e-4)


def test_checkpoints_are_weighted_by_their_learning_rates():
    pool = features([[1.0, 0.0]], [[0.0, 2.0]], rates=(3.0, 1.0))
    target = {"1": features([[5.0, 1.0]], [[1.0, 7.0]], rates=(3.0, 1.0))}
    values = evaluate_objectives(pool, target, [torch.tensor([0])])
    dot = Objective(formula="dot", atoms="raw")
    assert values[replace(dot, checkpoints="first")] == pytest.approx([5.0])
    assert values[replace(dot, checkpoints="last")] == pytest.approx([14.0])
    assert values[dot] == pytest.approx([0.75 * 5 + 0.25 * 14])


@pytest.mark.parametrize("atoms, normalise", [("raw", Normalise.NONE), ("unit", Normalise.ATOM)])
@pytest.mark.parametrize("checkpoints", list(CHECKPOINTS))
@pytest.mark.parametrize("metric, inner", [("plain", Metric.EUCLIDEAN), ("whitened", Metric.WHITENED)])
def test_atoms_are_those_of_the_pursuit(atoms, normalise, checkpoints, metric, inner):
    made = [{"sgd": torch.randn(7, 5, generator=_seeded(t))} for t in range(3)]
    rates = (3.0, 2.0, 0.5)
    pool = MemoryFeatures(tuple(made), rates)
    target = MemoryFeatures(tuple({"sgd": 2 * rows["sgd"][:3]} for rows in made), rates)
    problem = SelectionProblem(
        candidates=[Example(str(i), ()) for i in range(7)],
        n_tokens=torch.ones(7, dtype=torch.long),
        n_completion_tokens=torch.ones(7, dtype=torch.long),
        target=[Example(f"t{i}", ()) for i in range(3)],
        budget=Budget(Unit.ROWS, 2),
        seed=0,
        pool_gradients=pool,
        target_gradients=target,
    )
    settings = AtomSettings(
        "sgd", "sgd", normalise, False, 4, 1.0, CHECKPOINTS[checkpoints], metric=MetricSettings(inner)
    )
    data = build_atoms(problem, settings, "a test")
    space, index = Objective(atoms=atoms, checkpoints=checkpoints, metric=metric), torch.tensor([4, 1, 6])
    maps = whitening_of(pool, space)
    assert_close(atoms_of(pool, space, index, maps), data.atoms.rows(index))
    assert_close(atoms_of(target, space, None, maps), data.target_rows)


def test_spearman_has_known_values():
    a, b = np.array([106.0, 100, 86, 101, 99]), np.array([7.0, 27, 2, 50, 28])
    squared = [(5 - 2) ** 2, (3 - 3) ** 2, 0, (4 - 5) ** 2, (2 - 4) ** 2]  # of ranks, without ties
    assert spearman(a, b) == pytest.approx(1 - 6 * sum(squared) / (5 * 24))
    assert spearman(a, -a) == pytest.approx(-1)
    assert math.isnan(spearman(a, np.ones(5)))


def test_spearman_shares_the_ranks_of_ties():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, 30).astype(float), generator.integers(0, 4, 30).astype(float)

    def ranks(values):
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    assert spearman(a, b) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])


def test_a_partial_correlation_is_that_of_its_formula():
    a, b, c = np.random.default_rng(2).standard_normal((3, 25)) + np.linspace(0, 2, 25)
    ab, ac, bc = spearman(a, b), spearman(a, c), spearman(b, c)
    one = resamples(25, count=0)
    ours, theirs = (without(one.ranks(x), one.ranks(c)) for x in (a, b))
    expected = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    assert correlations(ours, theirs)[0] == pytest.approx(expected)
    assert estimate(correlations(without(one.ranks(c), one.ranks(c)), theirs)) is None


def test_the_interval_covers_the_correlation_of_the_population():
    """Of samples of 60 with a rank correlation of 0.5 most intervals hold it, and few hold zero."""
    generator, held = np.random.default_rng(1), []
    rho = 2 * math.sin(math.pi / 6 * 0.5)  # Pearson's, of normal samples
    for seed in range(60):
        a, noise = generator.standard_normal((2, 60))
        b = rho * a + math.sqrt(1 - rho**2) * noise
        many = resamples(60, seed, count=300)
        found = estimate(correlations(many.ranks(a), many.ranks(b)))
        assert found is not None and found.low < found.value < found.high
        held.append(found.low <= 0.5 <= found.high)
    assert sum(held) >= 51


def test_the_report_orders_objectives_by_what_their_direction_says_of_the_loss():
    loss = [1.0, 2.0, 3.0, 4.0, 5.0]
    good = [0.9, 0.7, 0.6, 0.5, 0.1]
    residual, same = replace(REFERENCE, formula="residual", ridge=0.0), replace(REFERENCE, direction="adam")
    swapped = [0.9, 0.6, 0.7, 0.5, 0.1]
    rows = rows_of(
        Progress(
            {REFERENCE: swapped, residual: loss + [9.0], same: [1.0] * 6, replace(same, atoms="raw"): good},
            {"length": [-x for x in good], TARGET_SHARE: [1.0, 1.0, 0.5, 0.5, 0.0]},
            [
                {"validation": {"nats_per_token": x, "content": x}, "test": {"nats_per_token": -x}}
                for x in loss
            ],
            {"planned": 6, "size": 2, "validation": 3, "untuned": {"validation": {"nats_per_token": 6.0}}},
        )
    )
    found = {row.name: row for row in rows}
    judged = "validation nats_per_token"
    assert found[residual.name].found[judged].value == pytest.approx(1.0)
    assert found[residual.name].found["test nats_per_token"].value == pytest.approx(-1.0)
    assert found[REFERENCE.name].found[judged].value == pytest.approx(0.9)
    assert found[residual.name].minus_reference.value == pytest.approx(0.1)
    assert found[TARGET_SHARE].partial[judged] is None
    assert found[residual.name].partial[judged].value == pytest.approx(1.0)
    assert found["length"].found[judged].value == pytest.approx(-1.0)
    assert found[same.name].found[judged] is None and rows[-1].name == same.name
    assert "test content" not in found[REFERENCE.name].found
    assert changes(residual) == 1 and changes(replace(same, atoms="raw")) == 2


def test_the_report_says_what_it_rests_on():
    about = {"planned": 9, "size": 2, "validation": 3, "untuned": {"validation": {"nats_per_token": 6.0}}}
    measured = [{"validation": {"nats_per_token": x}, "test": {"nats_per_token": x}} for x in (1.0, 2.0, 4.0)]
    progress = Progress(
        {REFERENCE: [3.0, 2.0, 1.0]}, {"flat": [1.0] * 3, TARGET_SHARE: [1.0] * 3}, measured, about
    )
    text = markdown(rows_of(progress), progress)
    assert "3 of 9 subsets of 2 rows" in text and "1.000 to 4.000" in text and "Untuned: 6.000" in text
    assert "| flat | \u2013 |" in text
