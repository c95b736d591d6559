"""The count of near-duplicates, in scripts with and without blanks."""

from __future__ import annotations

import random

import pytest

from gtp_exp.data.near_duplicates import NEAR, near_duplicates

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
    assert near_duplicates(texts) == 9
    assert near_duplicates(texts[:9]) == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_count_is_that_of_every_pair(script):
    rng = random.Random(1)
    rows = [rng.choices(SCRIPTS[script], k=25) for _ in range(8)]
    for _ in range(40):
        row = list(rng.choice(rows))
        for _ in range(rng.randrange(5)):
            row[rng.randrange(len(row))] = rng.choice(SCRIPTS[script])
        rows.append(row)
    expected = sum(
        any(len(grams(a) & grams(b)) / len(grams(a) | grams(b)) >= NEAR for b in rows[:i])
        for i, a in enumerate(rows)
    )
    assert 0 < expected < len(rows)
    assert near_duplicates(["".join(row) for row in rows]) == expected
