"""The held-out loss: how likely a model finds the right answers of rows that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from gtp_exp.data.batching import length_sorted_batches, pad_collate
from gtp_exp.data.examples import ANSWER, END, TokenizedExample
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import part_nats
from gtp_exp.model.positions import rows_apart_beyond
from gtp_exp.model.sharding import dividing
from gtp_exp.records.row_results import ANSWER_TOKENS


@dataclass(frozen=True)
class HeldOutLoss:
    """Hold the negative log-likelihood of the answers of some rows, in nats.

    `nats_per_token` and `nats_per_answer`, each with its standard error over rows, count the answers' own
    tokens alone, not what the chat template writes around them; `nats_end` is the end of turn, in nats per
    answer.
    """

    nats: torch.Tensor  # of every part of every row, float64 [n, END + 1]
    answer_tokens: torch.Tensor  # of every row, int64 [n]

    def metrics(self) -> dict[str, float]:
        """Return the means over the rows, by the metric's name."""
        answers, n = self.nats[:, ANSWER], len(self.nats)
        return {
            "nats_per_token": _per_token(answers, self.answer_tokens),
            "nats_per_token_stderr": _token_error(answers, self.answer_tokens),
            "nats_per_answer": float(answers.mean()),
            "nats_per_answer_stderr": float(answers.std() / math.sqrt(n)) if n > 1 else 0.0,
            "nats_end": float(self.nats[:, END].mean()),
        }

    def by_row(self) -> dict[str, list[float]]:
        """Return each row's values, and its number of answer tokens, by which a mean per token weighs it."""
        answers = self.nats[:, ANSWER]
        return {
            "nats_per_token": (answers / self.answer_tokens).tolist(),
            "nats_per_answer": answers.tolist(),
            ANSWER_TOKENS: self.answer_tokens.double().tolist(),
        }


def held_out_loss(
    rows: Sequence[TokenizedExample],
    loaded: LoadedModel,
    *,
    batch_size: int,
    label: str,
    processes: Processes = ALONE,
) -> HeldOutLoss:
    """Return the loss of the rows' answers, in every process.

    label: the task's name, for messages. Raises UserError without a row, and for a loss that is not finite.
    """
    return HeldOutLoss(_nats(rows, loaded, batch_size, label, processes), _answer_tokens(rows))


def token_loss(
    rows: Sequence[TokenizedExample],
    loaded: LoadedModel,
    *,
    batch_size: int,
    label: str,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Return the `nats_per_token` of `held_out_loss` with its standard error over rows."""
    loss = held_out_loss(rows, loaded, batch_size=batch_size, label=label, processes=processes).metrics()
    return {name: loss[name] for name in ("nats_per_token", "nats_per_token_stderr")}


def _per_token(nats: torch.Tensor, n_tokens: torch.Tensor) -> float:
    """Return the mean over all tokens of the nats and the token counts of rows."""
    return float(nats.sum()) / int(n_tokens.sum())


def _token_error(nats: torch.Tensor, n_tokens: torch.Tensor) -> float:
    """Return the standard error of `_per_token` over rows; 0 for a single row.

    It is a ratio of two sums over rows, so its error is that of the rows' deviations from the ratio.
    """
    n = len(nats)
    deviations = (nats - _per_token(nats, n_tokens) * n_tokens) / n_tokens.double().mean()
    return math.sqrt(float(deviations.square().sum()) / (n * (n - 1))) if n > 1 else 0.0


def _answer_tokens(rows: Sequence[TokenizedExample]) -> torch.Tensor:
    """Return how many tokens the answers of each row have, int64 [n]."""
    return torch.tensor([row.n_answer_tokens for row in rows])


def _nats(
    rows: Sequence[TokenizedExample],
    loaded: LoadedModel,
    batch_size: int,
    label: str,
    processes: Processes,
) -> torch.Tensor:
    """Return the nats of every part of every row, float64 [n, END + 1], in every process."""
    if not rows:
        raise UserError(f"task '{label}': no test answer fits model.max_length={loaded.max_length}; raise it")
    device = next(loaded.model.parameters()).device
    nats = torch.zeros(len(rows), END + 1, dtype=torch.float64)
    processes = dividing(processes, loaded.model)
    with torch.no_grad():  # inference_mode would spoil gathered weights for passes outside it
        limit = rows_apart_beyond(loaded.model)
        batches = length_sorted_batches([row.n_tokens for row in rows], batch_size, limit)
        own = batches[processes.rank :: processes.size]
        for batch in tqdm(own, desc=f"{label}: held-out loss", unit="batch"):
            examples = [rows[i] for i in batch]
            inputs = pad_collate(examples, loaded.tokenizer.pad_token_id)
            parts = torch.zeros_like(inputs["labels"])
            for row, example in enumerate(examples):
                parts[row, : example.n_tokens] = torch.tensor(example.parts)
            nats[torch.tensor(batch)] = part_nats(
                loaded.model, {k: v.to(device) for k, v in inputs.items()}, parts
            )
    nats = processes.all_reduce(nats)  # a row is in the batch of one process, and zero elsewhere
    if not torch.isfinite(nats).all():
        raise UserError(f"task '{label}': the held-out loss is not finite; the tuned model has diverged")
    return nats
