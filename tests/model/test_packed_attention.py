"""Attention over packed sequences: written out, or by a flash attention that is given their bounds."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_models import make_examples, packed, small
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gtp_exp.gradients.engines.base import gradients_of
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.model import packed_attention as attention
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.packed_attention import _WrittenOut
from gtp_exp.model.parameters import trainable_parameters


@pytest.mark.parametrize("window", [3, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("frugal", [False, True])
def test_written_out_attention(key_heads, window, frugal):
    generator = torch.Generator().manual_seed(0)
    bounds = [(0, 5), (5, 6), (6, 15)]
    q, k, v = (
        torch.randn(1, heads, 15, size, dtype=torch.float64, generator=generator).requires_grad_()
        for heads, size in ((4, 8), (key_heads, 8), (key_heads, 6))
    )
    d_out = torch.randn(1, 15, 4, 6, dtype=torch.float64, generator=generator)
    found = _WrittenOut.apply(q, k, v, bounds, 0.3, window, frugal)
    position, segment = torch.arange(15), torch.tensor([0] * 5 + [1] + [2] * 9)
    distance = position[:, None] - position
    seen = (distance >= 0) & (distance < window) & (segment[:, None] == segment)
    expected = F.scaled_dot_product_attention(q, k, v, seen, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), d_out),
        torch.autograd.grad(expected, (q, k, v), d_out),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def varlen_stand_in(module, query, key, value, attention_mask, *, cu_seq_lens_q, max_length_q, **kwargs):
    """What a flash attention does with bounds, by torch's attention: there is no CUDA in a test."""
    assert attention_mask is None and kwargs["deterministic"]
    ends = cu_seq_lens_q.tolist()
    assert max_length_q == max(b - a for a, b in itertools.pairwise(ends))
    parts = [
        F.scaled_dot_product_attention(
            *(t[:, :, a:b] for t in (query, key, value)),
            is_causal=True,
            scale=kwargs["scaling"],
            enable_gqa=True,
        )
        for a, b in itertools.pairwise(ends)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("family", ["llama_gqa_tied_bias", "qwen3"])
def test_an_installed_flash_attention_is_given_the_bounds(family, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return varlen_stand_in(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", counted)
    monkeypatch.setattr(attention, "flash_attention", lambda model: "flash_attention_2")
    model, examples = small(family, torch.float64), make_examples(7)
    for example, found in gradients_of(packed(model), examples):
        expected = reference_gradients(model, trainable_parameters(model), example, Reduction.MEAN)
        assert relative_error(found, expected, order=float("inf")) <= 1e-10
    assert len(calls) == 2  # layers
    assert base_model(model).config._attn_implementation == "sdpa"


def test_flash_attention_stands_in_on_cuda_in_half_precision_only(monkeypatch):
    model = base_model(small("llama"))
    monkeypatch.setitem(attention._VARIABLE_LENGTH, "flash_attention_3", lambda: False)
    monkeypatch.setitem(attention._VARIABLE_LENGTH, "flash_attention_2", lambda: True)

    def on(device, dtype):
        weight = SimpleNamespace(device=torch.device(device), dtype=dtype)
        monkeypatch.setattr(model, "parameters", lambda: iter([weight]))
        return attention.flash_attention(model)

    assert on("cuda", torch.bfloat16) == on("cuda", torch.float16) == "flash_attention_2"
    assert on("cuda", torch.float32) is None and on("cpu", torch.bfloat16) is None
    model.config._attn_implementation = "eager"  # asked for, so kept
    assert on("cuda", torch.bfloat16) is None
