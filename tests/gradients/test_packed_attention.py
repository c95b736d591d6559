"""Attention written out equals torch's, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gtp_exp.gradients.attention import _WrittenOut


@pytest.mark.parametrize("window", [3, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_written_out_attention(key_heads, window):
    generator = torch.Generator().manual_seed(0)
    bounds = [(0, 5), (5, 6), (6, 15)]
    q, k, v = (
        torch.randn(1, heads, 15, size, dtype=torch.float64, generator=generator).requires_grad_()
        for heads, size in ((4, 8), (key_heads, 8), (key_heads, 6))
    )
    d_out = torch.randn(1, 15, 4, 6, dtype=torch.float64, generator=generator)
    found = _WrittenOut.apply(q, k, v, bounds, 0.3, window)
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
