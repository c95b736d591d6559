"""Compute in float32 with the weights of a model in half precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import FAMILIES, VOCABULARY, base, make_examples, packed, small
from transformers.models.llama.modeling_llama import LlamaMLP

from gtp_exp.gradients.engines.base import gradients_of
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.parameters import in_float32, trainable_parameters


def in_half(family: str, **options: Any):
    return small(family, **options).bfloat16()


def widened_twin(model):
    """The same weights, held in float32."""
    return copy.deepcopy(model).float()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_a_model_held_in_float32(family, options):
    model = in_half(family, **options)
    twin = widened_twin(model)
    (example,) = make_examples(1)
    expected = reference_gradients(twin, trainable_parameters(twin), example, Reduction.MEAN)
    with in_float32(model):
        found = reference_gradients(model, trainable_parameters(model), example, Reduction.MEAN)
        (by_engine,) = [g for _, g in gradients_of(packed(model), [example])]
        again = reference_gradients(model, trainable_parameters(model), example, Reduction.MEAN)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(by_engine[name], gradient, rtol=1e-4, atol=1e-5)
        assert torch.equal(again[name], found[name])  # the engine has put back what it replaced


def test_a_model_that_reads_weights_by_itself_reads_them_in_float32(monkeypatch):
    """Some cast their input to a layer's precision, or multiply by its weight without calling it."""

    def forward(self, x):
        x = x.to(self.up_proj.base_layer.weight.dtype)
        up = torch.nn.functional.linear(x, self.up_proj.base_layer.weight, self.up_proj.base_layer.bias)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * up)

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    model, tokens = in_half("llama"), torch.arange(3, 15).unsqueeze(0)
    with torch.no_grad():
        expected = widened_twin(model)(input_ids=tokens).logits
        with in_float32(model):
            assert torch.equal(model(input_ids=tokens).logits, expected)


def test_a_layer_that_shares_its_weight_with_the_embeddings_is_widened_with_them():
    model, tokens = base("llama", intermediate_size=VOCABULARY).bfloat16(), torch.arange(3, 15).unsqueeze(0)
    model.model.layers[0].mlp.up_proj.weight = model.get_input_embeddings().weight
    with torch.no_grad():
        expected = widened_twin(model)(input_ids=tokens).logits
        with in_float32(model):
            assert torch.equal(model(input_ids=tokens).logits, expected)


def test_frozen_linear_layers_are_not_held_twice():
    """Only what is small, tied or trained is widened."""
    model = in_half("llama")
    narrow = sum(p.nbytes for n, p in model.named_parameters() if "proj" in n and "lora" not in n)
    others = sum(p.nbytes for p in model.parameters()) - narrow
    with in_float32(model):
        inside = sum(p.nbytes for p in model.parameters())
    assert inside == narrow + 2 * others < 2 * narrow


def test_an_error_inside_leaves_the_model_as_it_was():
    model = in_half("llama_gqa_tied_bias")
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), in_float32(model):
        raise KeyboardInterrupt
    assert {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == before
    assert {type(m) for m in model.modules() if isinstance(m, torch.nn.Linear)} == {torch.nn.Linear}
