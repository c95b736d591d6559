"""Padded batches hold every row unchanged."""

from __future__ import annotations

import random

import pytest
import torch

from gtp_exp.data.batching import length_sorted_batches, pad_collate
from gtp_exp.data.examples import IGNORE, TokenizedExample

# 2 is both the pad and the end-of-turn token, as in SmolLM2
ROWS = [
    TokenizedExample("a", (5, 6, 2), (IGNORE, 6, 2)),
    TokenizedExample("b", (7, 2), (IGNORE, 2)),
    TokenizedExample("c", (8, 9, 1, 2, 4), (IGNORE, IGNORE, 1, 2, IGNORE)),
]


def test_rows_come_back_from_the_padded_batch_whole():
    batch = pad_collate(ROWS, 2)
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: ((3, 5), torch.int64) for name in ("input_ids", "attention_mask", "labels")
    }
    for row, ids, labels, mask in zip(
        ROWS, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        n = int(mask.sum())
        assert mask.tolist() == [1] * n + [0] * (5 - n)
        assert tuple(ids[:n].tolist()) == row.input_ids and set(ids[n:].tolist()) <= {2}
        assert tuple(labels[:n].tolist()) == row.labels and set(labels[n:].tolist()) <= {IGNORE}


def test_end_of_turn_keeps_its_label_though_it_is_the_pad_token():
    assert (pad_collate(ROWS, 2)["labels"] == 2).sum() == 3


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        pad_collate([], 2)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_hold_every_row_once_longest_first(batch_size):
    rng = random.Random(0)
    lengths = [rng.randrange(1, 20) for _ in range(50)]
    batches = length_sorted_batches(lengths, batch_size)
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(50))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(i < j for i, j in zip(order, order[1:], strict=False) if lengths[i] == lengths[j])
    assert all(len(batch) == batch_size for batch in batches[:-1]) and len(batches[-1]) <= batch_size


def test_long_rows_share_a_batch_as_far_as_its_tokens_go():
    lengths = [1024] * 5 + [3000, 2048, 2048, 5, 9000]
    found = [[lengths[i] for i in batch] for batch in length_sorted_batches(lengths, 4)]
    assert found == [[9000], [3000], [2048, 2048], [1024] * 4, [1024, 5]]


def test_no_rows_give_no_batches_and_a_batch_has_rows():
    assert length_sorted_batches([], 4) == []
    with pytest.raises(ValueError, match="batch_size=0"):
        length_sorted_batches([1], 0)


def test_rows_beyond_a_length_share_no_batch_with_shorter_ones():
    lengths = [9, 4, 12, 3, 5, 8]
    found = [[lengths[i] for i in batch] for batch in length_sorted_batches(lengths, 4, 7)]
    assert found == [[12, 9, 8], [5, 4, 3]]
    assert [len(batch) for batch in length_sorted_batches(lengths, 2, 7)] == [2, 1, 2, 1]
