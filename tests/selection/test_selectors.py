"""One contract for all selectors: every YAML of conf/selector is held to it, new ones too."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from options import names, option

import gtp_exp
from conftest import conversation
from gtp_exp.config import build
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import MemoryFeatures
from gtp_exp.selection.base import Budget, Need, Selection, SelectionProblem, Selector, Unit, choose_rows

NAMES = names("selector")
SEEDED = {"random", "dedup_random"}  # their choice depends on the order of the pool
N, DIM, TARGETS = 120, 48, 12


LOCAL = {}  # settings that name something on the hub -> something of this machine


@pytest.fixture(scope="module", autouse=True)
def local_encoder(tiny, tmp_path_factory):
    LOCAL["sentence_knn"] = {"encoder": tiny.location}
    listed = tmp_path_factory.mktemp("given") / "ids.txt"
    listed.write_text("".join(f"row-{7 * i % N}\n" for i in range(N)))
    LOCAL["given"] = {"file": str(listed)}


def selector(name):
    node = option("selector", name)
    return build({**node, **LOCAL.get(name, {})}, "selector")


def features(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    directions = ("sgd", "adam", "less")
    matrices = tuple(
        {d: torch.randn(rows, DIM, generator=generator) + 0.3 for d in directions} for _ in range(2)
    )
    return MemoryFeatures(matrices, (2e-4, 1e-4))


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.load()


@pytest.fixture(scope="module")
def problem(model):
    rows = [conversation(i, f"Question {i} of {i % 7}?", f"Answer {i * i}.") for i in range(N)]
    targets = [
        conversation(900 + i, f"Target {i}?", f"Yes {i}.", subtask=f"task{i % 2}") for i in range(TARGETS)
    ]
    lengths = torch.arange(N) % 17 + 10
    return SelectionProblem(
        candidates=rows,
        n_tokens=lengths,
        n_completion_tokens=lengths // 2,
        target=targets,
        budget=Budget(Unit.ROWS, 15),
        seed=0,
        pool_gradients=features(N, 1),
        target_gradients=features(TARGETS, 2),
        model=model,
    )


def given(problem, chooser):
    """The problem as the pipeline hands it over: only what the selector says it needs."""
    return replace(
        problem,
        pool_gradients=problem.pool_gradients if Need.GRADIENTS in chooser.needs else None,
        target_gradients=problem.target_gradients if Need.GRADIENTS in chooser.needs else None,
        model=problem.model if Need.MODEL in chooser.needs else None,
    )


def choose(name, problem):
    chooser = selector(name)
    return choose_rows(chooser, given(problem, chooser))


def test_there_are_selectors():
    assert {"gtp", "less", "top_k", "random", "full"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 15, N])
def test_exactly_the_budgeted_rows_are_chosen(name, rows, problem):
    selection = choose(name, replace(problem, budget=Budget(Unit.ROWS, rows)))
    assert len(selection.indices) == (N if name == "full" else rows)
    assert selection.indices.dtype == torch.int64 and selection.weights.dtype == torch.float32
    assert selection.scores.shape == (N,)
    assert float(selection.weights.mean()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "full"])
def test_a_token_budget_is_used_and_never_exceeded(name, problem):
    selection = choose(name, replace(problem, budget=Budget(Unit.TOKENS, 300)))
    used = int(problem.n_tokens[selection.indices].sum())
    assert 300 - int(problem.n_tokens.max()) < used <= 300


@pytest.mark.parametrize("name", NAMES)
def test_the_same_problem_gives_the_same_answer(name, problem):
    a, b = choose(name, problem), choose(name, problem)
    assert torch.equal(a.indices, b.indices) and torch.equal(a.weights, b.weights)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SEEDED])
def test_the_order_of_the_pool_does_not_matter(name, problem):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    pool = problem.pool_gradients
    matrices = tuple({d: m[order] for d, m in t.items()} for t in pool.matrices)
    shuffled = replace(
        problem,
        candidates=[problem.candidates[i] for i in order.tolist()],
        n_tokens=problem.n_tokens[order],
        n_completion_tokens=problem.n_completion_tokens[order],
        pool_gradients=replace(pool, matrices=matrices),
    )
    ids = [{p.candidates[i].id for i in choose(name, p).indices.tolist()} for p in (problem, shuffled)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", NAMES)
def test_in_domain_the_pool_itself_is_the_target(name, problem):
    selection = choose(name, replace(problem, target=None, target_gradients=None))
    assert len(selection.indices) == (N if name == "full" else 15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused_by_the_examples_id(name, value, problem):
    if Need.GRADIENTS not in selector(name).needs:
        pytest.skip("reads no gradients")
    pool = [m["sgd"].clone() for m in problem.pool_gradients.matrices]
    pool[1][77, 3] = value
    target = [m["sgd"] for m in problem.target_gradients.matrices]
    with pytest.raises(UserError, match="row-77"):
        gtp_exp.select(
            pool, target, budget=15, selector=selector(name), ids=[e.id for e in problem.candidates]
        )


def some(problem, rows, targets, **changed):
    """The first rows of the problem, their gradients changed."""
    change = changed.pop("gradients", lambda matrix: matrix)

    def first(features, n):
        matrices = tuple({d: change(m[:n].clone()) for d, m in t.items()} for t in features.matrices)
        return replace(features, matrices=matrices)

    return replace(
        problem,
        candidates=problem.candidates[:rows],
        n_tokens=problem.n_tokens[:rows],
        n_completion_tokens=problem.n_completion_tokens[:rows],
        target=problem.target[:targets],
        pool_gradients=first(problem.pool_gradients, rows),
        target_gradients=first(problem.target_gradients, targets),
        **changed,
    )


DEGENERATE = {
    "one candidate": lambda p: some(p, 1, TARGETS, budget=Budget(Unit.ROWS, 1)),
    "one target row": lambda p: some(p, N, 1),
    "one candidate and one target row": lambda p: some(p, 1, 1, budget=Budget(Unit.ROWS, 1)),
    "two candidates": lambda p: some(p, 2, 2, budget=Budget(Unit.ROWS, 2)),
    "no gradient at all": lambda p: some(p, N, TARGETS, gradients=torch.zeros_like),
    "one gradient for all": lambda p: some(p, N, TARGETS, gradients=lambda m: m[:1].expand_as(m).clone()),
    "all rows the same": lambda p: replace(
        some(p, N, TARGETS, gradients=lambda m: m[:1].expand_as(m).clone()),
        candidates=[conversation(i, "What?", "That.") for i in range(N)],
        n_tokens=torch.full((N,), 12),
        n_completion_tokens=torch.full((N,), 5),
    ),
    "more rows than distinct ones": lambda p: some(
        p, N, TARGETS, gradients=lambda m: m[torch.arange(len(m)) % 4], budget=Budget(Unit.ROWS, 60)
    ),
    "enormous gradients": lambda p: some(p, N, TARGETS, gradients=lambda m: m * 1e15),
    "minute gradients": lambda p: some(p, N, TARGETS, gradients=lambda m: m * 1e-15),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("gtp_")])  # settings of gtp
def test_a_degenerate_pool_gives_the_budget_or_a_reason(name, case, problem):
    asked = DEGENERATE[case](problem)
    try:
        selection = choose(name, asked)
    except UserError as reason:
        assert len(str(reason)) > 20
        assert case not in ("one target row", "enormous gradients", "minute gradients")  # these can be done
        return
    n = len(asked.candidates)
    assert len(selection.indices) == (n if name == "full" else asked.budget.rows(n))


def test_random_is_uniform_and_its_seeds_differ(problem):
    counts = torch.zeros(N)
    runs = 600
    for seed in range(runs):
        counts[choose("random", replace(problem, seed=seed)).indices] += 1
    expected = runs * 15 / N
    chi_square = float(((counts - expected) ** 2 / (expected * (1 - 15 / N))).sum())
    assert 60 < chi_square < 200  # mean 119, standard deviation 15


class Answers(Selector):
    """Answer with whatever it is given, to see what the contract says of it."""

    def __init__(self, answer):
        self.answer = answer

    def select(self, problem):
        return self.answer(problem)


def ones(n):
    return torch.ones(n)


WRONG = {
    "a tensor": (lambda p: torch.arange(15), "returned Tensor; return .*Selection"),
    "a list": (lambda p: list(range(15)), "returned list; return .*Selection"),
    "a list of indices": (lambda p: Selection(list(range(15)), ones(15), ones(N)), "must be a tensor"),
    "a repeated row": (lambda p: Selection(torch.zeros(15).long(), ones(15), ones(N)), "twice"),
    "indices of floats": (lambda p: Selection(torch.arange(15.0), ones(15), ones(N)), "int64"),
    "too many rows": (lambda p: Selection(torch.arange(16), ones(16), ones(N)), "16 rows, the budget is 15"),
    "too few rows": (lambda p: Selection(torch.arange(14), ones(14), ones(N)), "14 rows, the budget is 15"),
    "a row outside": (lambda p: Selection(torch.arange(15) + N - 5, ones(15), ones(N)), "0 to 119"),
    "the row behind the last": (
        lambda p: Selection(torch.arange(15) + N - 14, ones(15), ones(N)),
        "0 to 119",
    ),
    "a negative row": (lambda p: Selection(torch.arange(15) - 1, ones(15), ones(N)), "0 to 119"),
    "too few weights": (lambda p: Selection(torch.arange(15), ones(14), ones(N)), "one weight per index"),
    "a negative weight": (lambda p: Selection(torch.arange(15), -ones(15), ones(N)), "0 or more"),
    "weights of mean 5": (lambda p: Selection(torch.arange(15), 5 * ones(15), ones(N)), "mean 5 and must"),
    "weights of zero": (lambda p: Selection(torch.arange(15), 0 * ones(15), ones(N)), "mean 0 and must"),
    "weights of float64": (
        lambda p: Selection(torch.arange(15), ones(15).double(), ones(N)),
        r"weights must be float32 .*not float64 of shape \[15\]; use weights.flatten\(\).float\(\)",
    ),
    "a column of scores": (
        lambda p: Selection(torch.arange(15), ones(15), ones(N)[:, None]),
        r"of one dimension, not float32 of shape \[120, 1\]",
    ),
    "too few scores": (lambda p: Selection(torch.arange(15), ones(15), ones(15)), "of the 120 candidates"),
    "a score without value": (lambda p: Selection(torch.arange(15), ones(15), ones(N) / 0), "finite"),
    "a tensor to tell": (
        lambda p: Selection(torch.arange(15), ones(15), ones(N), {"best": ones(N).max()}),
        r"diagnostics\['best'\] .* Tensor is not JSON serializable.*give numbers",
    ),
    "no number to tell": (
        lambda p: Selection(torch.arange(15), ones(15), ones(N), {"a": 1, "spread": [float("nan")]}),
        r"diagnostics\['spread'\] .*None for one that is not finite",
    ),
    "nothing": (lambda p: None, "returned NoneType"),
    "gradients not asked for": (lambda p: p.pool_gradients.n, "Need.GRADIENTS"),
    "a text of the problem": (
        lambda p: p.texts,
        r"Answers.select asks SelectionProblem for 'texts' \(.*test_selectors.py, line \d+\); what it has: b",
    ),
    "a text of an example": (
        lambda p: p.candidates[0].message,
        r"Example for 'message', perhaps for 'messages' \(.*; what it has: completion, id, messages, prompt",
    ),
    "a length": (
        lambda p: p.budget[0],
        r"'Budget' object is not .*\); what it has: amount, rows, take, unit",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_told_what_to_return(case, problem):
    answer, told = WRONG[case]
    with pytest.raises(UserError, match=told):
        choose_rows(Answers(answer), given(problem, Answers(answer)))


class AnswersByGradients(Answers):
    """Answer with whatever it is given, by gradients."""

    needs = frozenset({Need.GRADIENTS})


MISUSED = {
    "an array's method": (
        lambda g: g.mean(0),
        r"MemoryFeatures for 'mean' \(.*; what it has: dim, directions",
    ),
    "a product": (
        lambda g: g @ torch.ones(DIM),
        r"failed: unsupported operand .*; what it has: dim, directions",
    ),
    "a tensor of it": (lambda g: torch.tensor(g), "failed: .* dtype of MemoryFeatures .*; what it has: dim"),
    "an index": (
        lambda g: g.features(0, "sgd")[0],
        "'TensorRows' object .*; what it has: chunks, dtype, matrix",
    ),
}


@pytest.mark.parametrize("case", MISUSED)
def test_gradients_that_are_taken_for_an_array_are_told_what_they_have(case, problem):
    answer, told = MISUSED[case]
    with pytest.raises(UserError, match=told):
        choose_rows(AnswersByGradients(lambda p: answer(p.pool_gradients)), problem)


def test_a_target_that_is_not_there_in_domain_is_told(problem):
    asked = replace(problem, target=None, target_gradients=None)
    for chooser in (
        Answers(lambda p: [row.id for row in p.target]),
        AnswersByGradients(lambda p: p.target_gradients.n),
    ):
        with pytest.raises(UserError, match="the problem's target, which is None in-domain"):
            choose_rows(chooser, given(asked, chooser))


def test_an_error_of_another_kind_keeps_its_traceback(problem):
    for error in (lambda p: Answers.answers, lambda p: torch.ones(2) @ torch.ones(3), lambda p: [] + 1):
        with pytest.raises((AttributeError, RuntimeError, TypeError)):
            choose_rows(Answers(error), problem)


def test_a_token_budget_that_is_exceeded_is_told(problem):
    answer = Answers(lambda p: Selection(torch.arange(40), ones(40), ones(N)))
    tokens = int(problem.n_tokens[:40].sum())
    choose_rows(answer, replace(problem, budget=Budget(Unit.TOKENS, tokens)))
    with pytest.raises(UserError, match=f"of {tokens} tokens, the budget is {tokens - 1}"):
        choose_rows(answer, replace(problem, budget=Budget(Unit.TOKENS, tokens - 1)))


def test_what_a_selector_does_not_say_of_itself_has_a_default():
    plain = Answers(None)
    assert (plain.needs, plain.version, plain.distributed, plain.ignores_budget) == (
        frozenset(),
        1,
        False,
        False,
    )
    assert plain.reads() == {}


@pytest.mark.parametrize("kind", [SelectionProblem, Selection])
def test_the_help_of_the_contract_tells_every_field(kind):
    for name in kind.__dataclass_fields__:
        assert re.search(rf"^    .*\b{name}\b.*:", kind.__doc__, re.MULTILINE), name
