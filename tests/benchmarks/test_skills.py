"""The skills: exact answers, fair choices, and a split that no wording and no seed can cross."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import string
from collections import Counter
from random import Random

import pytest

from gtp_benchmarks.skills.chit_chat import CHIT_CHAT, TOPICS
from gtp_benchmarks.skills.lexicon import ANTONYMS, CATEGORIES, PLURALS, UNITS, WEEKDAYS
from gtp_benchmarks.skills.number_skills import roman
from gtp_benchmarks.skills.question import CLOSERS, OPENERS, Question, Split
from gtp_benchmarks.skills.registry import SKILLS
from gtp_benchmarks.skills.sentences import DESKS, MESSAGES, REVIEWED, SHELVES, VERDICTS
from gtp_exp.errors import UserError


def drawn(name: str, n: int = 120, split: Split = Split.POOL) -> list[Question]:
    return list(itertools.islice(SKILLS[name].questions(split, Random(1)), n))


def test_there_are_many_skills_with_ten_or_more_phrasings_each():
    assert len(SKILLS) >= 14
    for skill in SKILLS.values():
        for form, phrasings in skill.phrasings.items():
            assert len(set(phrasings)) >= 10, (skill.name, form)


@pytest.mark.parametrize("name", SKILLS)
def test_every_phrasing_shows_everything_that_is_asked(name):
    skill = SKILLS[name]
    for form, phrasings in skill.phrasings.items():
        fields = [{f for _, f, _, _ in string.Formatter().parse(p) if f} for p in phrasings]
        assert all(f == fields[0] for f in fields), (form, fields)


@pytest.mark.parametrize("name", SKILLS)
def test_choices_are_distinct_and_none_begins_another(name):
    for question in drawn(name):
        choices = [question.answer, *question.distractors]
        assert len(choices) == len(set(choices)) and len(choices) >= 2
        assert not any(a.startswith(b) for a, b in itertools.permutations(choices, 2)), choices


@pytest.mark.parametrize("name", SKILLS)
def test_numeric_choices_have_the_same_number_of_digits(name):
    for question in drawn(name):
        if question.answer.isdigit():
            assert {len(c) for c in question.distractors} == {len(question.answer)}


@pytest.mark.parametrize("name", SKILLS)
def test_a_question_is_asked_once_per_split_and_never_in_two(name):
    identities = {split: [q.identity for q in drawn(name, 80, split)] for split in Split}
    for found in identities.values():
        assert len(set(found)) == len(found)
    for a, b in itertools.combinations(identities.values(), 2):
        assert not set(a) & set(b)


@pytest.mark.parametrize("name", SKILLS)
def test_hundreds_of_test_questions_exist(name):
    assert len(drawn(name, 200, Split.TEST)) == 200


def test_the_answer_key_is_right():
    """Answers worked out again from what the prompt shows, by other means than the generator's."""
    for q in drawn("arithmetic"):
        a, b = int(q.slots["a"]), int(q.slots["b"])
        assert int(q.answer) == (a + b if q.form == "plus" else a - b)
    for q in drawn("multiplication"):
        assert int(q.answer) == sum(int(q.slots["a"]) for _ in range(int(q.slots["b"])))
    for q in drawn("comparison"):
        ordered = sorted(int(q.slots[k]) for k in "abc")
        assert int(q.answer) == ordered[2 if q.form == "largest" else 0]
    for q in drawn("sequence"):
        w, x, y, z = map(int, q.slots["terms"].split(", "))
        steady = x - w == y - x == z - y
        assert steady or x * x == w * y
        assert int(q.answer) == (2 * z - y if steady else z * z // y)
    for q in drawn("roman_numerals"):
        numeral, number = (q.slots["r"], q.answer) if q.form == "from_roman" else (q.answer, q.slots["n"])
        assert from_roman(numeral) == int(number)
    factor = {(large, small): n for large, small, n in UNITS}
    for q in drawn("unit_conversion"):
        n, f = int(q.slots["n"]), factor[q.slots["large"], q.slots["small"]]
        assert int(q.answer) == (n * f if q.form == "down" else n // f)
        assert q.form == "down" or n % f == 0
    for q in drawn("weekday"):
        today, step = WEEKDAYS.index(q.slots["day"]), 1 if q.form == "after" else -1
        for _ in range(int(q.slots["n"])):
            today = (today + step) % 7
        assert q.answer == WEEKDAYS[today]
    for q in drawn("clock"):
        hours, minutes = divmod(int(q.slots["n"]), 60)
        h, m = map(int, q.slots["time"].split(":"))
        h, m = (h + hours, m + minutes) if m + minutes < 60 else (h + hours + 1, m + minutes - 60)
        assert q.answer == f"{h % 24:02}:{m:02}"
    for q in drawn("change"):
        s = {k: int(v) for k, v in q.slots.items() if v.isdigit()}
        assert int(q.answer) + s["n"] * s["price"] == s["paid"] and int(q.answer) > 0
    for q in drawn("sorting"):
        answer = q.answer.split(", ")
        assert Counter(answer) == Counter(q.slots["words"].split(", "))
        assert all(a < b for a, b in itertools.pairwise(answer))
    for q in drawn("letter_count"):
        assert int(q.answer) == len(re.findall(q.slots["letter"], q.slots["text"]))
    for q in drawn("last_letters"):
        assert q.answer == "".join(re.findall(r"(\w)(?:,|$)", q.slots["words"]))
    for q in drawn("reversal"):
        assert ", ".join(reversed(q.answer.split(", "))) == q.slots["words"]
    opposites = {frozenset(pair) for pair in ANTONYMS}
    for q in drawn("antonym"):
        fitting = [o for o in q.slots["options"].split(", ") if {o, q.slots["word"]} in opposites]
        assert fitting == [q.answer]
    kind = {
        word: {k for k, words in CATEGORIES.items() if word in words}
        for ws in CATEGORIES.values()
        for word in ws
    }
    for q in drawn("odd_one_out"):
        shared = set.intersection(*(kind[w] for w in q.distractors))
        assert shared and not shared & kind[q.answer]
        assert sorted(q.slots["items"].split(", ")) == sorted([q.answer, *q.distractors])
    for q in drawn("category"):
        assert [o for o in q.slots["options"].split(", ") if o in kind[q.slots["word"]]] == [q.answer]
    for q in drawn("longest_word"):
        lengths = {w: len(w) for w in q.slots["words"].split(", ")}
        assert [w for w, n in lengths.items() if n == max(lengths.values())] == [q.answer]
    for q in drawn("position"):
        place = ["first", "second", "third", "fourth", "fifth"].index(q.slots["nth"])
        assert q.answer == q.slots["words"].split(", ")[place]
    for q in drawn("contains"):
        assert q.answer == ("no" if q.slots["word"].find(q.slots["letter"]) < 0 else "yes")
    for q in drawn("boolean"):
        assert q.answer == str(eval(q.slots["expression"], {"__builtins__": {}}))
    for q in drawn("ranking"):
        assert q.answer == ranked(q)
    plural = {one: many for one, many, _ in PLURALS}
    for q in drawn("plural"):
        assert q.answer.split(" and ") == [plural[q.slots["a"]], plural[q.slots["b"]]]


def test_the_answer_key_of_the_sentences_is_right():
    """The label is worked out from the words of the sentence alone."""
    for q in drawn("desk"):
        assert [desk for desk, items in DESKS.items() if names_one(q.slots["text"], items)] == [q.answer]
    for q in drawn("shelf"):
        fitting = [s for s, parts in SHELVES.items() if all(names_one(q.slots["text"], p) for p in parts)]
        assert fitting == [q.answer]
    for q in drawn("review"):
        fitting = [v for v, parts in VERDICTS.items() if all(names_one(q.slots["text"], p) for p in parts)]
        assert fitting == [q.answer]
    for q in drawn("rewriting"):
        (item,) = [i for items in DESKS.values() for i in items if names_one(q.slots["text"], [i])]
        asked = {casual.format(item=item): formal.format(item=item) for casual, formal in MESSAGES}
        assert asked[q.slots["text"]] == q.answer
    for q in drawn("word_count"):
        assert int(q.answer) == len(re.findall(r"\S+", q.slots["text"]))
    for q in drawn("continuation"):
        shelf = next(s for s, (who, _, _) in SHELVES.items() if q.slots["text"].startswith(who))
        for answer in (q.answer, *q.distractors):
            fits = all(names_one(answer, p) for p in SHELVES[shelf][1:])
            assert fits == (answer == q.answer)
        assert q.answer[5:].split(" ")[0].lower() == q.slots["text"].split(" ")[0].lower()
    for q in drawn("reply"):
        (thing,) = [t for t in REVIEWED if q.slots["text"].startswith(f"The {t} was ")]
        good = all(names_one(q.slots["text"], p) for p in VERDICTS["good"])
        assert f"with the {thing}," in q.answer if not good else f"enjoyed the {thing}," in q.answer


def names_one(text, parts):
    return any(re.search(rf"\b{re.escape(part)}\b", text) for part in parts)


@pytest.mark.parametrize("name", ["desk", "shelf", "review"])
@pytest.mark.parametrize("split", Split)
def test_every_label_is_asked_for_equally_often(name, split):
    """A test asks for all of them, and a target shows all of them."""
    labels = SKILLS[name].labels
    questions = drawn(name, 3 * len(labels), split)
    assert Counter(q.label for q in questions) == {label: 3 for label in labels}
    assert all(q.label == q.answer and set(q.distractors) < set(labels) for q in questions)
    assert all(len(q.distractors) == min(4, len(labels) - 1) for q in questions)


def test_one_skill_has_a_dozen_labels():
    assert len(SKILLS["desk"].labels) >= 12


def test_no_sentence_names_its_label():
    for name in ("desk", "shelf", "review"):
        for q in drawn(name, 200):
            assert q.answer.lower() not in q.slots["text"].lower().split(), q


def from_roman(numeral: str) -> int:
    value = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    numbers = [value[letter] for letter in numeral]
    return sum(-n if any(m > n for m in numbers[i + 1 : i + 2]) else n for i, n in enumerate(numbers))


def ranked(question: Question) -> str:
    """Who stands at the asked end, from the sentences alone."""
    more = {
        "taller": "tallest",
        "older": "oldest",
        "faster": "fastest",
        "richer": "richest",
        "stronger": "strongest",
    }
    above = set()
    for left, word, right in re.findall(r"(\w+) is (\w+) than (\w+)\.", question.slots["facts"]):
        above.add((left, right) if word in more else (right, left))
    people = {p for pair in above for p in pair}
    ends = [
        p for p in people if question.slots["superlative"] in more.values() and p not in {b for _, b in above}
    ]
    ends += [
        p
        for p in people
        if question.slots["superlative"] not in more.values() and p not in {a for a, _ in above}
    ]
    assert len(people) == 3 and len(ends) == 1
    return ends[0]


@pytest.mark.parametrize("n", [4, 9, 14, 40, 90, 399, 1994])
def test_roman_numerals_read_back(n):
    assert from_roman(roman(n)) == n


@pytest.mark.parametrize("name", ["boolean", "contains"])
def test_two_way_answers_are_balanced(name):
    counts = Counter(q.answer for q in drawn(name, 300))
    assert len(counts) == 2 and min(counts.values()) > 100


def test_a_used_up_skill_is_refused_by_name():
    with pytest.raises(UserError, match="'contains'"):
        list(itertools.islice(SKILLS["contains"].questions(Split.TARGET, Random(0)), 5000))


def test_openers_and_closers_go_around_the_phrasing_only():
    skill, rng = SKILLS["boolean"], Random(0)
    question = drawn("boolean", 1)[0]
    for wording, closers in (
        (0, ("", *CLOSERS)),
        (2, ("",)),
    ):  # "What is ...?" and "... is", which breaks off
        bare = skill.phrasings[question.form][wording].format(**question.slots)
        seen = {skill.prompt(question, wording, rng) for _ in range(500)}
        assert len(seen) > len(OPENERS)
        assert seen <= {opener + bare + closer for opener in ("", *OPENERS) for closer in closers}


def test_small_talk_replies_to_its_topic():
    rng = Random(0)
    for _ in range(50):
        question = CHIT_CHAT.draw(rng)
        assert question.answer in {r.format(**question.slots) for r in TOPICS[question.form][1]}


def test_questions_are_the_same_on_every_python():
    """The hash was made with Python 3.11; `random` promises the same floats, not the same choices."""
    rows = [
        [name, q.form, dict(q.slots), q.answer, q.distractors]
        for name in SKILLS
        for q in drawn(name, 30)
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digest[:16] == "c07a23a7b359295b"
