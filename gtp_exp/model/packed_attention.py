"""Let packed sequences attend each to itself alone, through transformers' AttentionInterface."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from gtp_exp.model.rectangle import Rectangle

ATTENTION = "gtp_exp_packed"
# Implementations that take packed sequences by their bounds, best first, and whether they are installed.
_VARIABLE_LENGTH = {
    "flash_attention_3": is_flash_attn_3_available,
    "flash_attention_2": is_flash_attn_2_available,
}
# In half precision on a CPU, torch's fused attention takes three times as long as its three products written
# out, up to the length where the square of it no longer fits the cache.
_WRITTEN_OUT_UP_TO = 512
# Values of a mask (a square of 2048 tokens) above which attention that needs one goes by blocks of queries.
_MASK_VALUES = 1 << 22


@contextlib.contextmanager
def attention_per_sequence(
    model: Any, bounds: Sequence[tuple[int, int]], rectangle: Rectangle | None, *, frugal: bool = False
) -> Iterator[dict[str, Any]]:
    """Keep the sequences apart in the model's attention: all at once in a rectangle, or one by one.
    Yield extra inputs for the model's forward.

    frugal: whether the backward pass computes the attention's probabilities again, rather than the forward
    pass keeping what grows with the square of a sequence's length.
    Pass no attention mask and use_cache=False, or transformers makes the sequences see each other.
    """
    # Seconds, which a job that finds its gradients in the cache need not spend.
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    own = model.config.get_text_config()._attn_implementation
    by_bounds = own if own.startswith("flash_attention") else flash_attention(model)
    _ACTIVE.append(_Active(own, bounds, rectangle, frugal))
    try:
        with _implementation(model, by_bounds or ATTENTION):
            yield _flash_inputs(bounds, next(model.parameters()).device) if by_bounds else {}
    finally:
        _ACTIVE.pop()


def flash_attention(model: Any) -> str | None:
    """Return the installed flash attention that can replace the fused one: on CUDA, in half precision."""
    weight = next(model.parameters())
    fits = weight.device.type == "cuda" and weight.dtype in (torch.float16, torch.bfloat16)
    own = model.config.get_text_config()._attn_implementation
    if not fits or own != "sdpa" or not getattr(model, "_supports_flash_attn", False):
        return None
    return next((name for name, installed in _VARIABLE_LENGTH.items() if installed()), None)


def _flash_inputs(bounds: Sequence[tuple[int, int]], device: torch.device) -> dict[str, Any]:
    ends = torch.tensor([0] + [end for _, end in bounds], dtype=torch.int32, device=device)
    longest = max(end - start for start, end in bounds)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "deterministic": True,  # a resumed run must give the same bytes
    }


@contextlib.contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    configs = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


@dataclass(frozen=True)
class _Active:
    """Holds what a packed pass is made of, with the name of the model's own attention."""

    own: str
    bounds: Sequence[tuple[int, int]]
    rectangle: Rectangle | None
    frugal: bool


_ACTIVE: list[_Active] = []  # a registered function can close over nothing


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Apply the attention function that the model was loaded with to each sequence.

    query, key, value: [1, heads, T, d]; returns [1, T, heads, d].
    """
    active = _ACTIVE[-1]
    own, bounds, rectangle = active.own, active.bounds, active.rectangle
    longest = max(end - start for start, end in bounds)
    window = kwargs.get("sliding_window") or longest
    half = query.dtype in (torch.float16, torch.bfloat16) and query.device.type == "cpu"
    if own == "sdpa" and half and longest <= _WRITTEN_OUT_UP_TO and _is_plain(module, kwargs):
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return _WrittenOut.apply(query, key, value, bounds, scaling, window, active.frugal), None
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Any = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)

    def attended(*parts: torch.Tensor) -> torch.Tensor:
        n = parts[0].shape[2]
        if n * n > _MASK_VALUES and (own == "eager" or n > window):
            return _by_blocks(lambda *block: function(module, *block, **kwargs)[0], parts, window, own)
        mask = None  # which the fused functions take as causal
        if own == "eager":
            mask = _additive_mask(n, window, query.dtype, query.device)
        elif n > window:
            mask = _visible(n, window, query.device)
        return function(module, *parts, mask, **kwargs)[0]

    if rectangle is not None:  # what is padded comes after every token, which does not see it
        parts = (rectangle.spread(t[0].transpose(0, 1)).transpose(1, 2) for t in (query, key, value))
        return rectangle.gather(attended(*parts)).unsqueeze(0), None
    outputs = [attended(*(t[:, :, start:end] for t in (query, key, value))) for start, end in bounds]
    return torch.cat(outputs, dim=1), None


def _is_plain(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    """Say whether it is a softmax of scaled products and nothing else (no bias, sink, cap or dropout)."""
    known = {"scaling", "sliding_window", "dropout", "position_ids", "use_cache"}
    extra = [name for name, value in kwargs.items() if name not in known and value is not None]
    return not extra and not kwargs.get("dropout") and bool(getattr(module, "is_causal", True))


@lru_cache(maxsize=64)
def _visible(n: int, window: int, device: torch.device) -> torch.Tensor:
    """Return bool [1, 1, n, n]: a query sees itself and the window - 1 positions before it."""
    distance = torch.arange(n, device=device).unsqueeze(1) - torch.arange(n, device=device)
    return ((distance >= 0) & (distance < window)).view(1, 1, n, n)


@lru_cache(maxsize=64)
def _additive_mask(n: int, window: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    hidden = ~_visible(n, window, device)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)


def _by_blocks(
    attend: Callable[..., torch.Tensor], parts: Sequence[torch.Tensor], window: int, own: str
) -> torch.Tensor:
    """Return `attend` of query, key and value [b, heads, n, d], as [b, n, heads, d], in memory linear in n.

    A block of queries takes the keys that its window reaches, under a mask of their own; the backward pass
    computes each block again. attend: of query, key, value and mask.
    """
    query, key, value = parts
    n, additive = query.shape[2], own == "eager"
    size = max(1, _MASK_VALUES // min(n, window))

    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # The last query sees the last key.
        distance = torch.arange(q.shape[2], device=q.device).unsqueeze(1) + (k.shape[2] - q.shape[2])
        distance = distance - torch.arange(k.shape[2], device=q.device)
        mask = ((distance >= 0) & (distance < window)).view(1, 1, *distance.shape)
        if additive:
            mask = q.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(q.dtype).min)
        return attend(q, k, v, mask)

    outputs = []
    for start in range(0, n, size):
        rows, seen = slice(start, start + size), slice(max(0, start - window + 1), start + size)
        outputs.append(
            checkpoint(block, query[:, :, rows], key[:, :, seen], value[:, :, seen], use_reentrant=False)
        )
    return torch.cat(outputs, dim=1)


class _WrittenOut(torch.autograd.Function):
    """Computes O = P V, P = softmax(scaling Q K^T + mask), per sequence and head. P is kept for the
    backward pass, or computed again there."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: Sequence[tuple[int, int]],
        scaling: float,
        window: int,
        frugal: bool,
    ) -> torch.Tensor:
        """Return the attention [1, T, heads, d] of query, key and value [1, heads, T, d]."""
        repeats = query.shape[1] // key.shape[1]
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        probabilities = []
        for start, end in bounds:
            q, k, v = _of_sequence(start, end, repeats, query, key, value)
            p = _probabilities(q, k, scaling, window)
            out[0, start:end] = torch.bmm(p, v).transpose(0, 1)
            if not frugal:
                probabilities.append(p)
        ctx.save_for_backward(query, key, value, *probabilities)
        ctx.bounds, ctx.scaling, ctx.window, ctx.repeats = bounds, scaling, window, repeats
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, *probabilities = ctx.saved_tensors
        d_query, d_key, d_value = (torch.empty_like(t) for t in (query, key, value))
        for i, (start, end) in enumerate(ctx.bounds):
            q, k, v = _of_sequence(start, end, ctx.repeats, query, key, value)
            p = probabilities[i] if probabilities else _probabilities(q, k, ctx.scaling, ctx.window)
            d_out = gradients[0][0, start:end].transpose(0, 1)  # [heads, n, d]
            d_p = torch.bmm(d_out, v.transpose(1, 2))
            # dS = P * (dP - rowsum(P * dP)); torch has it as one operation
            d_s = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype)
            d_query[0, :, start:end] = torch.bmm(d_s, k).mul_(ctx.scaling)
            per_head = (-1, ctx.repeats, end - start, query.shape[3])
            d_key[0, :, start:end] = torch.bmm(d_s.transpose(1, 2), q).mul_(ctx.scaling).view(per_head).sum(1)
            per_head = (-1, ctx.repeats, end - start, value.shape[3])
            d_value[0, :, start:end] = torch.bmm(p.transpose(1, 2), d_out).view(per_head).sum(1)
        return d_query, d_key, d_value, None, None, None, None


def _probabilities(q: torch.Tensor, k: torch.Tensor, scaling: float, window: int) -> torch.Tensor:
    """Return P = softmax(scaling Q K^T + mask) of one sequence, [heads, n, n]."""
    mask = _additive_mask(q.shape[1], window, q.dtype, q.device)[0]
    return torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling), dim=-1)


def _of_sequence(
    start: int, end: int, repeats: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return one sequence's query, key and value, [heads, n, d]; grouped keys and values are repeated for
    their query heads."""
    k, v = (t[0, :, start:end].repeat_interleave(repeats, dim=0) for t in (key, value))
    return query[0, :, start:end], k, v
