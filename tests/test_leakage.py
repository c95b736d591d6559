"""The leakage guard: counts what overlaps with the test, refuses a target that is the test."""

from __future__ import annotations

import pytest

from conftest import conversation
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.errors import UserError
from gtp_exp.leakage import NGRAM, flagged, leakage

LONG = " ".join(f"word{i}" for i in range(NGRAM))
TESTS = (conversation(0, "What is two plus two?", "four"), conversation(1, f"Please read: {LONG}", "done"))
TASK = EvalTask("t", "acc,none", {}, (), held_out=TESTS)


def counts(*rows, part="pool"):
    return leakage([TASK], {part: rows})[part]


def test_rows_of_other_questions_do_not_overlap():
    assert counts(conversation(5, "What is two plus three?", "five")) == {
        "rows": 1,
        "same_prompt": 0,
        "shared_ngram": 0,
    }


def test_the_same_prompt_is_found_whatever_its_case_punctuation_and_answer():
    assert counts(conversation(5, "what is TWO plus two", "5"))["same_prompt"] == 1


def test_a_shared_run_of_words_is_found_and_a_shorter_one_is_not():
    assert counts(conversation(5, f"Something else. {LONG}!", "x"))["shared_ngram"] == 1
    shorter = " ".join(LONG.split()[:-1])
    assert counts(conversation(5, f"Something else. {shorter}!", "x"))["shared_ngram"] == 0


def test_a_target_row_that_is_a_test_row_is_refused_by_its_id():
    with pytest.raises(UserError, match="row-5"):
        counts(conversation(5, "What is two plus two?", "four"), part="target")


def test_overlaps_are_put_into_words():
    report = leakage([TASK], {"pool": [TESTS[0]], "selected": [conversation(9, "Hello?", "Hi.")]})
    (line,) = flagged(report)
    assert line.startswith("pool: 1 of 1")
