"""Make what one training step sees: the order of the rows, what each weighs, and their batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from gtp_exp.data.batching import pad_collate
from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.model.packing import lay_end_to_end
from gtp_exp.training.config import BatchLoss

NO_ROW = -1  # stands for an empty row, which adds nothing to a batch


@dataclass(frozen=True)
class TrainingRows:
    """Holds the rows to train on, and what each of them weighs."""

    examples: Sequence[TokenizedExample]
    weights: torch.Tensor | None = None  # [len(examples)], >= 0, of mean 1; None: each is 1

    def loss_terms(self, loss: BatchLoss) -> list[tuple[float, float]]:
        """Return (a_i, n_i) of each example, for a batch's loss  sum_i a_i sum_t nll_it / sum_i n_i.

        With w_i the weights and T_i the number of example i's completion tokens, that is
            example_mean:  sum_i w_i (sum_t nll_it / T_i) / (number of examples)
            token_mean:    sum_i w_i sum_t nll_it / sum_i T_i
        The divisor knows no weights, so that a batch of small weights takes a small step, and the gradients
        of an epoch add up to the combination that a selector's weights were fitted for.
        """
        lengths = [float(e.n_completion_tokens) for e in self.examples]
        weights = [1.0] * len(lengths) if self.weights is None else self.weights.tolist()
        if loss is BatchLoss.TOKEN_MEAN:
            return list(zip(weights, lengths, strict=True))
        return [(w / n, 1.0) for w, n in zip(weights, lengths, strict=True)]


class RowOrder(Sampler):
    """Draws a random order of n rows in every epoch, the same for any number of processes.

    With several it is filled up with NO_ROW to a multiple of what one pass of all of them takes, or they
    would repeat rows to come out even.
    """

    def __init__(self, n: int, multiple: int, seed: int) -> None:
        self.n, self.multiple, self.seed, self.epoch = n, multiple, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch next. Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        yield from torch.randperm(self.n, generator=generator).tolist()
        yield from [NO_ROW] * (len(self) - self.n)


class TermsDataset(Dataset):
    """Serves each example with its loss terms, by its number in `rows` or NO_ROW."""

    def __init__(self, rows: TrainingRows, loss: BatchLoss, pad_id: int) -> None:
        self.rows = list(zip(rows.examples, rows.loss_terms(loss), strict=True))
        self.no_row = TokenizedExample("", (pad_id, pad_id), (IGNORE, IGNORE)), (0.0, 0.0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[TokenizedExample, tuple[float, float]]:
        return self.no_row if index == NO_ROW else self.rows[index]


@dataclass(frozen=True)
class Collate:
    """Makes the batch of one forward pass: rows end to end, or padded to the longest.

    Beside what the model takes it holds `labels`, the a_i of every token as `token_weight` (both [b, L], or
    [1, T] end to end), the n_i as `size` [b] and, end to end, the rows' `bounds`.
    """

    pad_id: int
    packed: bool

    def __call__(self, rows: Sequence[tuple[TokenizedExample, tuple[float, float]]]) -> dict[str, Any]:
        """Return the batch of these rows."""
        examples = [example for example, _ in rows]
        row_weight, size = torch.tensor([terms for _, terms in rows]).unbind(1)
        if not self.packed:
            batch = pad_collate(examples, self.pad_id)
            return {**batch, "token_weight": row_weight[:, None].expand_as(batch["labels"]), "size": size}
        laid = lay_end_to_end(examples)
        lengths = torch.tensor([example.n_tokens for example in examples])
        return {
            "input_ids": torch.tensor([laid.tokens]),
            "position_ids": torch.tensor([laid.positions]),
            "labels": torch.tensor([laid.labels]),
            "token_weight": row_weight.repeat_interleave(lengths)[None],
            "size": size,
            "bounds": laid.bounds,
        }
