"""The leakage guard: counts what overlaps with the test, refuses a target that is the test."""

from __future__ import annotations

import random

import pytest

from conftest import conversation
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.leakage import NGRAM, TestRows, flagged, leakage
from gtp_exp.errors import UserError

LONG = " ".join(f"word{i}" for i in range(NGRAM))
TESTS = (conversation(0, "What is two plus two?", "four"), conversation(1, f"Please read: {LONG}", "done"))
TASK = EvalTask("t", "acc,none", {}, (), held_out=TESTS)


def counts(*rows, part="pool"):
    return leakage(TestRows([TASK]), {part: rows})[part]


def against(test, row):
    """Overlap of one row with one test row, both given as their prompt."""
    tasks = [EvalTask("t", "acc,none", {}, (), held_out=(conversation(0, test, ""),))]
    return leakage(TestRows(tasks), {"pool": [conversation(1, row, "")]})["pool"]


def test_rows_of_other_questions_do_not_overlap():
    assert counts(conversation(5, "What is two plus three?", "five")) == {
        "rows": 1,
        "same_prompt": 0,
        "shared_ngram": 0,
    }


def test_the_same_prompt_is_found_whatever_its_case_spacing_last_mark_and_answer():
    assert counts(conversation(5, "what is TWO  plus\ntwo ", "5"))["same_prompt"] == 1


@pytest.mark.parametrize(
    ("test", "row"),
    [
        ("What is i + 5?", "What is i - 5?"),
        ("What is 2 * 3?", "What is 2 / 3?"),
        ("Is 3 < 5?", "Is 3 > 5?"),
        ("Print f(x)", "Print f[x]"),
        ("What is 1.5 + 1?", "What is 15 + 1?"),
        ("What is 5!", "What is 5?"),
        ("日本の首都は？", "日本の首都は、"),
    ],
)
def test_questions_that_differ_in_a_sign_are_different(test, row):
    assert against(test, row)["same_prompt"] == 0
    assert against(test, test)["same_prompt"] == 1


@pytest.mark.parametrize("empty", ["", " \n", "...", "?"])
def test_a_prompt_that_asks_nothing_is_no_overlap(empty):
    assert against(empty, empty)["same_prompt"] == 0
    leakage(
        TestRows([EvalTask("t", "acc", {}, (), held_out=(conversation(0, empty, "x"),))]),
        {"target": [conversation(1, empty, "y")]},
    )  # not refused


def test_words_that_hold_together_are_one_word_of_a_run():
    hyphens = "-".join("abcdefghijklm")
    assert against(f"Spell {hyphens}.", hyphens)["shared_ngram"] == 0


def test_signs_between_words_are_told_apart_and_make_no_run_longer():
    numbers = [str(i) for i in range(NGRAM)]
    assert against(" + ".join(numbers), " - ".join(numbers))["shared_ngram"] == 0
    assert against(" + ".join(numbers), " + ".join(numbers))["shared_ngram"] == 1
    assert against(" - ".join(numbers[:-1]), " - ".join(numbers[:-1]))["shared_ngram"] == 0


def test_a_run_is_found_wherever_it_stands():
    """The look-up goes in blocks: every offset in the row and every length near the limit must be seen."""
    rng = random.Random(0)
    test = [f"t{i}" for i in range(40)]
    rows = TestRows([EvalTask("t", "acc,none", {}, (), held_out=(conversation(0, " ".join(test), ""),))])
    for before in range(0, 17):
        for length in (NGRAM - 1, NGRAM, NGRAM + 5):
            start = rng.randrange(len(test) - length + 1)
            own = [f"o{i}" for i in range(before)], [f"p{i}" for i in range(rng.randrange(9))]
            row = conversation(1, " ".join([*own[0], *test[start : start + length], *own[1]]), "")
            assert rows.shares_run(row) is (length >= NGRAM)


def test_two_shorter_runs_are_no_long_one():
    words = LONG.split()
    row = [*words[:7], "other", *words[7:], *words[:6]]
    assert counts(conversation(5, " ".join(row), "x"))["shared_ngram"] == 0


def test_rows_indexed_once_count_the_same():
    rows = TestRows([TASK])
    parts = {"pool": [*TESTS, conversation(5, "Hello?", "Hi.")]}
    assert leakage(rows, parts) == leakage(rows, parts) == leakage(TestRows([TASK]), parts)
    assert leakage(rows, parts)["pool"] == {"rows": 3, "same_prompt": 2, "shared_ngram": 1}


def test_a_shared_run_of_words_is_found_and_a_shorter_one_is_not():
    assert counts(conversation(5, f"Something else. {LONG}!", "x"))["shared_ngram"] == 1
    shorter = " ".join(LONG.split()[:-1])
    assert counts(conversation(5, f"Something else. {shorter}!", "x"))["shared_ngram"] == 0


def test_a_target_row_that_is_a_test_row_is_refused_by_its_id():
    with pytest.raises(UserError, match="row-5"):
        counts(conversation(5, "What is two plus two?", "four"), part="target")


def test_overlaps_are_put_into_words():
    report = leakage(TestRows([TASK]), {"pool": [TESTS[0]], "selected": [conversation(9, "Hello?", "Hi.")]})
    (line,) = flagged(report)
    assert line.startswith("pool: 1 of 1")
