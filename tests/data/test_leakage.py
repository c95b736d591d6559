"""The leakage guard: counts what overlaps with the test, refuses a target that is the test."""

from __future__ import annotations

import random

import pytest

from conftest import conversation
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example, Message
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


def chat(*turns):
    """A row of (role, content) turns."""
    return Example("row", tuple(Message(role, content) for role, content in turns))


SYSTEM = ("system", "You are a helpful assistant.")
ASKED = [("user", "What is two plus two?"), ("assistant", "four")]
EARLIER = [("user", "Hello!"), ("assistant", "Hi, how can I help?")]
LATER = [("user", "And one more?"), ("assistant", "five")]


@pytest.mark.parametrize(
    "row",
    [
        chat(SYSTEM, *ASKED),
        chat(*EARLIER, *ASKED),
        chat(*ASKED, *LATER),
        chat(SYSTEM, *EARLIER, *ASKED, *LATER),
        chat(("system", "What is two plus two?"), ("assistant", "four")),
    ],
)
def test_other_turns_hide_no_question(row):
    assert counts(row)["same_prompt"] == 1
    with pytest.raises(UserError, match="test rows"):
        counts(row, part="target")


def test_the_turns_of_a_test_row_hide_no_question_either():
    question = ("user", "How many legs has a spider?")
    rows = TestRows(
        [EvalTask("t", "acc", {}, (), held_out=(chat(SYSTEM, *EARLIER, question, ("assistant", "8")),))]
    )
    assert rows.asks(chat(question, ("assistant", "8")))
    assert not rows.asks(chat(SYSTEM, *EARLIER, ("user", "Why?"), ("assistant", "So.")))


def test_a_short_later_turn_is_a_question_only_with_what_came_before():
    test = [
        ("user", "Name a prime."),
        ("assistant", "7"),
        ("user", "And why?"),
        ("assistant", "It has no divisor."),
    ]
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=(chat(*test),))])
    assert rows.asks(chat(SYSTEM, *test))
    assert not rows.asks(chat(("user", "Name a river."), ("assistant", "Po"), *test[2:]))


def test_a_later_turn_of_four_words_is_a_question_of_its_own():
    test = [*EARLIER, ("user", "Name a long river."), ("assistant", "Nile")]
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=(chat(*test),))])
    assert rows.asks(chat(("user", "Name a long river."), ("assistant", "Amur")))
    shorter = [*EARLIER, ("user", "Name a river."), ("assistant", "Nile")]
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=(chat(*shorter),))])
    assert not rows.asks(chat(("user", "Name a river."), ("assistant", "Amur")))


ABOUT = ("user", "What is the text about?")
HARBOUR, FOREST, MARKET = (
    f"The {place} was quiet that morning." for place in ("harbour", "forest", "market")
)


@pytest.mark.parametrize("role", ["system", "user"])
def test_one_question_about_several_texts_is_asked_only_of_the_same_text(role):
    def about(text, answer):
        between = () if role == "system" else (("assistant", "I have read it."),)
        return chat(SYSTEM, (role, text), *between, ABOUT, ("assistant", answer))

    test = [about(HARBOUR, "a harbour"), about(FOREST, "a forest")]
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=tuple(test))])
    assert not rows.asks(about(MARKET, "a market"))
    assert leakage(rows, {"target": [about(MARKET, "a market")]})["target"]["same_prompt"] == 0
    with pytest.raises(UserError, match="test rows"):
        leakage(rows, {"target": [about(FOREST, "trees")]})
    for other in ("system", "user"):  # and without the instruction that all test rows share
        assert rows.asks(chat((other, HARBOUR + " "), ABOUT, ("assistant", "ships")))


def test_an_empty_system_prompt_is_no_context():
    empty, read = ("system", ""), ("assistant", "I have read it.")
    test = (
        chat(empty, ("user", HARBOUR), read, ABOUT, ("assistant", "a harbour")),
        chat(("user", FOREST), read, ABOUT, ("assistant", "a forest")),
    )
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=test)])
    assert rows.asks(chat(("system", HARBOUR), ABOUT, ("assistant", "ships")))
    assert not rows.asks(chat(empty, ("user", MARKET), read, ABOUT, ("assistant", "a market")))


def test_a_question_that_has_one_answer_is_asked_in_any_context():
    personas = [("system", f"You are a {who}.") for who in ("pirate", "poet", "judge")]
    test = tuple(chat(persona, *ASKED) for persona in personas[:2])
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=test)])
    assert rows.asks(chat(personas[2], *ASKED)) and rows.asks(chat(*ASKED))
    accepted = tuple(chat(ASKED[0], ("assistant", answer)) for answer in ("four", "4"))
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=accepted)])
    assert rows.asks(chat(personas[2], *ASKED))


def test_a_system_prompt_that_a_pool_shares_with_the_test_is_no_overlap():
    long = ("system", LONG)
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=(chat(long, *ASKED),))])
    other = [("user", "What is the capital of Peru?"), ("assistant", "Lima")]
    assert not rows.shares_run(chat(long, *other)) and not rows.asks(chat(long, *other))


# 20 characters or more of each script without blanks, without a blank between them.
UNSPACED = {
    "Chinese": "一九九八年在北京举行的那场重要会议究竟讨论了哪些经济问题",
    "Japanese": "東京で去年の夏に開かれた国際会議では何について話し合われましたか",
    "Thai": "เมื่อปีที่แล้วมีการประชุมใหญ่เรื่องอะไรในกรุงเทพมหานคร",
    "Khmer": "កាលពីឆ្នាំមុនមានការប្រជុំធំអំពីអ្វីនៅក្នុងរាជធានីភ្នំពេញ",
    "Lao": "ປີກາຍນີ້ມີກອງປະຊຸມໃຫຍ່ກ່ຽວກັບຫຍັງຢູ່ນະຄອນຫຼວງວຽງຈັນ",
    "Myanmar": "မနှစ်ကရန်ကုန်မြို့တွင်ကျင်းပသောအစည်းအဝေးကြီးသည်ဘာအကြောင်းလဲ",
}


@pytest.mark.parametrize("language", UNSPACED)
def test_a_shared_run_is_found_in_a_script_without_blanks(language):
    text = UNSPACED[language]
    assert against(text, f"x{text}y")["shared_ngram"] == 1
    assert against(text, text[:-1] + "x") == {"rows": 1, "same_prompt": 0, "shared_ngram": 1}
    assert against(text, f"GPT {text[:4]} 2024 {text[-4:]}")["shared_ngram"] == 0
    assert all(
        against(text, other)["shared_ngram"] == 0 for name, other in UNSPACED.items() if name != language
    )


@pytest.mark.parametrize("language", UNSPACED)
def test_the_same_question_is_found_in_a_script_without_blanks(language):
    text = UNSPACED[language]
    row = chat(SYSTEM, ("user", text + "。"), ("assistant", "x"))
    rows = TestRows([EvalTask("t", "acc", {}, (), held_out=(conversation(0, text, "y"),))])
    assert rows.asks(row) and not rows.asks(conversation(1, text[1:], "x"))


def test_blanks_in_a_script_without_them_do_not_count():
    assert against("请问 GPT 模型是什么？", "请问GPT模型 是什么")["same_prompt"] == 1
    assert against("GPT 4 是什么", "GPT4是什么")["same_prompt"] == 0


def test_mixed_text_is_compared_by_words_and_characters():
    test = "请问 Transformer 模型里的 attention 机制和 RNN 有什么不同"
    assert against(test, "请问Transformer模型里的attention机制和RNN有什么区别")["shared_ngram"] == 1
    assert against(test, "请问 Transformer 模型里的 attention 和别的 RNN 机制")["shared_ngram"] == 0


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


def test_a_run_of_words_in_reasoning_of_its_own_field_is_found_as_one_in_the_answer():
    said = " ".join(f"word{i}" for i in range(NGRAM))
    answers = (Message("assistant", "7", said), Message("assistant", f"<think>\n{said}\n</think>\n7"))
    asked, other = Message("user", "How much is it?"), Message("user", "What is the sum?")
    for test, row in [(answers[0], answers[1]), (answers[1], answers[0])]:
        rows = TestRows([EvalTask("sums", "", {}, (), held_out=(Example("test", (asked, test)),))])
        assert rows.shares_run(Example("pool", (other, row)))


def test_a_target_row_that_is_a_test_row_is_refused_by_its_id():
    with pytest.raises(UserError, match="row-5.*: take them out of the benchmark's target, or of its test"):
        counts(conversation(5, "What is two plus two?", "four"), part="target")


def test_overlaps_are_put_into_words():
    report = leakage(TestRows([TASK]), {"pool": [TESTS[0]], "selected": [conversation(9, "Hello?", "Hi.")]})
    (line,) = flagged(report)
    assert line.startswith("pool: 1 of 1")
