"""Put rows of similar length into padded batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gtp_exp.data.examples import IGNORE, TokenizedExample

_USUAL_TOKENS = 1024  # of a row; of longer ones fewer share a batch


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int, apart_beyond: int | None = None
) -> list[list[int]]:
    """Return every index once, in batches of at most `batch_size`, rows of equal length in their order.

    The longest rows come first, so that memory runs out at once or never. With padding a batch holds no more
    tokens than `batch_size` rows of 1024, but for a single row that has more. apart_beyond: rows with more
    tokens share no batch with shorter ones, as `rows_apart_beyond` tells of a model; None: all may.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches, start = [], 0
    while start < len(order):
        fits = batch_size * _USUAL_TOKENS // max(1, lengths[order[start]])
        batch = order[start : start + max(1, min(batch_size, fits))]
        if apart_beyond is not None and lengths[batch[0]] > apart_beyond:
            batch = [i for i in batch if lengths[i] > apart_beyond]
        batches.append(batch)
        start += len(batch)
    return batches


def pad_collate(examples: Sequence[TokenizedExample], pad_id: int) -> dict[str, torch.Tensor]:
    """Return right-padded tensors: input_ids, attention_mask and labels, int64 [B, L].

    The attention mask comes from lengths and the labels from the example, never from the pad id: where the
    pad token is also the end-of-turn token, that would mask the end of every turn.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    longest = max(e.n_tokens for e in examples)
    shape = (len(examples), longest)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, example in enumerate(examples):
        n = example.n_tokens
        input_ids[row, :n] = torch.tensor(example.input_ids, dtype=torch.long)
        labels[row, :n] = torch.tensor(example.labels, dtype=torch.long)
        attention_mask[row, :n] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
