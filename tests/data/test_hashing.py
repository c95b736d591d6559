"""The content hash changes with the content, and with nothing else."""

from __future__ import annotations

from dataclasses import replace

from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.hashing import content_hash

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
