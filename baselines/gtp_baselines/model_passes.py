"""Passes of the untuned model over rows: sentence embeddings, and the loss of labelled tokens.

Rows are batched in an order that depends on their tokens alone and equal rows are computed once, so the
order of the pool cannot change a bit of the result, and copies get equal values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

import torch
import torch.nn.functional as F
from tqdm import tqdm

from gtp_exp.data.batching import length_sorted_batches, pad_collate
from gtp_exp.data.examples import IGNORE, Example, TokenizedExample
from gtp_exp.data.hashing import digest
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError
from gtp_exp.model.labelled import no_cache
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import row_nats
from gtp_exp.model.positions import rows_apart_beyond


class Pooling(Enum):
    """Name how the hidden states of a row become one vector."""

    MEAN = "mean"  # of all tokens
    POSITION = "position"  # token i of L weighs i / (1 + ... + L)


def check_batch_size(batch_size: int) -> None:
    """Raise UserError unless a forward pass has at least one row."""
    if batch_size < 1:
        raise UserError(f"selector.batch_size={batch_size} must be at least 1")


def tokens_of(
    examples: Sequence[Example], loaded: LoadedModel, tokenized: Sequence[TokenizedExample] = ()
) -> list[TokenizedExample]:
    """Return one tokenised row per example; the pipeline has left out those without a completion token.

    tokenized: the same rows where they have been tokenised before, as in a job.
    """
    if len(tokenized) == len(examples):
        return list(tokenized)
    result = tokenize(examples, loaded.tokenizer, max_length=loaded.max_length)
    if len(result.examples) != len(examples):
        raise ValueError(f"rows without a completion reached a selector: {dict(result.excluded)}")
    return list(result.examples)


def embed(
    rows: Sequence[TokenizedExample], loaded: LoadedModel, *, pooling: Pooling, batch_size: int, label: str
) -> torch.Tensor:
    """Pooled last hidden states (after the final norm), scaled to unit length: float32 [n, hidden]."""
    reads = {"rows": digest(*([row.input_ids, row.labels] for row in rows)), "pooling": pooling.value}
    return loaded.keep("embedding", reads, lambda: _embed(rows, loaded, pooling, batch_size, label))


@torch.no_grad()
def _embed(
    rows: Sequence[TokenizedExample], loaded: LoadedModel, pooling: Pooling, batch_size: int, label: str
) -> torch.Tensor:
    pooled = torch.empty(len(rows), 0)
    for index, inputs in _batches(rows, loaded, batch_size, label):
        inputs.pop("labels")
        # The base model: no logits, which would cost more than all the rest.
        passed = loaded.model.base_model(**inputs, **no_cache(loaded.model.base_model))
        hidden = passed.last_hidden_state.double()  # [B, L, hidden]
        weight = inputs["attention_mask"].double()
        if pooling is Pooling.POSITION:
            weight = weight * torch.arange(1, weight.shape[1] + 1, device=weight.device)
        weight = weight / weight.sum(1, keepdim=True)
        # A product with a zero weight does not silence padding that is not finite.
        hidden = hidden.masked_fill(inputs["attention_mask"][:, :, None] == 0, 0.0)
        mean = torch.einsum("bl,blh->bh", weight, hidden)
        if not pooled.shape[1]:
            pooled = torch.empty(len(rows), mean.shape[1])
        for row, copies in zip(F.normalize(mean, dim=1).float().cpu(), index, strict=True):
            pooled[copies] = row
    _refuse_non_finite(pooled, rows, "embedding")
    return pooled


def labelled_loss(
    rows: Sequence[TokenizedExample], loaded: LoadedModel, *, batch_size: int, label: str
) -> torch.Tensor:
    """Mean negative log-likelihood of each row's labelled tokens, in nats per token: float64 [n]."""
    rows = [to_last_label(row) for row in rows]
    reads = {"rows": digest(*([row.input_ids, row.labels] for row in rows))}
    return loaded.keep("loss", reads, lambda: _labelled_loss(rows, loaded, batch_size, label))


def to_last_label(row: TokenizedExample) -> TokenizedExample:
    """Cut behind the last labelled token: rows that differ there alone share a pass."""
    stop = max((i for i, label in enumerate(row.labels, 1) if label != IGNORE), default=0)
    return TokenizedExample(row.id, row.input_ids[:stop], row.labels[:stop])


@torch.no_grad()
def _labelled_loss(
    rows: Sequence[TokenizedExample], loaded: LoadedModel, batch_size: int, label: str
) -> torch.Tensor:
    nats = torch.empty(len(rows), dtype=torch.float64)
    for index, inputs in _batches(rows, loaded, batch_size, label):
        for total, copies in zip(row_nats(loaded.model, inputs), index, strict=True):
            nats[copies] = total / rows[copies[0]].n_completion_tokens
    _refuse_non_finite(nats[:, None], rows, "loss")
    return nats


def _batches(
    rows: Sequence[TokenizedExample], loaded: LoadedModel, batch_size: int, label: str
) -> Iterator[tuple[list[list[int]], dict[str, torch.Tensor]]]:
    """(for each row of the batch, the positions of its copies; the padded batch on the model's device)."""
    copies: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for i, row in enumerate(rows):
        copies.setdefault((row.input_ids, row.labels), []).append(i)
    distinct = [copies[content] for content in sorted(copies)]
    lengths = [rows[same[0]].n_tokens for same in distinct]
    device = next(loaded.model.parameters()).device
    batches = length_sorted_batches(lengths, batch_size, rows_apart_beyond(loaded.model))
    for batch in tqdm(batches, desc=label, unit="batch"):
        padded = pad_collate([rows[distinct[i][0]] for i in batch], loaded.tokenizer.pad_token_id)
        yield [distinct[i] for i in batch], {name: part.to(device) for name, part in padded.items()}


def _refuse_non_finite(values: torch.Tensor, rows: Sequence[TokenizedExample], what: str) -> None:
    finite = torch.isfinite(values).all(1)
    if not finite.all():
        bad = rows[int((~finite).nonzero()[0])].id
        raise UserError(
            f"the model's {what} of example '{bad}' is not finite; remove the row or set model.precision=fp32"
        )
