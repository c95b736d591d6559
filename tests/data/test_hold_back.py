"""Rows held back for validation: how many of each subtask, which rows stay together, and what is refused."""

from __future__ import annotations

import random

import pytest

from conftest import conversation
from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.validation import REASON, Validation, held_back_rows, hold_back
from gtp_exp.errors import UserError


def target(*sizes: int) -> tuple[Example, ...]:
    """Rows of as many subtasks as there are sizes."""
    return tuple(
        conversation(100 * s + i, f"What is {i} times {s}?", f"{i * s}", f"subtask-{s}")
        for s, n in enumerate(sizes)
        for i in range(n)
    )


def held(examples, **options) -> set[int]:
    return held_back_rows(examples, Validation(**options), "target")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [(2,), (8, 8, 8), (3, 5, 20), (5,) * 20, (1,) * 12, (1, 9)])
def test_every_subtask_gives_the_share_and_both_sides_have_rows(sizes, share):
    rows = target(*sizes)
    back = held(rows, share=share)
    assert 1 <= len(back) < len(rows)
    for s, n in enumerate(sizes):
        count = sum(rows[i].subtask == f"subtask-{s}" for i in back)
        assert abs(count - share * n) <= 1.5
        assert n == 1 or 1 <= count < n


def test_half_is_half():
    assert len(held(target(8, 8, 8))) == 12
    assert len(held(target(*[1] * 12))) == 6


def test_rows_that_ask_the_same_are_on_one_side():
    asked = [
        (Message("user", f"What is {i} plus 2?"), Message("assistant", str(i + 2)))
        for i in range(12)
        for _ in range(3)
    ]
    shouted = [(Message("user", turns[0].content.upper() + "!"), turns[1]) for turns in asked]
    told = [(Message("system", "Be brief."), *turns) for turns in asked]
    rows = [Example(str(i), turns) for i, turns in enumerate([*asked, *shouted, *told])]
    back = held(rows)
    answers = [{rows[i].completion for i in side} for side in (back, set(range(len(rows))) - back)]
    assert answers[0] and answers[1] and not answers[0] & answers[1]


def test_rows_that_all_ask_one_thing_of_different_texts_are_told_apart_by_the_texts():
    rows = [
        Example(
            str(i),
            (
                Message("system", f"Text {i // 2}."),
                Message("user", "What is it about?"),
                Message("assistant", "x"),
            ),
        )
        for i in range(8)
    ]
    back = held(rows)
    assert 1 <= len(back) < 8 and {i ^ 1 for i in back} == back


def test_rows_without_a_prompt_are_told_apart_by_their_answers():
    rows = [Example(str(i), (Message("assistant", f"Text {i // 2}."),)) for i in range(8)]
    back = held(rows)
    assert 1 <= len(back) < 8 and {i ^ 1 for i in back} == back


def test_the_draw_is_of_questions_and_the_seed_alone():
    rows = list(target(10, 10))
    ids = {rows[i].id for i in held(rows)}
    random.Random(0).shuffle(rows)
    assert {rows[i].id for i in held(rows)} == ids
    assert len({frozenset(rows[i].id for i in held(rows, seed=seed)) for seed in range(4)}) == 4


def test_no_more_than_max_rows_are_held_back():
    assert len(held(target(40, 40), max_rows=10)) == 10


def test_the_target_loses_its_rows_and_the_pool_none():
    pool, rows = Pool(target(6)), target(4, 4)
    after, left, back = hold_back(pool, rows, Validation())
    assert after is pool and left is not None
    assert sorted(row.id for row in (*left, *back)) == sorted(row.id for row in rows)


def test_in_domain_the_pool_loses_its_rows_and_their_labels():
    rows = target(40)
    pool = Pool(rows, {row.id: {"skill": "sum"} for row in rows}, {"empty completion": 2})
    after, left, back = hold_back(pool, None, Validation(share=0.25))
    assert left is None and len(back) == 10 and len(after.examples) == 30
    assert set(after.hidden) == {row.id for row in after.examples}
    assert after.skipped == {"empty completion": 2, REASON: 10}


@pytest.mark.parametrize("rows", [(), target(1), [conversation(i, "How much?", str(i)) for i in range(5)]])
def test_rows_that_cannot_be_divided_are_refused(rows):
    with pytest.raises(UserError, match=f"cannot divide the {len(rows)} rows of the target"):
        held(rows)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.0}, {"max_rows": 0}])
def test_options_that_leave_a_side_empty_are_refused(options):
    with pytest.raises(UserError, match=f"validation.{next(iter(options))}="):
        Validation(**options)
