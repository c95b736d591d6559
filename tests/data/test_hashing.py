"""The content hash changes with the content, and with nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

from gtp_exp.data.examples import Example, Message, Pool, TokenizedExample
from gtp_exp.data.hashing import content_hash, rows_hash

A = Example("a", (Message("user", "Hi"), Message("assistant", "Hello é\u2028")))
B = Example("b", (Message("user", "Bye"), Message("assistant", "See you")), "talk")


def test_the_hash_is_the_same_on_every_machine():
    assert content_hash((A, B)) == "b0b671ee802fc51533e1fc510b69cda27a602b6d4c11dfc9b02dda3c12f2b15e"


def test_the_hash_follows_ids_texts_roles_subtasks_and_order():
    variants = [
        (A, B),
        (B, A),
        (A,),
        (),
        (replace(A, id="c"), B),
        (A, replace(B, subtask="")),
        (replace(A, messages=(Message("system", "Hi"), A.messages[1])), B),
        (replace(A, messages=(Message("user", "Hi "), A.messages[1])), B),
        (replace(A, messages=(*A.messages, *A.messages)), B),
        (replace(A, messages=(Message("user", 'Hi"],["assistant","Hello é\u2028'),)), B),
    ]
    assert len({content_hash(v) for v in variants}) == len(variants)


def test_the_hash_ignores_what_selectors_do_not_see():
    plain = content_hash((A, B))
    assert content_hash(Pool((A, B))) == plain
    assert content_hash(Pool((A, B), {"a": {"source": "s"}}, {"empty completion": 3})) == plain


def test_the_hash_of_rows_follows_everything_that_a_model_reads_of_them():
    row = TokenizedExample("a", (1, 2, 3), (-100, 2, 3))
    other = {"id": "b", "input_ids": (1, 2, 4), "labels": (-100, -100, 3), "answers": ((1, 2),), "cut": True}
    told_of_messages = {"turns"}  # what a model reads of them is in the labels
    assert set(other) == {field.name for field in fields(TokenizedExample)} - told_of_messages
    changed = [replace(row, **{name: value}) for name, value in other.items()]
    hashes = {rows_hash([A], [each]) for each in [row, *changed]} | {rows_hash([B], [row])}
    assert len(hashes) == 7
    assert rows_hash([A], [row]) == rows_hash([A], [replace(row)])


def test_the_hash_of_rows_tells_where_one_ends():
    first = TokenizedExample("a", (1, 2), (1, 2)), TokenizedExample("b", (3,), (3,))
    second = TokenizedExample("a", (1,), (1,)), TokenizedExample("b", (2, 3), (2, 3))
    assert rows_hash([A, B], first) != rows_hash([A, B], second)
