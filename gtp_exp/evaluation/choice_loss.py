"""Tell apart, in the loss of a right choice, which choice it is and how an answer looks.

A model gives every choice a log-likelihood. That of the right one, l, is the sum of two parts:

    content = log sum_j exp(l_j) - l     which choice: minus the log of the right one's share among all
    form    = -log sum_j exp(l_j)        how much goes to none of the choices: wording, case, blanks

Both are in nats per row. Training on answers of any kind lowers the form; the content falls only with what is
asked. Where one choice begins with another their probabilities overlap, and the form may be below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch


def choice_loss(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return "content" and "form" with their standard errors over rows; {} where rows have no right choice.

    samples: lm-eval's, one per row; `filtered_resps` holds (log-likelihood, greedy or not) of each choice,
    `arguments` the prompt and the text of each, and `target` the right one's position.
    """
    metrics = {}
    for name, values in choice_parts(samples).items():
        metrics[name] = fmean(values)
        if len(values) > 1:
            metrics[f"{name}_stderr"] = stdev(values) / math.sqrt(len(values))
    return metrics


def choice_parts(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return "content" and "form" of every row, in their order; {} where rows have no right choice."""
    rows = [_parts(row) for row in samples]
    parts = [row for row in rows if row is not None]
    if not parts or len(parts) < len(rows):
        return {}
    return {name: [row[i] for row in parts] for i, name in enumerate(("content", "form"))}


def _parts(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return content and form of one row; None where it has no choices, or not one right one."""
    choices, right = row["filtered_resps"], row["target"]
    if not isinstance(right, int) or isinstance(right, bool) or len(choices) < 2:
        return None
    if any(isinstance(choice, str) or len(choice) != 2 for choice in choices):
        return None  # a generation, or another kind of request
    likelihoods = torch.tensor([float(value) for value, _ in choices], dtype=torch.float64)
    if not 0 <= right < len(choices) or not torch.isfinite(likelihoods).all():
        return None
    any_choice = float(likelihoods[_distinct(row)].logsumexp(0))
    return any_choice - float(likelihoods[right]), -any_choice


def _distinct(row: Mapping[str, Any]) -> list[int]:
    """Return the positions of a row's choices, each text once: one that is listed twice is one answer."""
    asked = row.get("arguments", ())
    if len(asked) != len(row["filtered_resps"]):
        return list(range(len(row["filtered_resps"])))
    first: dict[str, int] = {}
    for i, request in enumerate(asked):
        first.setdefault(str(request), i)
    return list(first.values())
