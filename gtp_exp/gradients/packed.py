"""Exact per-example LoRA gradients from one padding-free pass over sequences laid end to end.

What is not computed is what makes it fast: no padding, no logits without a label, no gradient of a frozen
weight, and no sum over examples that would have to be taken apart again. For a LoRA layer

    y = W x + s B A x,     g = dL/dy,     u = A x,     v = s B^T g

the gradients of example i are contractions over its own tokens t:

    dL_i/dB = s sum_t g_t u_t^T            dL_i/dA = sum_t v_t x_t^T            dL/dx = W^T g + A^T v

so the only additions to the plain backward pass are two thin products per layer and example.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.gradients.adapters import Adapters, LoraLinear, base_model
from gtp_exp.gradients.engine import Consume, pack
from gtp_exp.gradients.head import label_head
from gtp_exp.gradients.hooks import NotPerExample
from gtp_exp.gradients.loss import Reduction, label_positions

ATTENTION = "gtp_exp_packed"
_ATTENTIONS_THAT_PACK = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class PackedEngine:
    name = "packed"

    def __init__(self, model: torch.nn.Module, adapters: Adapters, reduction: Reduction) -> None:
        self._model = base_model(model)
        self._layers = adapters.layers
        self._reduction = reduction
        self._head = label_head(self._model)
        self._backbone = getattr(self._model, self._model.base_model_prefix, None)

    def batches(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        return pack(lengths, token_budget)

    def run(self, batch: Sequence[TokenizedExample], consume: Consume) -> None:
        device = self._layers[0].a.weight.device
        packing = Packing(batch, self._reduction, device)
        with _attention_per_sequence(self._model), _lora_layers(self._layers, packing.bounds, consume):
            # No attention mask and no cache, or transformers would let the sequences see each other.
            inputs: dict[str, Any] = {
                "input_ids": packing.tokens,
                "position_ids": packing.positions,
                "use_cache": False,
                **packing.sequence_lengths,
            }
            if self._head is not None:
                assert self._backbone is not None
                hidden = self._backbone(**inputs).last_hidden_state[0].index_select(0, packing.labelled)
                gradient = self._head.gradient(hidden.detach(), packing.targets, packing.weights)
                hidden.backward(gradient)
            else:
                logits = self._model(**inputs, logits_to_keep=packing.labelled).logits[0]
                logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
                nll = torch.nn.functional.cross_entropy(logits, packing.targets, reduction="none")
                (nll * packing.weights.to(nll)).sum().backward()


class Packing:
    """A batch as one sequence [1, T]: tokens, positions that start anew, and where the labels are."""

    def __init__(self, batch: Sequence[TokenizedExample], reduction: Reduction, device: torch.device) -> None:
        self.bounds: list[tuple[int, int]] = []
        tokens, positions, labelled, targets, weights = [], [], [], [], []
        for example in batch:
            start = len(tokens)
            tokens += example.input_ids
            positions += range(example.n_tokens)
            self.bounds.append((start, len(tokens)))
            where, labels = label_positions(example)
            labelled += [start + t for t in where]
            targets += labels
            weights += [1 / len(where) if reduction is Reduction.MEAN else 1.0] * len(where)
        self.tokens = torch.tensor([tokens], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.labelled = torch.tensor(labelled, device=device)
        self.targets = torch.tensor(targets, device=device)
        self.weights = torch.tensor(weights, dtype=torch.float64, device=device)
        ends = torch.tensor([0] + [end for _, end in self.bounds], dtype=torch.int32, device=device)
        longest = max(end - start for start, end in self.bounds)
        # The names under which transformers passes packed sequences on to attention functions.
        self.sequence_lengths = {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }


# --- LoRA layers
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Context:
    layer: LoraLinear
    bounds: Sequence[tuple[int, int]]
    consume: Consume


class _LoraFunction(torch.autograd.Function):
    """y = W x + bias + s B A x, whose backward hands per-example gradients of A and B to the consumer and
    returns none for them: their .grad stays untouched. They are inputs only so that autograd comes here.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, context: _Context
    ) -> torch.Tensor:
        base = context.layer.module.base_layer
        flat = x.view(-1, x.shape[-1])
        a, b = a.to(x.dtype), b.to(x.dtype)
        u = flat @ a.t()
        u *= context.layer.scaling
        y = torch.nn.functional.linear(flat, base.weight, base.bias).addmm_(u, b.t())
        ctx.save_for_backward(flat, u, a, b)
        ctx.context, ctx.shape = context, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, u, a, b = ctx.saved_tensors
        context: _Context = ctx.context
        layer = context.layer
        g = gradients[0].reshape(len(x), -1)
        v = g @ b
        v *= layer.scaling
        if layer.b_name is not None:
            grad = torch.empty(len(context.bounds), *b.shape, dtype=g.dtype, device=g.device)
            for i, (start, end) in enumerate(context.bounds):
                torch.mm(g[start:end].t(), u[start:end], out=grad[i])
            context.consume(layer.b_name, grad)
        if layer.a_name is not None:
            grad = torch.empty(len(context.bounds), *a.shape, dtype=g.dtype, device=g.device)
            for i, (start, end) in enumerate(context.bounds):
                torch.mm(v[start:end].t(), x[start:end], out=grad[i])
            context.consume(layer.a_name, grad)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return (g @ layer.module.base_layer.weight).addmm_(v, a).view(ctx.shape), None, None, None


@contextlib.contextmanager
def _lora_layers(
    layers: Sequence[LoraLinear], bounds: Sequence[tuple[int, int]], consume: Consume
) -> Iterator[None]:
    """Replaces the forward of every LoRA layer; the modules and their weights are not touched."""
    n_tokens = bounds[-1][1]
    seen: set[str] = set()

    def forward(layer: LoraLinear, x: torch.Tensor) -> torch.Tensor:
        if x.shape[:-1] != (1, n_tokens):
            raise NotPerExample(f"{layer.name} was called with {tuple(x.shape)}, not [1, {n_tokens}, values]")
        if layer.name in seen:
            raise NotPerExample(f"{layer.name} was called twice in one pass")
        seen.add(layer.name)
        return _LoraFunction.apply(x, layer.a.weight, layer.b.weight, _Context(layer, bounds, consume))

    try:
        for layer in layers:
            layer.module.forward = lambda x, *args, layer=layer, **kwargs: forward(layer, x)
        yield
    finally:
        for layer in layers:
            del layer.module.forward  # the instance attribute; the class has the original


def packed_obstacle(model: torch.nn.Module, adapters: Adapters) -> str | None:
    """Why these LoRA layers cannot be run by the packed engine though the padded one can, or None."""
    base = base_model(model)
    for layer in adapters.layers:
        if type(layer.module.base_layer) is not torch.nn.Linear:
            return f"{layer.name} adapts a {type(layer.module.base_layer).__name__}, not a plain linear layer"
        if layer.module is base.get_output_embeddings():
            return f"{layer.name} is the output head"
    config = base.config.get_text_config()
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS):
        return f"the model has layers of type {', '.join(unknown)}, which may mix packed sequences"
    return None


# --- attention
# ---------------------------------------------------------------------------------------------------


def attention_per_sequence(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function the model was loaded with, on each sequence by itself. query: [1, heads, T, d]."""
    own = _OWN_ATTENTION[-1]
    function = ALL_ATTENTION_FUNCTIONS.get_interface(own, _eager_of(module))
    ends = kwargs.pop("cu_seq_lens_q").tolist()
    for key_ in ("cu_seq_lens_k", "max_length_q", "max_length_k"):
        kwargs.pop(key_)
    window = kwargs.get("sliding_window")
    outputs = []
    for start, end in zip(ends, ends[1:], strict=False):
        n = end - start
        narrow = window is not None and n > window
        mask = None
        if own == "eager" or narrow:
            mask = _causal_mask(n, window if narrow else n, own, query.dtype, query.device)
        q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
        outputs.append(function(module, q, k, v, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


_OWN_ATTENTION: list[str] = []  # implementation to run on each sequence; transformers passes no closure along
AttentionInterface.register(ATTENTION, attention_per_sequence)


def _eager_of(module: torch.nn.Module) -> Any:
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


@lru_cache(maxsize=64)
def _causal_mask(n: int, window: int, own: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[1, 1, n, n]: a query sees itself and the window - 1 positions before it. Additive for eager attention."""
    distance = torch.arange(n, device=device).unsqueeze(1) - torch.arange(n, device=device)
    seen = ((distance >= 0) & (distance < window)).view(1, 1, n, n)
    if own != "eager":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)


@contextlib.contextmanager
def _attention_per_sequence(model: Any) -> Iterator[None]:
    own = model.config.get_text_config()._attn_implementation
    if own in _ATTENTIONS_THAT_PACK:
        yield  # these read cu_seq_lens themselves
        return
    configs = {
        id(m.config): m.config
        for m in model.modules()
        if hasattr(getattr(m, "config", None), "_attn_implementation")
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    _OWN_ATTENTION.append(own)
    try:
        for config in configs.values():
            config._attn_implementation = ATTENTION
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        _OWN_ATTENTION.pop()
