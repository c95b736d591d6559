"""Differentiate the output head at label positions only: the loss by the final hidden states.

Logits are the widest tensors of a language model. They are needed only where there is a label, only a few
positions at a time, and their gradient is known: softmax minus one-hot. So autograd never sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gtp_exp.gradients.engines.linear import LinearKernel

_PROBE_TOKENS = 16
_CHUNK_VALUES = 1 << 24  # logits held at a time: 64 MiB in float32


@dataclass(frozen=True)
class LabelHead:
    """Computes logits = cap(scale * (W h + bias)), cap(z) = softcap * tanh(z / softcap)."""

    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None  # [V]
    scale: float
    softcap: float | None
    kernel: LinearKernel

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, V] of hidden states [n, H]."""
        z = self.kernel.apply(hidden, self.weight, self.bias)
        if self.scale != 1:
            z = z * self.scale
        if self.softcap is not None:
            z = (z / self.softcap).tanh_().mul_(self.softcap)
        return z

    def gradient(self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the gradient of sum_k weights[k] * token_nll(logits(hidden[k]), targets[k]): [n, H].

        hidden: [n, H] without graph; targets: int64 [n]; weights: float [n].
        """
        out = torch.empty_like(hidden)
        size = max(1, _CHUNK_VALUES // self.weight.shape[0])
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            z = self.logits(hidden[part])
            wide = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
            # dL/dz = w (softmax(z) - onehot), then back through cap and scale
            g = torch.softmax(wide, dim=1)
            g[torch.arange(len(g), device=g.device), targets[part]] -= 1
            g.mul_(weights[part].to(g).unsqueeze(1))
            if self.softcap is not None:
                g.mul_(1 - (wide / self.softcap).square_())
            if self.scale != 1:
                g.mul_(self.scale)
            out[part] = self.kernel.apply(g.to(hidden.dtype), self.weight.t())
        return out


def label_head(model: Any, kernel: LinearKernel) -> LabelHead | None:
    """Return the head of a transformers causal LM, or None when it computes what `LabelHead` cannot.

    What the configuration says about scaling and capping is believed only after the logits of a few tokens
    have been compared with the model's own.
    """
    linear = model.get_output_embeddings()
    backbone = getattr(model, model.base_model_prefix, None)
    if type(linear) is not torch.nn.Linear or backbone is None or linear.weight.requires_grad:
        return None
    config = model.config
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    head = LabelHead(
        weight=linear.weight.detach(), bias=linear.bias, scale=scale, softcap=softcap, kernel=kernel
    )
    tokens = torch.arange(min(_PROBE_TOKENS, len(linear.weight)), device=linear.weight.device).unsqueeze(0)
    with torch.no_grad():
        theirs = model(input_ids=tokens, use_cache=False).logits[0]
        ours = head.logits(backbone(input_ids=tokens, use_cache=False).last_hidden_state[0])
    exact = ours.dtype in (torch.float32, torch.float64)
    if ours.shape != theirs.shape:
        return None
    close = torch.allclose(ours, theirs.to(ours), rtol=1e-4 if exact else 0.05, atol=1e-4 if exact else 0.05)
    return head if close else None
