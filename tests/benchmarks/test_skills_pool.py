"""The pool: planted faults in the stated shares, labelled, and not readable from ids or order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from gtp_benchmarks.skills import SkillsBenchmark, SkillsPool
from gtp_benchmarks.skills.pool import Duplicate
from gtp_benchmarks.skills.registry import SKILLS
from gtp_exp.data.hashing import content_hash
from gtp_exp.errors import UserError

MIX = {name: 1.0 + i for i, name in enumerate(SKILLS)}
SETTINGS = SkillsPool(
    rows=1200,
    seed=3,
    mix=MIX,
    chit_chat_share=0.1,
    corrupted_share=0.2,
    duplicate_share=0.1,
    near_duplicate_share=0.15,
)


@pytest.fixture(scope="module")
def pool():
    return SETTINGS.load()


def label(pool, name):
    return [pool.hidden[e.id][name] for e in pool.examples]


def test_one_seed_gives_one_pool_and_another_seed_another(pool):
    assert content_hash(SETTINGS.load()) == content_hash(pool)
    assert content_hash(replace(SETTINGS, seed=4).load()) != content_hash(pool)


def test_rows_and_labels_are_complete(pool):
    assert len(pool.examples) == len({e.id for e in pool.examples}) == 1200
    assert set(pool.hidden) == {e.id for e in pool.examples}
    for e in pool.examples:
        assert [m.role for m in e.messages] == ["user", "assistant"] and e.prompt and e.completion


def test_the_stated_shares_are_planted(pool):
    kinds = Counter(label(pool, "duplicate"))
    assert kinds == {"no": 900, "exact": 120, "rephrased": 180}
    originals = [pool.hidden[e.id] for e in pool.examples if pool.hidden[e.id]["duplicate"] == "no"]
    skills = Counter(row["skill"] for row in originals)
    assert skills["chit_chat"] == 120
    checkable = [row for row in originals if row["skill"] != "chit_chat"]
    assert sum(row["corrupted"] for row in checkable) == round(0.2 * len(checkable))
    total = sum(MIX.values())
    assert all(abs(skills[name] - len(checkable) * share / total) <= 1 for name, share in MIX.items())


def test_small_talk_is_never_called_corrupted(pool):
    assert not any(h["corrupted"] for h in pool.hidden.values() if h["skill"] == "chit_chat")


def test_duplicates_point_to_an_original_with_the_same_answer(pool):
    rows = {e.id: e for e in pool.examples}
    for e in pool.examples:
        hidden = pool.hidden[e.id]
        if hidden["duplicate_of"] is None:
            assert hidden["duplicate"] == "no"
            continue
        original, there = rows[hidden["duplicate_of"]], pool.hidden[hidden["duplicate_of"]]
        assert there["duplicate"] == "no"
        assert (there["skill"], there["corrupted"]) == (hidden["skill"], hidden["corrupted"])
        assert e.completion == original.completion
        assert (e.messages == original.messages) == (hidden["duplicate"] == Duplicate.EXACT.value)


def test_a_row_teaches_its_answer_as_a_label_unless_it_is_wrong(pool):
    for e in pool.examples:
        hidden = pool.hidden[e.id]
        labelled = SKILLS[hidden["skill"]].labels if hidden["skill"] != "chit_chat" else ()
        assert hidden["label"] == (e.completion if labelled and not hidden["corrupted"] else None)


def test_the_kind_tells_the_words_of_the_target_from_others(pool):
    """Recognised by what stands before the sentence in each phrasing, without openers and closers."""
    frames = SKILLS["desk"].phrasings["label"]
    asked, others = (
        [frame.split("{text}")[0] for frame in part if not frame.startswith("{text}")]
        for part in (frames[:5], frames[5:])
    )
    seen = Counter()
    for e in pool.examples:
        hidden = pool.hidden[e.id]
        if hidden["skill"] == "desk":
            seen[hidden["kind"]] += 1
            unlike = others if hidden["kind"] == "skill" else asked
            assert hidden["kind"] in ("skill", "reworded") and not any(part in e.prompt for part in unlike)
        elif hidden["skill"] in ("rewriting", "word_count", "continuation", "reply"):
            assert hidden["kind"] == "decoy"
        else:
            assert hidden["kind"] in ("chat", "skill", "reworded")
            assert (hidden["kind"] == "chat") == (hidden["skill"] == "chit_chat")
    assert min(seen["skill"], seen["reworded"]) > 10


def test_target_and_test_ask_in_the_first_wordings_only():
    skill, benchmark = SKILLS["desk"], SkillsBenchmark(skills=["desk"], generation_skills=[], test_rows=80)
    rest = [frame.split("{text}")[0] for frame in skill.phrasings["label"][5:] if frame[0] != "{"]
    prompts = [e.prompt for e in benchmark.target() or ()]
    prompts += [doc["query"] for task in benchmark.tasks() for doc in task.docs or ()]
    assert len(prompts) == 94 and not any(part in prompt for part in rest for prompt in prompts)


def test_nothing_repeats_without_a_label(pool):
    prompts = Counter(e.prompt for e in pool.examples if pool.hidden[e.id]["duplicate"] != "exact")
    assert max(prompts.values()) == 1


def test_a_few_originals_come_many_times(pool):
    copies = Counter(d for d in label(pool, "duplicate_of") if d)
    assert max(copies.values()) >= 5
    assert len(copies) > 50


def test_ids_and_order_tell_nothing(pool):
    """Each label is spread over the rows, and over the sorted ids, as chance has it (4 standard errors)."""
    by_id = sorted(pool.examples, key=lambda e: e.id)
    for rows in (pool.examples, by_id):
        flags = {
            "corrupted": [pool.hidden[e.id]["corrupted"] for e in rows],
            "duplicate": [pool.hidden[e.id]["duplicate"] != "no" for e in rows],
            "skill": [pool.hidden[e.id]["skill"] == "ranking" for e in rows],
            "kind": [pool.hidden[e.id]["kind"] == "decoy" for e in rows],
            "label": [pool.hidden[e.id]["label"] is not None for e in rows],
        }
        for name, flag in flags.items():
            n, k = len(flag), sum(flag)
            first = sum(flag[: n // 2])
            error = (k * (n - k) / n / 4) ** 0.5
            assert abs(first - k / 2) < 4 * error, name


def test_a_corrupted_answer_is_wrong(pool):
    """The same pool without corruption differs in exactly the rows that are labelled."""
    clean = replace(SETTINGS, duplicate_share=0.0, near_duplicate_share=0.0, corrupted_share=0.0).load()
    dirty = replace(SETTINGS, duplicate_share=0.0, near_duplicate_share=0.0, corrupted_share=0.3).load()
    answers = {e.prompt: e.completion for e in clean.examples}
    # The prompts are drawn before the corruption, so they are the same.
    assert {e.prompt for e in dirty.examples} == set(answers)
    for e in dirty.examples:
        assert (e.completion != answers[e.prompt]) == dirty.hidden[e.id]["corrupted"]


def test_shares_of_zero_leave_a_clean_pool():
    clean = replace(
        SETTINGS, rows=50, chit_chat_share=0, corrupted_share=0, duplicate_share=0, near_duplicate_share=0
    ).load()
    assert not any(h["corrupted"] or h["duplicate_of"] for h in clean.hidden.values())
    assert "chit_chat" not in {h["skill"] for h in clean.hidden.values()}


@pytest.mark.parametrize("rows", [1, 2, 7, 23])
def test_small_pools_have_the_exact_size(rows):
    assert len(replace(SETTINGS, rows=rows).load().examples) == rows


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 0}, "dataset.rows=0"),
        ({"corrupted_share": 1.5}, "dataset.corrupted_share=1.5"),
        ({"duplicate_share": -0.1}, "dataset.duplicate_share=-0.1"),
        ({"duplicate_share": 0.5, "near_duplicate_share": 0.5}, "leaves no row"),
        ({"mix": {"telepathy": 1.0}}, "telepathy"),
        ({"mix": {}}, "dataset.mix"),
        ({"mix": {"boolean": -1.0}}, "dataset.mix"),
    ],
)
def test_impossible_settings_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        replace(SETTINGS, **change)


def test_a_pool_above_a_skills_questions_is_refused_by_name():
    pool = replace(SETTINGS, rows=5000, mix={"contains": 1.0}, chit_chat_share=0.0)
    with pytest.raises(UserError, match="'contains'"):
        pool.load()
