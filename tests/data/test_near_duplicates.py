"""Near-duplicates are found in scripts with and without blanks, and a pool can be read without them."""

from __future__ import annotations

import itertools
import random

import pytest

from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.near_duplicates import NEAR, REPEATED, _met, near_duplicates, without_near_duplicates

SCRIPTS = {
    "English": [f"word{i} " for i in range(300)],
    "Chinese": [chr(0x4E00 + i) for i in range(300)],
    "Thai": [chr(0x0E01 + i) for i in range(46)],
    "Myanmar": [chr(0x1000 + i) for i in range(33)],
    "mixed": [f"word{i} " for i in range(100)] + [chr(0x3041 + i) for i in range(80)],
}


def grams(units):
    return {tuple(units[i : i + 3]) for i in range(len(units) - 2)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_rows_with_one_word_changed_are_near_duplicates_in_every_script(script):
    rng = random.Random(0)
    originals = [rng.choices(SCRIPTS[script], k=30) for _ in range(9)]
    changed = [[*row[:-1], rng.choice(SCRIPTS[script])] for row in originals]
    texts = ["".join(row) for row in (*originals, *changed)]
    assert near_duplicates(texts) == [False] * 9 + [True] * 9
    assert not any(near_duplicates(texts[:9]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_answer_is_that_of_every_pair(script):
    rng = random.Random(1)
    rows = [rng.choices(SCRIPTS[script], k=25) for _ in range(8)]
    for _ in range(40):
        row = list(rng.choice(rows))
        for _ in range(rng.randrange(5)):
            row[rng.randrange(len(row))] = rng.choice(SCRIPTS[script])
        rows.append(row)
    expected = [
        any(len(grams(a) & grams(b)) / len(grams(a) | grams(b)) >= NEAR for b in rows[:i])
        for i, a in enumerate(rows)
    ]
    assert 0 < sum(expected) < len(rows)
    assert near_duplicates(["".join(row) for row in rows]) == expected


def test_of_many_copies_only_as_many_are_looked_at_as_the_answer_needs():
    """20,000 copies of one text, and as many rows of a template, took minutes where all were gathered."""
    endless = itertools.count()
    assert list(itertools.islice(_met([1, 2, 3], {2: [8, 9], 3: endless}), 4)) == [8, 9, 0, 1]
    assert next(endless) == 2
    assert list(_met([1, 2], {1: [4, 5], 2: [5, 4, 6]})) == [4, 5, 6]


def row(name, question, answer):
    return Example(name, (Message("user", question), Message("assistant", answer)))


def test_a_pool_without_near_copies_keeps_the_first_of_each_with_its_facts():
    words = [f"w{i}" for i in range(30)]
    rows = (
        row("first", " ".join(words), "yes"),
        row("copy", " ".join(words), "yes"),
        row("edited", " ".join([*words[:-1], "other"]), "yes"),
        row("another", " ".join(reversed(words)), "yes"),
    )
    pool = Pool(rows, {"first": {"skill": "a"}, "copy": {"skill": "b"}}, {"no answer": 2})
    kept = without_near_duplicates(pool)
    assert [example.id for example in kept.examples] == ["first", "another"]
    assert kept.hidden == {"first": {"skill": "a"}}
    assert kept.skipped == {"no answer": 2, REPEATED: 2}
    assert without_near_duplicates(kept) is kept


def test_rows_that_ask_the_same_but_answer_otherwise_are_compared_by_both():
    short = (row("yes", "is it", "a b c d e f"), row("no", "is it", "u v w x y z"))
    assert without_near_duplicates(Pool(short)).examples == short
