"""Compute the one token loss, next-token cross-entropy at labels, for training, tests and gradients.

`token_nll` is the loss; everything else here gathers the positions that it is computed at (labelled.py
computes the logits there, a few at a time). The reference gradient at the end, by autograd at batch size 1,
defines what exact means.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch

from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.model.labelled import (
    labelled_nll,
    no_cache,
    takes_logits_to_keep,
    token_nll,
    vocabulary_size,
)

# Logits of all positions up to which the reference lets the model compute them: 256 MiB in float32.
_WHOLE_LOGITS = 1 << 26


class Reduction(Enum):
    """Says how an example's loss is made of its tokens' losses."""

    MEAN = "mean"  # over the example's completion tokens
    SUM = "sum"


def row_nats(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the negative log-likelihood of each row's labelled tokens together, float64 [rows] on the CPU.

    inputs: what the model takes, and `labels` [rows, tokens] with IGNORE where there is no loss.
    """
    return part_nats(model, inputs, torch.zeros_like(inputs["labels"]))[:, 0]


def part_nats(model: Any, inputs: Mapping[str, torch.Tensor], parts: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each row's labelled tokens, added up by part, float64
    [rows, largest part + 1] on the CPU.

    inputs: as `row_nats` takes them; parts: int64 [rows, tokens], what each token belongs to.
    """
    labels = inputs["labels"]
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    nll, row, column = labelled_nll(model, {**rest, **no_cache(model)}, labels)
    nll = nll.double().cpu()
    row, column, parts = row.cpu(), column.cpu(), parts.cpu()
    totals = torch.zeros(len(labels), int(parts.max()) + 1, dtype=torch.float64)
    return totals.index_put((row, parts[row, column]), nll, accumulate=True)


def labelled_logits(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a causal LM over a batch, and return the logits [n, vocabulary] that predict its n labelled tokens,
    and the row and the column of each of these tokens in `labels` [n].

    inputs: what the model takes; labels: [rows, tokens], unshifted, IGNORE where there is none.
    """
    labelled = labels[:, 1:] != IGNORE
    positions = labelled.any(0).nonzero().squeeze(1)  # at which some row has a label
    row, column = labelled[:, positions].nonzero(as_tuple=True)
    if takes_logits_to_keep(model):
        logits = model(**inputs, logits_to_keep=positions).logits
    else:
        logits = model(**inputs).logits[:, positions]
    return logits[row, column], row, positions[column] + 1


def label_positions(example: TokenizedExample) -> tuple[list[int], list[int]]:
    """Return the positions whose output predicts a completion token, and those tokens."""
    pairs = [(t, label) for t, label in enumerate(example.labels[1:]) if label != IGNORE]
    return [t for t, _ in pairs], [label for _, label in pairs]


def reference_gradients(
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    example: TokenizedExample,
    reduction: Reduction,
) -> dict[str, torch.Tensor]:
    """Return the gradient of one example's loss by parameter name, by plain autograd: the reference.

    The model is run untouched over the whole example, and computes its logits at every position; of a long
    example at labelled positions, for all of them would be the largest tensor by far.
    """
    device = next(iter(parameters.values())).device
    inputs = {"input_ids": torch.tensor([example.input_ids], device=device), "use_cache": False}
    if example.n_tokens * vocabulary_size(model) > _WHOLE_LOGITS:
        nll, _, _ = labelled_nll(model, inputs, torch.tensor([example.labels], device=device))
    else:
        positions, tokens = label_positions(example)
        nll = token_nll(model(**inputs).logits[0, positions], torch.tensor(tokens, device=device))
    loss = nll.mean() if reduction is Reduction.MEAN else nll.sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
