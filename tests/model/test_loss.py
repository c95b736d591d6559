"""Logits at labels alone: the same values, and the head sees no other position."""

from __future__ import annotations

import torch

from gtp_exp.data.batching import pad_collate
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.model.loss import labelled_logits

UNLABELLED = TokenizedExample("none", (5, 6, 7), (IGNORE,) * 3)


class Whole(torch.nn.Module):
    """A model that cannot leave out logits."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def test_they_are_those_of_all_positions(tiny, tokenized):
    batch = pad_collate([*tokenized[:3], UNLABELLED], tiny.tokenizer.pad_token_id)
    labels = batch.pop("labels")
    model = tiny.load_trainable(0).model
    heads = []
    model.get_output_embeddings().register_forward_hook(lambda m, i, o: heads.append(o.shape[1]))
    with torch.no_grad():
        found = labelled_logits(model, batch, labels)
        spared = labelled_logits(Whole(model), batch, labels)
        every = model(**batch).logits
    expected = [
        (every[row, t - 1], int(label), row)
        for row in range(len(labels))
        for t, label in enumerate(labels[row].tolist())
        if t and label != IGNORE
    ]
    for logits, rows, columns in (found, spared):
        torch.testing.assert_close(logits, torch.stack([z for z, _, _ in expected]))
        assert labels[rows, columns].tolist() == [token for _, token, _ in expected]
        assert rows.tolist() == [row for _, _, row in expected]
    assert heads[0] < labels.shape[1] == heads[1] == heads[2]


def test_a_batch_without_labels_has_none_and_can_be_differentiated(tiny):
    model = tiny.load_trainable(0).model
    batch = pad_collate([UNLABELLED], 0)
    logits, rows, columns = labelled_logits(model, batch, batch.pop("labels"))
    assert logits.shape[0] == rows.shape[0] == columns.shape[0] == 0
    logits.sum().backward()
    # Zero, but there: data-parallel training waits for every one of them.
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)
