"""Length, and the near-duplicate filter."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from baseline_problems import problem, with_rows

from gtp_baselines.dedup_random import DedupRandom
from gtp_baselines.length import Length
from gtp_baselines.random import Random
from gtp_baselines.ranking import text
from gtp_exp.data.examples import Message


def test_the_longest_completions_are_chosen():
    lengths = torch.tensor([(7 * i) % 23 for i in range(40)])
    given = replace(problem(), n_completion_tokens=lengths)
    chosen = Length().select(given).indices
    assert lengths[chosen].tolist() == lengths.sort(descending=True).values[:10].tolist()


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def copies():
    """25 texts of their own, and 15 copies of some of them with one word of forty changed."""
    rng = random.Random(3)
    texts = [(f"Question {i}", " ".join(f"w{rng.randrange(9999)}" for _ in range(40))) for i in range(25)]
    for i in range(15):
        question, answer = texts[i % 10]
        words = answer.split()
        words[-1 - i] = "changed"
        texts.append((question, " ".join(words)))
    return problem(texts=texts)


@pytest.fixture(scope="module")
def selector():
    return DedupRandom(threshold=0.6, ngram=3, hashes=256)


def test_near_copies_are_those_of_the_exact_similarity(copies, selector):
    texts = [text(e) for e in copies.candidates]
    kept: list[set] = []
    expected = []
    for one in map(selector.shingles, texts):
        expected.append(any(jaccard(one, other) >= 0.6 for other in kept))
        if not expected[-1]:
            kept.append(one)
    assert sum(expected) == 15
    assert selector.near_copies(texts).tolist() == expected


def test_the_same_answer_reached_by_other_reasoning_is_no_near_copy(selector):
    def reasoned(i, example):
        thought = " ".join(f"thought{i}-{k}" for k in range(20))
        return replace(example, messages=(Message("user", "2 + 2?"), Message("assistant", "4", thought)))

    given = problem()
    rows = tuple(reasoned(i, example) for i, example in enumerate(given.candidates))
    chosen = selector.select(replace(given, candidates=rows))
    assert chosen.diagnostics["near_copies_in_pool"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_no_near_copy_is_chosen_while_other_rows_are_left(copies, selector, seed):
    given = replace(copies, seed=seed)
    selection = selector.select(with_rows(given, 25))
    shingles = [selector.shingles(text(given.candidates[i])) for i in selection.indices.tolist()]
    closest = max(jaccard(a, b) for k, a in enumerate(shingles) for b in shingles[:k])
    assert closest < 0.6
    assert selection.diagnostics == {"near_copies_in_pool": 15, "near_copies_chosen": 0}
    assert selector.select(with_rows(given, 30)).diagnostics["near_copies_chosen"] == 5


def test_without_copies_it_is_random_at_the_same_seed(selector):
    rng = random.Random(1)
    texts = [(" ".join(f"w{rng.randrange(9999)}" for _ in range(9)), "Yes.") for _ in range(40)]
    given = problem(texts=texts, seed=4)
    assert torch.equal(selector.select(given).indices, Random().select(given).indices)


def test_short_texts_are_compared_whole(selector):
    assert selector.shingles("Hi There") == {b"hi there"}
    assert selector.near_copies(["Hi", "hi", "Ho"]).tolist() == [False, True, False]


@pytest.mark.parametrize(("threshold", "hashes"), [(0.999, 128), (0.9, 2), (0.999, 3)])
def test_a_threshold_near_one_finds_copies_alone(threshold, hashes):
    """datasketch's index needs two bands of hashes, and finds one enough there."""
    words = [f"word{i}" for i in range(40)]
    texts = [" ".join(words), " ".join([*words[:-1], "other"]), " ".join(words).upper(), "word0"]
    found = DedupRandom(threshold=threshold, ngram=3, hashes=hashes).near_copies(texts).tolist()
    assert found[2] and not found[0] and not found[3]
    assert hashes < 128 or not found[1]  # with few hashes nearly equal rows have equal ones


def test_near_copies_are_found_in_a_script_without_blanks(selector):
    rng = random.Random(0)
    rows = ["".join(chr(0x4E00 + rng.randrange(300)) for _ in range(40)) for _ in range(6)]
    copies = [row[:-1] + "改" for row in rows]
    assert selector.near_copies([*rows, *copies]).tolist() == [False] * 6 + [True] * 6
