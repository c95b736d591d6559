"""The loss whose gradient is collected, and the batch-size-1 gradient that defines what exact means."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

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
