"""Compute exact per-example LoRA gradients from one padding-free pass over sequences laid end to end.

What is not computed is what makes it fast: no padding, no logits without a label (head.py), no gradient of a
frozen weight, and no sum over examples that would have to be taken apart again (linear.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.gradients.engines.adapters import Adapters
from gtp_exp.gradients.engines.base import Consume, pack, pad
from gtp_exp.gradients.engines.compiled import compiled_norms
from gtp_exp.gradients.engines.head import label_head
from gtp_exp.gradients.engines.linear import LinearKernel, packed_linears
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction, label_positions, labelled_nll
from gtp_exp.model.packed_attention import attention_per_sequence
from gtp_exp.model.packing import lay_end_to_end, mixing_layers
from gtp_exp.model.quantized import has_dense_weight
from gtp_exp.model.rectangle import Rectangle


class PackedEngine:
    """Lays the sequences of a batch end to end, and computes logits only where there is loss."""

    name = "packed"

    def __init__(
        self,
        model: torch.nn.Module,
        adapters: Adapters,
        reduction: Reduction,
        kernel: LinearKernel,
        *,
        compiled: bool = False,
    ) -> None:
        self._model = base_model(model)
        self._layers, self._reduction, self._kernel = adapters.layers, reduction, kernel
        self._head = label_head(self._model, kernel)
        self._compiled = compiled
        self._device = self._layers[0].a.weight.device
        # What is done per example: one by one on a CPU, which waits for padding; at once on a GPU, which
        # waits for many small steps.
        self._at_once = self._device.type != "cpu"

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Return batches that fill the budget, counted as this device computes them."""
        return (pad if self._at_once else pack)(lengths, token_budget)

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        """Hand over the gradients of every trained LoRA matrix."""
        packing = Packing(batch, self._reduction, self._device)
        rectangle = Rectangle(packing.bounds, self._device) if self._at_once else None
        with (
            compiled_norms(self._model) if self._compiled else contextlib.nullcontext(),
            attention_per_sequence(self._model, packing.bounds, rectangle) as extra,
            packed_linears(self._model, self._layers, packing.bounds, rectangle, consume, self._kernel),
        ):
            if self._head is not None:
                backbone = getattr(self._model, self._model.base_model_prefix)
                output = backbone(**packing.inputs, **extra).last_hidden_state
                hidden = output[0].index_select(0, packing.labelled)
                hidden.backward(self._head.gradient(hidden.detach(), packing.targets, packing.weights))
            else:
                nll, _, _ = labelled_nll(self._model, {**packing.inputs, **extra}, packing.labels)
                (nll * packing.weights.to(nll)).sum().backward()


class Packing:
    """Lays a batch out as one sequence [1, T]: tokens, positions that start anew, places of the labels."""

    def __init__(self, batch: Sequence[TokenizedExample], reduction: Reduction, device: torch.device) -> None:
        laid = lay_end_to_end(batch)
        self.bounds = laid.bounds
        labelled, targets, weights = [], [], []
        for example, (start, _) in zip(batch, laid.bounds, strict=True):
            where, labels = label_positions(example)
            labelled += [start + t for t in where]
            targets += labels
            weights += [1 / len(where) if reduction is Reduction.MEAN else 1.0] * len(where)
        self.inputs: dict[str, Any] = {
            "input_ids": torch.tensor([laid.tokens], device=device),
            "position_ids": torch.tensor([laid.positions], device=device),
            "use_cache": False,
        }
        self.labels = torch.tensor([laid.labels], device=device)
        self.labelled = torch.tensor(labelled, device=device)
        self.targets = torch.tensor(targets, device=device)
        self.weights = torch.tensor(weights, dtype=torch.float64, device=device)


def packed_obstacle(model: torch.nn.Module, adapters: Adapters) -> str | None:
    """Return why the packed engine cannot run these LoRA layers though the padded one can, or None."""
    base = base_model(model)
    for layer in adapters.layers:
        if not has_dense_weight(layer.base):
            return f"{layer.name} adapts a {type(layer.base).__name__}, whose weight is not known here"
        if layer.module is base.get_output_embeddings():
            return f"{layer.name} is the output head"
    return mixing_layers(model)
