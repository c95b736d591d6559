"""Rows held out of any pool: what is tested is never among the candidates, nor is a copy of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import conversation
from gtp_benchmarks.pool_held_out import NAME, PoolHeldOut, held_out_rows
from gtp_exp.data.benchmark import HELD_OUT_LOSS
from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.leakage import TestRows
from gtp_exp.errors import UserError


def pool(n=60, copies=3):
    """n questions; every tenth one occurs `copies` times, under other ids and in other letters."""
    rows = [conversation(i, f"What is {i} plus 1?", f"{i + 1}") for i in range(n)]
    for i in range(0, n, 10):
        rows += [conversation(1000 * c + i, f"what is {i} PLUS 1", f"{i + 1}") for c in range(1, copies)]
    return Pool(tuple(rows), {e.id: {"n": i} for i, e in enumerate(rows)}, {"no completion": 2})


def asked(examples):
    return {" ".join(e.prompt.lower().replace("?", "").split()) for e in examples}


def test_the_pool_loses_exactly_the_test_rows():
    whole = pool()
    rest, benchmark = PoolHeldOut(20, 0).split(whole)
    assert len(benchmark.rows) == 20 and len(rest.examples) == len(whole.examples) - 20
    assert {e.id for e in rest.examples} | {e.id for e in benchmark.rows} == {e.id for e in whole.examples}
    assert [e for e in whole.examples if e in rest.examples] == list(rest.examples)  # in the pool's order
    assert set(rest.hidden) == {e.id for e in rest.examples}
    assert rest.skipped == {"no completion": 2, "held out for the test": 20}


def test_no_test_question_is_left_in_the_pool():
    for seed in range(8):
        rest, benchmark = PoolHeldOut(25, seed).split(pool())
        assert asked(rest.examples).isdisjoint(asked(benchmark.rows))


def test_rows_that_ask_the_same_after_other_turns_stay_together():
    """What the guard against test rows would find in the pool is not left there."""
    rows = []
    for i in range(40):
        ask = (Message("user", f"What is {i} plus 1?"), Message("assistant", f"{i + 1}"))
        before = (Message("user", "Hello."), Message("assistant", "Hi."))
        more = (Message("user", "Go on."), Message("assistant", "No."))
        rows += [
            Example(f"{i}-{kind}", turns)
            for kind, turns in enumerate(
                [ask, (Message("system", "Be brief."), *ask), (*before, *ask), (*ask, *more)]
            )
        ]
    rest, benchmark = PoolHeldOut(60, 0).split(Pool(tuple(rows)))
    tests = TestRows(benchmark.tasks())
    assert len(benchmark.rows) >= 56 and not any(tests.asks(row) for row in rest.examples)


def test_prompts_that_differ_in_a_vowel_sign_are_told_apart():
    rows = [conversation(i, f"का{sign}", "x") for i, sign in enumerate("\u0900\u0901\u0902\u0903")]
    assert len(held_out_rows(rows, 1, 0)) == 1


@given(st.randoms(use_true_random=False), st.integers(1, 36), st.integers(0, 5))
def test_the_choice_depends_on_the_prompts_alone(rng: random.Random, n, seed):
    rows = list(pool().examples)
    taken = held_out_rows(rows, n, seed)
    shuffled = [replace(e, id=f"other-{i}") for i, e in enumerate(rng.sample(rows, len(rows)))]
    again = held_out_rows(shuffled, n, seed)
    assert Counter(e.prompt for e in taken) == Counter(e.prompt for e in again)
    assert len(taken) <= n


def test_the_seed_chooses_other_rows():
    taken = {tuple(sorted(e.id for e in held_out_rows(pool().examples, 20, seed))) for seed in range(4)}
    assert len(taken) == 4


def test_a_larger_pool_moves_few_rows():
    """A hash, not a draw: new rows take places, they do not shuffle the others."""
    small, large = pool(200, 1), pool(220, 1)
    before, after = ({e.prompt for e in held_out_rows(p.examples, 50, 0)} for p in (small, large))
    assert len(before & after) >= 40


def test_the_task_is_the_loss_of_the_held_out_rows():
    _, benchmark = PoolHeldOut(20, 0).split(pool())
    (task,) = benchmark.tasks()
    assert benchmark.target() is None
    assert (task.name, task.metric, task.held_out) == (NAME, HELD_OUT_LOSS, benchmark.rows)


def test_rows_without_a_word_are_told_apart():
    rows = [
        replace(e, messages=(Message("user", "?" * (i + 1)), e.messages[-1]))
        for i, e in enumerate(conversation(i, "", "x") for i in range(10))
    ]
    assert len({e.prompt for e in held_out_rows(rows, 5, 0)}) == 5


@pytest.mark.parametrize("n", [0, -3])
def test_no_test_row_is_refused(n):
    with pytest.raises(UserError, match=f"benchmark.test_rows={n}"):
        PoolHeldOut(n, 0)


def test_a_test_as_large_as_the_pool_is_refused():
    with pytest.raises(UserError, match="test_rows=50 is more than half of the pool's 72 rows"):
        PoolHeldOut(50, 0).split(pool())


def test_a_prompt_with_too_many_rows_is_refused():
    rows = tuple(conversation(i, "Go on.", f"{i}") for i in range(10))
    with pytest.raises(UserError, match="every prompt of the pool has more rows than benchmark.test_rows=3"):
        PoolHeldOut(3, 0).split(Pool(rows))


def test_without_a_split_there_is_nothing_to_test_on():
    with pytest.raises(UserError, match="after it has split a pool"):
        PoolHeldOut(3, 0).tasks()
