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
