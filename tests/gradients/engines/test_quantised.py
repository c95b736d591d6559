"""Gradients over frozen layers in few bits are exact for the weights that the bits stand for."""

from __future__ import annotations

import warnings

import pytest
import torch
from quantised_models import by_bitsandbytes, rounded
from small_models import make_examples, with_lora, worst_error
from test_engine_choice import choose
from test_exactness import engine_of

from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.gradients.engines.memory import saved_bytes
from gtp_exp.model.lora import base_model
from gtp_exp.model.quantized import Quantization, dense_weight, is_quantized, with_dense_weights

FAMILIES = ["llama", "llama_gqa_tied_bias", "qwen2", "gemma2"]
BITS = [Quantization.NF4, Quantization.INT8]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Engine.PACKED, Engine.HOOKS])
def test_a_stand_in_that_dequantises_is_exact(family, kind):
    model = with_lora(rounded(family))
    assert worst_error(model, engine_of(model, kind), make_examples(9)) <= 5e-5
    model = with_lora(rounded(family, torch.float64)).double()
    assert worst_error(model, engine_of(model, kind), make_examples(9)) <= 1e-10


def test_layers_in_few_bits_that_have_no_lora_are_differentiated_too():
    model = with_lora(rounded("llama", torch.float64), targets=["q_proj"]).double()
    assert worst_error(model, engine_of(model), make_examples(9)) <= 1e-10


def test_the_stand_in_gets_the_packed_engine_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(with_lora(rounded("llama"))).engine is Engine.PACKED
        assert choose(with_lora(rounded("llama").bfloat16())).engine is Engine.PACKED


class Doubled(torch.nn.Linear):
    """A linear layer of which nobody is told with what weight it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, 2 * self.weight, self.bias)


def test_an_unknown_linear_layer_goes_to_a_slower_engine_that_says_so():
    model = rounded("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj = Doubled(32, 32, bias=False).requires_grad_(False)
    model = with_lora(model)
    with pytest.warns(UserWarning, match="q_proj adapts a Doubled, whose weight is not known"):
        assert choose(model).engine is Engine.HOOKS
    assert worst_error(model, engine_of(model, Engine.HOOKS), make_examples(6)) <= 5e-5


def test_dequantised_weights_are_not_kept_for_the_backward_pass():
    plain, stored = (with_lora(model, r=1) for model in (rounded("llama"), rounded("llama")))
    example = make_examples(1, longest=4)[0]
    with_lora_saved = saved_bytes(engine_of(stored), stored, example)
    layer = base_model(plain).model.layers[0].mlp.up_proj.base_layer
    assert with_lora_saved < 14 * dense_weight(layer, torch.float32).nbytes  # there are 14 such layers


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_bitsandbytes_layers_are_exact(family, bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = with_lora(by_bitsandbytes(family, bits, tmp_path))
    for kind in (Engine.PACKED, Engine.HOOKS):
        assert worst_error(model, engine_of(model, kind), make_examples(9)) <= 5e-5


@pytest.mark.parametrize("bits", BITS)
def test_bitsandbytes_layers_equal_plain_layers_of_the_dequantised_weights(bits, tmp_path):
    """The reference is the same model without bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    from gtp_exp.gradients.engines.base import gradients_of
    from gtp_exp.gradients.engines.check import relative_error

    adapted, plain = (by_bitsandbytes("llama", bits, tmp_path) for _ in range(2))
    plain = with_dense_weights(plain, torch.float32)
    assert not any(is_quantized(module) for module in plain.modules())
    torch.manual_seed(3)
    adapted = with_lora(adapted)
    torch.manual_seed(3)
    plain = with_lora(plain)
    examples = make_examples(9)
    expected = dict(gradients_of(engine_of(plain, Engine.AUTOGRAD), examples))
    for example, found in gradients_of(engine_of(adapted), examples):
        assert relative_error(found, expected[example], order=float("inf")) <= 5e-5


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_layers_get_the_packed_engine_without_a_word(bits, dtype, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = with_lora(by_bitsandbytes("llama", bits, tmp_path, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(model).engine is Engine.PACKED
    with torch.no_grad():  # what repacks a 4-bit weight where it is not prevented
        model(input_ids=torch.arange(3, 9)[None])
    assert choose(model).engine is Engine.PACKED


def test_activations_that_are_rounded_too_are_noticed(tmp_path):
    """LLM.int8()'s own pass computes another function than that of the dequantised weights."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear8bitLt

    model = with_lora(by_bitsandbytes("llama", Quantization.INT8, tmp_path))
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.__class__ = Linear8bitLt
    with pytest.warns(UserWarning, match="engine packed differs"):
        assert choose(model).engine is not Engine.PACKED
