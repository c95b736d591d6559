"""The chosen rows for people: a loadable data set, duplicates counted, labels summarised."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

from conftest import conversation
from gtp_exp.data import near_duplicates as counting
from gtp_exp.data.examples import Example, Message, Pool, TokenizedExample
from gtp_exp.data.near_duplicates import NEAR, near_duplicates, without_near_duplicates
from gtp_exp.records import selected
from gtp_exp.selection.base import Selection

ANSWER = "the quick brown fox jumps over the lazy dog near the river bank today"
POOL = Pool(
    examples=(
        conversation(0, "Say it", ANSWER),
        conversation(1, "Say it", ANSWER),  # exact copy of row 0
        conversation(2, "Say it", ANSWER + " again"),  # near copy
        conversation(3, "What else?", "Something entirely different, of other words."),
    ),
    hidden={
        f"row-{i}": {"skill": "echo" if i < 3 else "talk", "of": None if i in (0, 3) else "row-0"}
        for i in range(4)
    },
)
TOKENIZED = [
    TokenizedExample(f"row-{i}", (1,) * n, (1,) * n, cut=n > 50) for i, n in enumerate([5, 6, 70, 700])
]
CHOSEN = Selection(torch.tensor([2, 0, 1]), torch.tensor([1.5, 1.0, 0.5]), torch.tensor([0.3, 0.2, 0.4, 0.1]))


def rows():
    return selected.selected_rows(POOL.examples, TOKENIZED, CHOSEN, POOL.hidden)


def test_rows_come_most_important_first_with_score_and_weight():
    first = rows()[0]
    assert (first.rank, first.id, first.weight) == (1, "row-2", 1.5)
    assert abs(first.score - 0.4) < 1e-6 and first.hidden["skill"] == "echo"


def test_the_export_loads_as_a_data_set_without_hidden_labels(tmp_path):
    from datasets import load_dataset

    selected.export(rows(), tmp_path, "title")
    data = load_dataset(str(tmp_path / "selected"), split="train", cache_dir=str(tmp_path / "hf"))
    assert data.num_rows == 3 and data[0]["id"] == "row-2"
    assert data[0]["messages"][1]["content"] == ANSWER + " again"
    assert set(data.column_names) == {"id", "messages", "gtp_weight", "gtp_score"}
    assert len((tmp_path / "selected.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "selected.jsonl").read_text().splitlines()[0])["hidden"]["skill"] == "echo"


def test_the_export_keeps_what_changes_the_meaning_of_a_row(tmp_path):
    from gtp_exp.data.sources.jsonl import Jsonl

    turns = (
        Message("user", "Hi"),
        Message("assistant", "BAD", train=False),
        Message("user", "Again"),
        Message("assistant", "Hello", "I greet."),
    )
    pool = (Example("a", turns, tools='[{"name": "weather"}]'), POOL.examples[0])
    chosen = Selection(torch.tensor([0, 1]), torch.ones(2), torch.ones(2))
    selected.export(selected.selected_rows(pool, TOKENIZED, chosen, {}), tmp_path, "title")
    (file,) = (tmp_path / "selected" / "data").glob("*.parquet")
    again = Jsonl([str(file)]).load()
    assert again.examples == pool and not again.skipped


def test_an_answer_without_loss_has_no_weight():
    """As where the chat template removes the reasoning of an earlier answer."""
    ask, earlier = Message("user", "Hi"), Message("assistant", "Well", "Long thought.")
    example = Example("a", (ask, earlier, ask, Message("assistant", "Hello")))
    first = Selection(torch.tensor([0]), torch.ones(1), torch.ones(1))

    def weights(with_loss):
        row = TokenizedExample("a", (1,), (1,), turns=with_loss)
        (told,) = selected.selected_rows([example], [row], first, {})
        return [message.get("weight") for message in told.messages]

    assert weights((3,)) == [None, 0, None, None]
    assert weights((1, 3)) == weights(None) == [None] * 4


def test_the_exports_of_two_runs_load_as_what_they_are(tmp_path):
    from datasets import load_dataset

    # The last is a run anew in the folder of the first.
    for name, part in (("first", rows()), ("second", rows()[:2]), ("first", rows()[1:])):
        selected.export(part, tmp_path / name, "title")
        folder = str(tmp_path / name / "selected")
        data = load_dataset(folder, split="train", cache_dir=str(tmp_path / "hf"))
        assert list(data["id"]) == [row.id for row in part]


def test_the_summary_counts_duplicates_and_compares_labels_with_the_pool():
    summary = selected.summarise_selection(rows(), POOL, TOKENIZED, CHOSEN)
    assert (summary.n_selected, summary.n_tokens, summary.n_cut) == (3, 81, 1)
    assert summary.label_mix[selected.LENGTH] == {"1-31": 2 / 3, "64-127": 1 / 3}
    assert summary.pool_mix[selected.LENGTH] == {"1-31": 0.5, "64-127": 0.25, "512-1023": 0.25}
    assert summary.exact_duplicates == 1
    assert summary.near_duplicates == 2  # the exact copy counts too
    assert summary.label_mix["skill"] == {"echo": 1.0}
    assert summary.pool_mix["skill"] == {"echo": 0.75, "talk": 0.25}


def test_the_same_turns_with_other_tools_are_no_exact_copy():
    row = POOL.examples[0]
    pool = Pool((row, replace(row, id="other", tools='[{"name": "weather"}]')))
    both = Selection(torch.tensor([0, 1]), torch.ones(2), torch.ones(2))
    chosen = selected.selected_rows(pool.examples, TOKENIZED, both, {})
    assert selected.summarise_selection(chosen, pool, TOKENIZED, both).exact_duplicates == 0


REASONED = tuple(
    Example(f"{k}", (Message("user", "How many are two and two?"), Message("assistant", "Four.", thought)))
    for k, thought in enumerate(
        (
            "I count on my fingers: one, two, and then three, four. So it must be four in the end.",
            "Doubling a number adds it to itself, and the double of two is known to everybody.",
        )
    )
)


def test_the_same_answer_reached_by_other_reasoning_is_no_near_copy():
    """As where the reasoning is part of the answer's text: what is trained is mostly reasoning."""
    assert len(without_near_duplicates(Pool(REASONED)).examples) == 2
    both = Selection(torch.tensor([0, 1]), torch.ones(2), torch.ones(2))
    chosen = selected.selected_rows(REASONED, TOKENIZED, both, {})
    assert selected.summarise_selection(chosen, Pool(REASONED), TOKENIZED, both).near_duplicates == 0
    thought = replace(REASONED[1].messages[1], reasoning=REASONED[0].messages[1].reasoning)
    again = replace(REASONED[1], messages=(REASONED[1].messages[0], thought))
    assert len(without_near_duplicates(Pool((REASONED[0], again))).examples) == 1


@pytest.mark.parametrize("n", [1, 4])
def test_a_label_that_names_other_rows_is_present_or_absent(n):
    """However few there are: an id is no class."""
    hidden = {f"row-{i}": {"copy_of": f"row-{(i + 1) % 4}", "kind": f"k{i % 2}"} for i in range(n)}
    pool = Pool(POOL.examples, hidden)
    chosen = selected.selected_rows(pool.examples, TOKENIZED, CHOSEN, hidden)
    summary = selected.summarise_selection(chosen, pool, TOKENIZED, CHOSEN)
    assert summary.pool_mix["copy_of"].get("present") == n / 4
    assert set(summary.label_mix["copy_of"]) <= {"present", "absent"}
    assert summary.pool_mix["kind"]["k0"] == (0.25 if n == 1 else 0.5)


@pytest.mark.parametrize(
    ("copies", "repeats"),
    [
        ({0: "row-1"}, 1),  # row 1 is chosen, too
        ({0: "row-3", 1: "row-3"}, 1),  # the original is not chosen
        ({0: "row-3", 1: "row-3", 2: "row-3"}, 2),
        ({0: "row-3"}, 0),
        ({3: "row-0"}, 0),  # the copy is not chosen
    ],
)
@pytest.mark.parametrize("label", ["copy_of", "duplicate_of"])
def test_copies_of_what_is_chosen_are_counted_by_hidden_labels(label, copies, repeats):
    hidden = {f"row-{i}": {label: copies.get(i)} for i in range(4)}
    first_three = Selection(torch.arange(3), torch.ones(3), torch.ones(3))
    pool = Pool(POOL.examples, hidden)
    chosen = selected.selected_rows(pool.examples, TOKENIZED, first_three, hidden)
    assert selected.summarise_selection(chosen, pool, TOKENIZED, first_three).repeats == repeats


def test_every_length_falls_into_the_class_that_its_name_says():
    for n in [1, 2, 31, 32, 33, 63, 64, 127, 128, 1023, 1024, 2047, 2048, 100_000]:
        (name,) = selected._lengths([n])
        low, high = map(int, name.split("-"))
        assert low <= n <= high


def trigrams(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split() or [""]
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


@pytest.mark.parametrize("longest", [6, 12, 40])
@pytest.mark.parametrize("words", ["a b", "a b c d e f", "a b c d e f g h i j k l m n o p"])
def test_near_duplicates_equal_a_pairwise_loop(words, longest):
    generator = random.Random(f"{words}{longest}")
    texts = [" ".join(generator.choices(words.split(), k=generator.randint(0, longest))) for _ in range(100)]
    for text in texts[:30]:  # and what differs by a word or two
        changed = text.split()
        for _ in range(generator.randint(0, 2)):
            changed.insert(generator.randint(0, len(changed)), generator.choice(["A", "y", "z"]))
        texts.insert(generator.randint(0, len(texts)), " ".join(changed))
    sets = [trigrams(text) for text in texts]
    pairs = ([len(mine & other) / len(mine | other) for other in sets[:i]] for i, mine in enumerate(sets))
    expected = [max(similarities, default=0.0) >= NEAR for similarities in pairs]
    assert near_duplicates(texts) == expected
    assert any(expected)


def test_texts_that_share_only_what_all_share_are_not_compared(monkeypatch):
    """A long system prompt in every row must not make the count quadratic."""
    prompt = "you are a helpful assistant and answer in one short sentence please"
    texts = [f"{prompt} {' '.join(f'word{i}x{j}' for j in range(20))}" for i in range(300)]
    compared = []
    jaccard = counting._jaccard
    monkeypatch.setattr(counting, "_jaccard", lambda a, b: compared.append(1) or jaccard(a, b))
    assert near_duplicates([*texts, texts[7]]) == [False] * len(texts) + [True]
    assert len(compared) == 1


def test_rows_without_labels_count_in_the_pool_as_in_the_choice():
    half = Pool(POOL.examples, {"row-0": {"source": "A"}, "row-2": {"source": "A"}})
    everything = Selection(torch.arange(4), torch.ones(4), torch.ones(4))
    chosen = selected.selected_rows(half.examples, TOKENIZED, everything, half.hidden)
    summary = selected.summarise_selection(chosen, half, TOKENIZED, everything)
    assert summary.label_mix["source"] == summary.pool_mix["source"] == {"A": 0.5, "None": 0.5}


LABELS = ["red", "blue", "red", None]


def summary_with_labels(target):
    pool = Pool(POOL.examples, {f"row-{i}": {"label": label} for i, label in enumerate(LABELS)})
    chosen = Selection(torch.tensor([2, 0, 3]), torch.ones(3), torch.ones(4))
    rows = selected.selected_rows(pool.examples, TOKENIZED, chosen, pool.hidden)
    return selected.summarise_selection(rows, pool, TOKENIZED, chosen, target)


@pytest.mark.parametrize(
    ("answers", "chosen", "wanted"),
    [
        (["red", "blue"], 1, 2),  # two rows teach red, none blue
        (["red", "green"], 1, 1),  # the pool cannot teach green
        (["blue"], 0, 1),
        (["Say it"], 1, 2),  # not a label of the pool: all of its labels count
        ([], 1, 2),  # in-domain
    ],
)
def test_the_labels_of_the_target_among_the_chosen_rows_are_counted(answers, chosen, wanted):
    told = summary_with_labels([conversation(i, "Which?", answer) for i, answer in enumerate(answers)])
    assert (told.labels_chosen, told.target_labels) == (chosen, wanted)


@pytest.mark.parametrize(("counts", "bits"), [([], 0), ([5], 0), ([2, 2], 1), ([1] * 8, 3), ([2, 1, 1], 1.5)])
def test_labels_in_equal_shares_have_the_most_entropy(counts, bits):
    assert selected.entropy(counts) == pytest.approx(bits)


def test_a_pool_without_labels_covers_none():
    told = selected.summarise_selection(rows(), POOL, TOKENIZED, CHOSEN)
    assert (told.labels_chosen, told.target_labels, told.labels_entropy) == (0, 0, None)
    assert told.repeats is None


def test_the_entropy_is_that_of_the_targets_labels_alone():
    pool = Pool(
        POOL.examples, {f"row-{i}": {"label": label} for i, label in enumerate(["red", "blue", "grey", None])}
    )
    everything = Selection(torch.arange(4), torch.ones(4), torch.ones(4))
    rows = selected.selected_rows(pool.examples, TOKENIZED, everything, pool.hidden)
    target = [conversation(i, "Which?", answer) for i, answer in enumerate(["red", "blue"])]
    assert selected.summarise_selection(rows, pool, TOKENIZED, everything, target).labels_entropy == 1
