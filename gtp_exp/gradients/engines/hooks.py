"""Compute exact per-example LoRA gradients from a padded batch, through the model's own forward and head.

Slower than the packed engine and without assumptions about how the model mixes tokens, beyond causality:
padding on the right then cannot reach a token before it, so no attention mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gtp_exp.data.batching import pad_collate
from gtp_exp.data.examples import TokenizedExample
from gtp_exp.gradients.engines.adapters import Adapters
from gtp_exp.gradients.engines.base import Consume, NotPerExample, pad
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction, labelled_logits, labelled_nll, token_nll


class HooksEngine:
    """Notes the LoRA matrices' inputs and differentiates by their outputs, a padded batch at a time."""

    name = "hooks"

    def __init__(self, model: torch.nn.Module, adapters: Adapters, reduction: Reduction) -> None:
        self._model, self._layers, self._reduction = base_model(model), adapters.layers, reduction
        head = self._model.get_output_embeddings()
        self._adapts_head = any(layer.module is head for layer in self._layers)

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Return batches of neighbours in length."""
        return pad(lengths, token_budget)

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        """Hand over the gradients of every trained LoRA matrix that takes part."""
        # Per LoRA matrix M with y = M x and output gradient dL/dy:  dL_i/dM = sum_t dL/dy[i,t] x[i,t]^T
        matrices = [
            (module, name)
            for layer in self._layers
            for module, name in ((layer.a, layer.a_name), (layer.b, layer.b_name))
            if name is not None
        ]
        calls: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for _, name in matrices}
        handles = [module.register_forward_hook(_noting(calls[name])) for module, name in matrices]
        try:
            loss = self._loss(batch)
        finally:
            for handle in handles:
                handle.remove()
        # Gradients of the matrices' outputs only: nothing is computed for, or accumulated into, a parameter.
        outputs = [y for pairs in calls.values() for _, y in pairs]
        output_gradients = iter(torch.autograd.grad(loss, outputs, allow_unused=True))
        for name, pairs in calls.items():
            # A module called several times has a gradient that is a sum; the consumer wants all of it.
            total = None
            for x, _ in pairs:
                g = next(output_gradients)
                if x.dim() != 3 or x.shape[0] != len(batch):
                    raise NotPerExample(
                        f"{name} was called with {tuple(x.shape)}, not [batch, tokens, values]"
                    )
                if g is not None:
                    term = torch.bmm(g.transpose(1, 2), x.detach().to(g.dtype))
                    total = term if total is None else total.add_(term)
            if total is not None:
                consume(name, total)

    def _loss(self, batch: Sequence[TokenizedExample]) -> torch.Tensor:
        """Return the sum of the examples' losses: their gradients do not mix, for no example sees another."""
        device = self._layers[0].a.weight.device
        padded = {name: part.to(device) for name, part in pad_collate(batch, pad_id=0).items()}
        inputs = {"input_ids": padded["input_ids"], "use_cache": False}
        labels = padded["labels"]
        if self._adapts_head:  # its inputs are told apart by row, so it must see whole rows
            logits, row, column = labelled_logits(self._model, inputs, labels)
            nll = token_nll(logits, labels[row, column])
        else:
            nll, row, _ = labelled_nll(self._model, inputs, labels)
        weights = torch.ones(len(row), dtype=torch.float64, device=device)
        if self._reduction is Reduction.MEAN:
            weights /= row.bincount(minlength=len(batch))[row]
        return (nll * weights.to(nll)).sum()


def hooks_obstacle(adapters: Adapters) -> str | None:
    """Return why the padded engine cannot run these LoRA layers, or None."""
    names = [layer.name for layer in adapters.layers if layer.magnitude is not None]
    return f"{names[0]} has DoRA's magnitudes, which are no matrices" if names else None


def _noting(calls: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    return lambda module, inputs, output: calls.append((inputs[0], output))
