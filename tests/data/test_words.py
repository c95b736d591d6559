"""Words in any script: between blanks, or characters where a script has none."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gtp_exp.data.words import comparable, terms, words

# A sentence of each script without blanks, and how many characters it has, marks not counted.
UNSPACED = {
    "Chinese": ("今天天气怎么样", 7),
    "Japanese": ("時々コーヒーをのむ", 9),
    "Thai": ("วันนี้อากาศดี", 9),
    "Lao": ("ພາສາລາວ", 7),
    "Khmer": ("ភាសាខ្មែរ", 5),
    "Myanmar": ("မြန်မာဘာသာ", 5),
}


@pytest.mark.parametrize("language", UNSPACED)
def test_each_character_of_a_script_without_blanks_is_a_word(language):
    text, n = UNSPACED[language]
    assert len(words(text)) == n and "".join(words(text)) == text


@pytest.mark.parametrize("language", UNSPACED)
def test_a_search_counts_pairs_of_such_characters(language):
    text, n = UNSPACED[language]
    assert len(list(terms(text))) == n - 1
    assert list(terms(words(text)[0])) == words(text)[:1]


@given(st.text(st.characters(codec="ascii")))
def test_plain_text_has_the_words_that_it_always_had(text):
    assert words(text) == text.split()
    assert list(terms(text)) == re.findall(r"\b\w\w+\b", text)


def test_mixed_text_has_words_of_both_kinds():
    assert words("我有3个apple and 梨") == ["我", "有", "3", "个", "apple", "and", "梨"]
    assert list(terms("我有GPT-4o模型,and x")) == ["我有", "GPT", "4o", "模型", "and"]


def test_letters_with_marks_are_whole_in_scripts_with_blanks():
    assert list(terms("हिन्दी में की")) == ["हिन्दी", "में", "की"]  # vowel signs are no letters to `re`
    assert words("안녕하세요 세계") == ["안녕하세요", "세계"]


def test_text_that_reads_the_same_compares_the_same():
    assert comparable("CAFE\u0301") == comparable("café")
    assert comparable("ភាសា\u200bខ្មែរ") == comparable("ភាសាខ្មែរ")
