"""The held-out loss: how likely a model finds the right answers of a test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tqdm import tqdm

from gtp_exp.data.batching import length_sorted_batches, pad_collate
from gtp_exp.data.examples import ANSWER, END, TokenizedExample
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import part_nats


def held_out_loss(
    rows: Sequence[TokenizedExample],
    loaded: LoadedModel,
    *,
    batch_size: int,
    label: str,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Return the negative log-likelihood of the answers, in nats.

    `nats_per_token` and `nats_per_answer` (with its standard error) count the answers' own tokens alone, not
    what the chat template writes around them; `nats_end` is the end of turn, in nats per answer. label: the
    task's name, for messages. Raises UserError without a row, and for a loss that is not finite.
    """
    if not rows:
        raise UserError(f"task '{label}': no test answer fits model.max_length={loaded.max_length}; raise it")
    device = next(loaded.model.parameters()).device
    nats = torch.zeros(len(rows), END + 1, dtype=torch.float64)
    with torch.inference_mode():
        batches = length_sorted_batches([row.n_tokens for row in rows], batch_size)
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
    answers = nats[:, ANSWER]
    n_tokens = sum(last - first for row in rows for first, last in row.answers)
    error = float(answers.std() / math.sqrt(len(rows))) if len(rows) > 1 else 0.0
    return {
        "nats_per_token": float(answers.sum()) / n_tokens,
        "nats_per_answer": float(answers.mean()),
        "nats_per_answer_stderr": error,
        "nats_end": float(nats[:, END].mean()),
    }
