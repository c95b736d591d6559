"""BM25, against bm25s query by query and against the formula."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import bm25s
import numpy as np
import pytest
import torch
from baseline_problems import problem

from gtp_baselines.aggregation import Aggregation, group_target
from gtp_baselines.bm25 import BM25
from gtp_baselines.ranking import text
from gtp_exp.errors import UserError

K1, B = 1.5, 0.75


@pytest.fixture
def given():
    rng = random.Random(0)
    words = [f"word{i}" for i in range(30)] + ["the", "of"]
    texts = [
        (
            " ".join(rng.choices(words, k=rng.randint(1, 9))),
            " ".join(rng.choices(words, k=rng.randint(1, 20))),
        )
        for _ in range(40)
    ]
    texts[7] = ("!?", "1")  # no word at all
    made = problem(texts=texts)
    target = [made.candidates[i] for i in (3, 7, 11, 11, 20, 30)]
    target = [type(e)(f"target-{k}", e.messages, f"task{k % 2}") for k, e in enumerate(target)]
    return made, target


def lucene(query: list[str], documents: list[list[str]]) -> list[float]:
    """Sum over query words of ln(1 + (N - df + 0.5) / (df + 0.5)) tf / (tf + k1 (1 - b + b length / mean))"""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        total = 0.0
        for word in query:
            df = sum(word in other for other in documents)
            tf = document.count(word)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + K1 * (1 - B + B * len(document) / mean))
        scores.append(total)
    return scores


def words(example) -> list[str]:
    return [w for w in text(example).split() if w.startswith("word")]


def test_scores_are_those_of_the_formula(given):
    made, target = given
    made = replace(made, target=target)
    documents = [words(e) for e in made.candidates]
    table = np.array([lucene(words(e), documents) for e in target])
    expected = np.maximum(table[0::2].mean(0), table[1::2].mean(0))
    selection = BM25(K1, B, "en", Aggregation.MAX_SUBTASK).select(made)
    assert selection.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_language_without_stop_words_is_refused_before_any_work():
    assert BM25(stopwords="de").stopwords == "de"
    with pytest.raises(UserError, match="selector.stopwords=fi is no language of bm25s .*stopwords=null"):
        BM25(stopwords="fi")


@pytest.mark.parametrize("stopwords", ["en", None])
def test_scores_are_those_of_bm25s_query_by_query(given, stopwords):
    made, target = given
    made = replace(made, target=target)
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    tokenise = {"stopwords": stopwords or [], "show_progress": False}
    index.index(bm25s.tokenize([text(e) for e in made.candidates], **tokenise), show_progress=False)
    queries = bm25s.tokenize([text(e) for e in target], return_ids=False, **tokenise)
    expected = np.stack([index.get_scores(q) if any(q) else np.zeros(40) for q in queries])
    selector = BM25(K1, B, stopwords, Aggregation.ROUND_ROBIN)
    found = selector.relevance(
        [text(e) for e in made.candidates],
        [text(e) for e in target],
        group_target(made, Aggregation.ROUND_ROBIN),
    )
    assert np.allclose(found, expected, atol=1e-5)


def test_in_domain_every_candidate_is_a_query(given):
    made, _ = given
    alone = BM25(K1, B, "en", Aggregation.MEAN).select(replace(made, target=None))
    asked = BM25(K1, B, "en", Aggregation.MEAN).select(replace(made, target=made.candidates))
    assert torch.allclose(alone.scores, asked.scores, atol=1e-5)


def test_texts_without_words_are_not_alike(given):
    made, target = given
    selection = BM25(K1, B, "en", Aggregation.MEAN).select(replace(made, target=[target[1]]))
    assert selection.scores.abs().max() == 0


def test_a_pool_without_words_still_gives_a_selection():
    made = problem(texts=[("?", f"{i}") for i in range(20)])
    assert len(BM25(K1, B, "en", Aggregation.ROUND_ROBIN).select(made).indices) == 10


# Half of the pool asks for the weather, half for a recipe; blanks stand between no two words.
WEATHER_AND_RECIPES = {
    "Chinese": ("今天北京的天气怎么样", "请告诉我红烧肉的做法", "明天上海的天气会好吗"),
    "Japanese": ("今日の東京の天気はどうですか", "カレーの作り方を教えて", "明日の大阪の天気を知りたい"),
    "Thai": ("วันนี้อากาศที่กรุงเทพเป็นอย่างไร", "บอกสูตรต้มยำกุ้งหน่อย", "พรุ่งนี้อากาศที่เชียงใหม่เป็นไง"),
    "Khmer": ("ថ្ងៃនេះអាកាសធាតុយ៉ាងម៉េច", "សូមប្រាប់រូបមន្តម្ហូប", "ស្អែកអាកាសធាតុល្អទេ"),
    "Lao": ("ມື້ນີ້ອາກາດເປັນແນວໃດ", "ບອກວິທີເຮັດລາບ", "ມື້ອື່ນອາກາດດີບໍ"),
    "Myanmar": ("ဒီနေ့ရာသီဥတုဘယ်လိုလဲ", "ဟင်းချက်နည်းပြောပြပါ", "မနက်ဖြန်ရာသီဥတုကောင်းမလား"),
    "Hindi": ("आज मौसम कैसा है", "दाल की विधि बताओ", "कल का मौसम"),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("language", WEATHER_AND_RECIPES)
def test_rows_that_share_words_are_chosen_in_every_script(language, seed):
    weather, recipe, target = WEATHER_AND_RECIPES[language]
    texts = [(f"{weather if i % 2 else recipe} {i}", "OK") for i in range(20)]
    asked = [
        type(e)(f"target-{i}", e.messages) for i, e in enumerate(problem(texts=[(target, "x")]).candidates)
    ]
    made = replace(problem(texts=texts, rows=10, seed=seed), target=asked)
    selection = BM25(stopwords=None).select(made)
    assert sorted(selection.indices.tolist()) == list(range(1, 20, 2))
    assert selection.diagnostics["chosen_without_shared_word"] == 0


def test_a_target_without_a_shared_word_is_told(caplog):
    made = problem(texts=[(f"question {i}", "answer") for i in range(20)])
    asked = [type(e)("target", e.messages) for e in problem(texts=[("今天天气", "晴")]).candidates]
    selection = BM25().select(replace(made, target=asked))
    assert "none of the 20 candidates shares a word with the target" in caplog.text
    assert selection.diagnostics["candidates_with_shared_word"] == 0


def test_candidates_that_share_a_word_are_counted(caplog):
    made = problem(texts=[(f"question{i}", "answer" if i < 3 else "other") for i in range(20)])
    asked = [type(e)("target", e.messages) for e in problem(texts=[("answer", "yes")]).candidates]
    selection = BM25().select(replace(made, target=asked))
    assert selection.diagnostics["candidates_with_shared_word"] == 3 and " no word" not in caplog.text


def test_a_word_is_the_same_however_its_accents_are_encoded():
    made = problem(texts=[(f"question{i}", "caf\u00e9" if i < 3 else "other") for i in range(20)])
    asked = [type(e)("target", e.messages) for e in problem(texts=[("CAFE\u0301", "yes")]).candidates]
    selection = BM25().select(replace(made, target=asked))
    assert selection.diagnostics["candidates_with_shared_word"] == 3


def test_reasoning_in_a_field_of_its_own_is_text_as_any_other():
    made = problem(texts=[(f"question{i}", "other") for i in range(20)])
    rows = [
        replace(row, messages=(row.messages[0], replace(row.messages[1], reasoning="arithmetic")))
        if i < 3
        else row
        for i, row in enumerate(made.candidates)
    ]
    asked = [type(e)("target", e.messages) for e in problem(texts=[("arithmetic", "yes")]).candidates]
    selection = BM25().select(replace(made, candidates=rows, target=asked))
    assert selection.diagnostics["candidates_with_shared_word"] == 3


def test_a_part_of_the_target_without_a_shared_word_is_told(caplog):
    made = problem(texts=[(f"question{i}", "answer") for i in range(20)])
    asked = [type(e)(e.id, e.messages) for e in problem(texts=[("answer", "x"), ("今天", "晴")]).candidates]
    selection = BM25(aggregation=Aggregation.ROUND_ROBIN).select(replace(made, target=asked))
    assert "1 of 2 target groups share no word with any candidate" in caplog.text
    assert selection.diagnostics["groups_without_shared_word"] == 1
