"""Per-example gradients equal batch-size-1 autograd, whatever else is in the batch."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import ATTENTION, FAMILIES, base, make_examples, small, with_lora, worst_error

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.gradients.engines.adapters import find_adapters
from gtp_exp.gradients.engines.base import gradients_of, pack, pad
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.head import label_head
from gtp_exp.gradients.engines.linear import LinearKernel, fastest_kernel
from gtp_exp.gradients.engines.packed import PackedEngine
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.parameters import trainable_parameters

LARGEST = float("inf")


def engine_of(model, kind: Engine = Engine.PACKED, reduction: Reduction = Reduction.MEAN):
    kernel = fastest_kernel(model)
    return make_engine(kind, model, trainable_parameters(model), reduction=reduction, kernel=kernel)


@pytest.mark.parametrize("r", [8, 64])
@pytest.mark.parametrize("targets", [ATTENTION, "all-linear"], ids=["qkvo", "all"])
@pytest.mark.parametrize("family", ["llama", "llama_gqa_tied_bias", "qwen2", "gemma2", "mistral"])
def test_packed_equals_autograd(family, targets, r):
    examples = make_examples(9)
    model = small(family, r=r, targets=targets)
    assert worst_error(model, engine_of(model), examples) <= 5e-5
    model = model.double()
    assert worst_error(model, engine_of(model), examples) <= 1e-10


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_norms_change_nothing(family):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    model = small(family)
    engine = engine_of(model, Engine.COMPILED)
    assert worst_error(model, engine, make_examples(9)) <= 5e-5
    assert not any("forward" in vars(module) for module in base_model(model).modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_hooks_equal_autograd(family):
    model = small(family)
    assert worst_error(model, engine_of(model, Engine.HOOKS), make_examples(9)) <= 5e-5


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "granite", "cohere", "qwen3"])
def test_the_label_only_head_reproduces_scaling_and_capping(family):
    model = small(family, torch.float64)
    assert label_head(base_model(model), LinearKernel.DEFAULT) is not None
    assert worst_error(model, engine_of(model), make_examples(9)) <= 1e-10


def test_a_head_of_another_form_is_left_to_the_model():
    model = small("llama", torch.float64)
    base_model(model).lm_head.register_forward_hook(lambda _, args, logits: logits + logits.sin())
    assert label_head(base_model(model), LinearKernel.DEFAULT) is None
    assert worst_error(model, engine_of(model), make_examples(9)) <= 1e-10


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_the_model_was_loaded_with(attention):
    model = with_lora(base("mistral", attn_implementation=attention)).double()
    assert worst_error(model, engine_of(model), make_examples(9)) <= 1e-10
    assert base_model(model).config._attn_implementation == attention


def test_summed_loss_is_the_mean_times_the_completion_tokens():
    model, examples = small(dtype=torch.float64), make_examples(6)
    summed = engine_of(model, reduction=Reduction.SUM)
    assert worst_error(model, summed, examples, reduction=Reduction.SUM) <= 1e-10
    mean = dict(gradients_of(engine_of(model), examples))
    for example, found in gradients_of(summed, examples):
        scaled = {name: g * example.n_completion_tokens for name, g in mean[example].items()}
        # The models' norms compute in float32 whatever the dtype, and rounding does not commute with scaling.
        assert relative_error(found, scaled, order=LARGEST) <= 1e-6


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=8, unique=True), st.sampled_from(["packed", "hooks"])
)
def test_a_gradient_does_not_depend_on_order_and_neighbours(order, kind):
    alone = _alone(kind)
    model, examples = _shared()
    for example, found in gradients_of(engine_of(model, Engine(kind)), [examples[i] for i in order]):
        assert relative_error(found, alone[example.id], order=LARGEST) <= 1e-10


_cache: dict = {}


def _shared():
    if "model" not in _cache:
        _cache["model"] = small("qwen2", torch.float64), make_examples(12)
    return _cache["model"]


def _alone(kind):
    model, examples = _shared()
    if kind not in _cache:
        engine = engine_of(model, Engine(kind))
        _cache[kind] = {e.id: dict(gradients_of(engine, [e]))[e] for e in examples}
    return _cache[kind]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 60))
def test_batches_hold_every_example_once_within_the_budget(lengths, budget):
    for batches, size in (
        (pack(lengths, budget), lambda b: sum(lengths[i] for i in b)),
        (pad(lengths, budget), lambda b: len(b) * max(lengths[i] for i in b)),
    ):
        assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
        assert all(size(b) <= budget or len(b) == 1 for b in batches)


def test_lora_matrices_that_are_frozen_are_left_out():
    model = small("llama", torch.float64)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    for kind in (Engine.PACKED, Engine.HOOKS):
        assert worst_error(model, engine_of(model, kind), make_examples(5)) <= 1e-10


@pytest.mark.parametrize("kind", [Engine.PACKED, Engine.HOOKS])
def test_layers_without_lora_below_change_nothing(kind):
    plain = base("llama")
    last = plain.config.num_hidden_layers - 1
    model = with_lora(plain, targets=["q_proj", "o_proj", "up_proj"], layers_to_transform=[last]).double()
    assert worst_error(model, engine_of(model, kind), make_examples(9)) <= 1e-10


@pytest.mark.parametrize("length", [20, 700], ids=["short", "longer_than_written_out"])
def test_bfloat16_is_as_close_to_float64_as_batch_size_1(length):
    """Both round at every layer; the packed pass must not add an error of its own."""
    examples = make_examples(4, longest=20) + make_examples(2, seed=1, longest=length)
    examples.append(
        TokenizedExample("long", tuple(range(3, 23)) * (length // 20), tuple(range(3, 23)) * (length // 20))
    )
    exact = small("llama_gqa_tied_bias", torch.float64)
    rounded = small("llama_gqa_tied_bias").bfloat16()
    for name, parameter in rounded.named_parameters():  # as PEFT has it: adapters stay in float32
        if "lora_" in name:
            parameter.data = exact.get_parameter(name).detach().float()
        else:
            exact.get_parameter(name).data = parameter.detach().double()
    parameters, engine = trainable_parameters(rounded), engine_of(rounded)
    for example, found in gradients_of(engine, examples):
        truth = reference_gradients(exact, trainable_parameters(exact), example, Reduction.MEAN)
        one_by_one = reference_gradients(rounded, parameters, example, Reduction.MEAN)
        ours, theirs = relative_error(found, truth, order=2), relative_error(one_by_one, truth, order=2)
        assert ours <= max(2 * theirs, 0.02), example.id
        assert ours <= 0.2


def test_onednn_computes_the_same_linear_layers():
    x, weight, bias = torch.randn(7, 5), torch.randn(3, 5), torch.randn(3)
    try:
        found = (
            LinearKernel.ONEDNN.apply(x, weight, bias),
            LinearKernel.ONEDNN.apply(found_g := torch.ones(7, 3), weight.t()),
        )
    except (AttributeError, RuntimeError):
        pytest.skip("this torch has no oneDNN")
    torch.testing.assert_close(found[0], torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(found[1], found_g @ weight)


def test_the_packed_pass_is_exact_with_onednn():
    model = small()
    engine = PackedEngine(model, find_adapters(model), Reduction.MEAN, LinearKernel.ONEDNN)
    assert worst_error(model, engine, make_examples(9)) <= 5e-5


def test_the_model_is_left_alone():
    model, examples = small("mistral"), make_examples(4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    forwards = {m: m.forward for m in model.modules()}

    def fail(name, gradients):
        raise KeyError(name)

    engine = engine_of(model)
    engine.run(examples, lambda name, gradients: None)
    with pytest.raises(KeyError):
        engine.run(examples, fail)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert all(m.forward == forward for m, forward in forwards.items())
    assert base_model(model).config._attn_implementation == "sdpa"
