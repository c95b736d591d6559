"""Define what a gradient engine is, and how examples are put into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.model.loss import Reduction, reference_gradients

# Takes a parameter's name and its per-example gradients [b, *shape], which are valid during the call only.
Consume = Callable[[str, torch.Tensor], None]


class GradientEngine(Protocol):
    """Computes the gradient of each example of a batch, exactly as if it were alone."""

    name: str

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Return batches of indices into `lengths`, each index once.

        It is a function of the arguments alone, so that a resumed run repeats it.
        """
        ...

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        """Hand over the gradients of every trainable parameter that takes part, each exactly once."""
        ...


class NotPerExample(Exception):
    """Raised where a module sees the tokens in a form in which examples cannot be told apart."""


class AutogradEngine:
    """Runs one example at a time through the untouched model: exact for any model and trainable parameter."""

    name = "autograd"

    def __init__(
        self, model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], reduction: Reduction
    ) -> None:
        self._model, self._parameters, self._reduction = model, parameters, reduction

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Return one batch per example."""
        return [[i] for i in range(len(lengths))]

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        """Hand over the gradients of every trainable parameter."""
        gradients = [reference_gradients(self._model, self._parameters, e, self._reduction) for e in batch]
        for name in self._parameters:
            consume(name, torch.stack([by_name[name] for by_name in gradients]))


def gradients_of(
    engine: GradientEngine, batch: Sequence[TokenizedExample]
) -> list[tuple[TokenizedExample, dict[str, torch.Tensor]]]:
    """Return each example with its whole gradient by parameter name: for checks and small models."""
    by_name: list[dict[str, torch.Tensor]] = [{} for _ in batch]

    def keep(name: str, gradients: torch.Tensor) -> None:
        for row, gradient in zip(by_name, gradients, strict=True):
            row[name] = gradient.clone()

    engine.run(batch, keep)
    return list(zip(batch, by_name, strict=True))


def pack(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Return batches for sequences laid end to end: first fit by decreasing length.

    A sequence longer than the budget goes alone.
    """
    batches: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = next((b for b, left in enumerate(room) if lengths[i] <= left), None)
        if batch is None:
            batches.append([i])
            room.append(token_budget - lengths[i])
        else:
            batches[batch].append(i)
            room[batch] -= lengths[i]
    return batches


def pad(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Return batches of neighbours in length, as many as fit the budget with padding counted."""
    batches: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
            longest = lengths[i]
    return batches
