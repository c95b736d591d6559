"""What the engines share: the contract, and how examples are put into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.model.loss import Reduction, reference_gradients

# Takes a parameter's name and its per-example gradients [b, *shape], which are valid during the call only.
Consume = Callable[[str, torch.Tensor], None]


class GradientEngine(Protocol):
    name: str

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Indices into `lengths`, each once. A function of the arguments alone, so that a resumed run repeats
        it.
        """
        ...

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        """Hand over the gradients of every trainable parameter that takes part, each exactly once."""
        ...


class NotPerExample(Exception):
    """A module saw the tokens in a form in which examples cannot be told apart."""


class AutogradEngine:
    """One example at a time through the untouched model: exact for any model and any trainable parameter."""

    name = "autograd"

    def __init__(
        self, model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter], reduction: Reduction
    ) -> None:
        self._model, self._parameters, self._reduction = model, parameters, reduction

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        return [[i] for i in range(len(lengths))]

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        gradients = [reference_gradients(self._model, self._parameters, e, self._reduction) for e in batch]
        for name in self._parameters:
            consume(name, torch.stack([g[name] for g in gradients]))


def gradients_of(
    engine: GradientEngine, batch: Sequence[TokenizedExample]
) -> list[tuple[TokenizedExample, dict[str, torch.Tensor]]]:
    """Each example with its whole gradient by parameter name, in memory: for checks and small models."""
    found: list[dict[str, torch.Tensor]] = [{} for _ in batch]

    def keep(name: str, gradients: torch.Tensor) -> None:
        for row, gradient in zip(found, gradients, strict=True):
            row[name] = gradient.clone()

    engine.run(batch, keep)
    return list(zip(batch, found, strict=True))


def pack(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Sequences end to end: first fit by decreasing length. One longer than the budget goes alone."""
    batches: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        k = next((k for k, left in enumerate(room) if lengths[i] <= left), None)
        if k is None:
            batches.append([i])
            room.append(token_budget - lengths[i])
        else:
            batches[k].append(i)
            room[k] -= lengths[i]
    return batches


def pad(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Neighbours in length, as many as fit the budget with padding counted."""
    batches: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * longest <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
            longest = lengths[i]
    return batches
