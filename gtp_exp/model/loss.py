"""The one token loss: next-token cross-entropy where a label stands, for training, tests and gradients.

The reference gradient at the end, by autograd at batch size 1, defines what exact means."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F

from gtp_exp.data.examples import IGNORE, TokenizedExample


class Reduction(Enum):
    MEAN = "mean"  # over the example's completion tokens
    SUM = "sum"


def completion_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Next-token cross-entropy. logits: [n, vocabulary]; labels: [n], unshifted, IGNORE where there is no
    loss.
    """
    logits = _raised(logits)
    return F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE, reduction=reduction.value)


def weighted_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_k weights[k] * cross_entropy(logits[k], targets[k]). logits: [n, vocabulary]."""
    logits = _raised(logits)
    return (F.cross_entropy(logits, targets, reduction="none") * weights.to(logits)).sum()


def reference_gradients(
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    example: TokenizedExample,
    reduction: Reduction,
) -> dict[str, torch.Tensor]:
    """Gradient of one example's loss by plain autograd through the untouched model: the reference."""
    device = next(iter(parameters.values())).device
    tokens = torch.tensor([example.input_ids], device=device)
    labels = torch.tensor(example.labels, device=device)
    logits = model(input_ids=tokens, use_cache=False).logits[0]
    loss = completion_loss(logits, labels, reduction)
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


def label_positions(example: TokenizedExample) -> tuple[list[int], list[int]]:
    """Positions whose output predicts a completion token, and those tokens."""
    pairs = [(t, label) for t, label in enumerate(example.labels[1:]) if label != IGNORE]
    return [t for t, _ in pairs], [label for _, label in pairs]


def _raised(logits: torch.Tensor) -> torch.Tensor:
    # As the models of transformers do before the softmax.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def labelled_logits(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass of a causal LM over a batch: the logits [n, vocabulary] that predict its n labelled tokens,
    these tokens [n], and the row of each [n].

    inputs: what the model takes; labels: [rows, tokens], unshifted, IGNORE where there is none.
    """
    labelled = labels[:, 1:] != IGNORE
    keep = labelled.any(0).nonzero().squeeze(1)  # positions at which some row has one
    row, column = labelled[:, keep].nonzero(as_tuple=True)
    if _keeps(model):
        logits = model(**inputs, logits_to_keep=keep).logits
    else:
        logits = model(**inputs).logits[:, keep]
    return logits[row, column], labels[row, keep[column] + 1], row


def _keeps(model: Any) -> bool:
    inner = getattr(model, "module", model)  # without the wrapper of data-parallel training, and PEFT's
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
