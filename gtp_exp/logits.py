"""Logits where a label needs them, and nowhere else: the head is a large part of a small model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from gtp_exp.data.examples import IGNORE


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
