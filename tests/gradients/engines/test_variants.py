"""Gradients of rank-stabilised LoRA and of DoRA equal batch-size-1 autograd, row by row."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from quantised_models import by_bitsandbytes
from small_models import VOCABULARY, base, make_examples, with_lora, worst_error
from test_at_once import at_once
from test_engine_choice import choose
from test_exactness import engine_of

from gtp_exp.gradients.engines.adapters import find_adapters
from gtp_exp.gradients.engines.choose import Engine
from gtp_exp.model.parameters import trainable_parameters
from gtp_exp.model.quantized import Quantization

FAMILIES = ["llama", "llama_gqa_tied_bias", "qwen2", "gemma2"]


def with_dora(model, **options):
    """Magnitudes are moved, for a fresh one is the norm that it is divided by."""
    model = with_lora(model, use_dora=True, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Engine.PACKED, Engine.HOOKS])
def test_rank_stabilised_lora_is_exact(family, kind):
    model = with_lora(base(family), use_rslora=True)
    assert {layer.scaling for layer in find_adapters(model).layers} == {8 / 4**0.5}
    assert worst_error(model, engine_of(model, kind), make_examples(9)) <= 5e-5
    assert worst_error(model.double(), engine_of(model, kind), make_examples(9)) <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_dora_is_exact_through_its_magnitudes(family):
    model = with_dora(base(family))
    assert sum("magnitude" in name for name in trainable_parameters(model)) == 14
    assert worst_error(model, engine_of(model), make_examples(9)) <= 5e-5
    assert worst_error(model.double(), engine_of(model), make_examples(9)) <= 1e-10
    assert worst_error(model, at_once(model), make_examples(9)) <= 1e-6


def test_dora_gets_the_packed_engine_without_a_word():
    model = with_dora(base("llama"), targets=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(model).engine is Engine.PACKED


def test_dora_asked_for_with_padding_goes_one_by_one_and_says_so():
    model = with_dora(base("llama"), targets=["q_proj", "v_proj"])
    with pytest.warns(UserWarning, match="q_proj has DoRA's magnitudes"):
        assert choose(model, Engine.HOOKS).engine is Engine.AUTOGRAD


def test_magnitudes_that_are_frozen_are_left_out():
    model = with_dora(base("llama"))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.requires_grad_(False)
    assert worst_error(model.double(), engine_of(model), make_examples(5)) <= 1e-10


@pytest.mark.parametrize("bits", [Quantization.NF4, Quantization.INT8])
def test_dora_over_quantised_layers_is_exact(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = with_dora(by_bitsandbytes("llama", bits, tmp_path))
    assert worst_error(model, engine_of(model), make_examples(9)) <= 5e-5


def gpt2():
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_all_linear_of_gpt2_whose_layers_are_convolutions(options):
    model = with_lora(gpt2(), fan_in_fan_out=True, **options)
    with pytest.warns(UserWarning, match="adapts a Conv1D"):
        assert choose(model).engine is Engine.HOOKS
    assert worst_error(model, engine_of(model, Engine.HOOKS), make_examples(6)) <= 5e-5
