"""What cannot be differentiated exactly is refused by name; what is only slower falls back, aloud."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from small_models import VOCABULARY, base, make_examples, small, with_lora
from test_exactness import engine_of, worst_error

from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.errors import UserError
from gtp_exp.gradients.engines import linear
from gtp_exp.gradients.engines.adapters import check_differentiable
from gtp_exp.gradients.engines.choose import Engine, choose_engine, make_engine
from gtp_exp.gradients.engines.memory import choose_token_budget, halving, saved_bytes
from gtp_exp.model.lora import base_model
from gtp_exp.model.loss import Reduction
from gtp_exp.model.parameters import trainable_parameters


def choose(
    model,
    requested: Engine = Engine.AUTO,
    token_budget: int | None = 64,
    proven: Engine | None = None,
):
    return choose_engine(
        model,
        check_differentiable(model),
        make_examples(12),
        requested=requested,
        reduction=Reduction.MEAN,
        token_budget=token_budget,
        proven=proven,
    )


def modules_to_save():
    return with_lora(base("llama"), targets=["q_proj"], modules_to_save=["lm_head"])


def adapter_bias():
    return with_lora(base("llama_gqa_tied_bias"), targets=["q_proj"], bias="lora_only")


def two_adapters():
    model = with_lora(base("llama"), targets=["q_proj"])
    model.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return model


def merged():
    model = with_lora(base("llama"), targets=["q_proj"])
    model.merge_adapter()
    return model


REFUSED = {
    "embedding": (
        lambda: with_lora(base("llama"), targets=["q_proj", "embed_tokens"]),
        "embed_tokens.*Embedding",
    ),
    "modules_to_save": (modules_to_save, "lm_head.*trainable, but not a LoRA matrix"),
    "base_bias": (adapter_bias, "q_proj.base_layer.bias.*trainable"),
    "lora_bias": (
        lambda: with_lora(base("llama_gqa_tied_bias"), targets=["q_proj"], lora_bias=True),
        "lora_bias",
    ),
    "two_adapters": (two_adapters, "q_proj.*2 active adapters"),
    "merged": (merged, "q_proj.*merged"),
    "ia3": (
        lambda: get_peft_model(base("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[])),
        "k_proj.*ia3",
    ),
}


@pytest.mark.parametrize("engine", [Engine.AUTO, Engine.PACKED, Engine.HOOKS])
@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_adapters_are_refused_by_name(case, engine):
    make, pattern = REFUSED[case]
    with pytest.raises(UserError, match=f"(?s){pattern}"):
        choose(make(), engine)


def test_learned_prompts_are_refused_whatever_the_engine():
    model = get_peft_model(base("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="PROMPT_TUNING"):
        check_differentiable(model)


def test_a_frozen_model_is_refused():
    with pytest.raises(UserError, match="no trainable parameter"):
        check_differentiable(base("llama"))


def test_autograd_takes_what_the_others_refuse():
    model = modules_to_save().double()
    assert choose(model, Engine.AUTOGRAD).engine is Engine.AUTOGRAD
    assert worst_error(model, engine_of(model, Engine.AUTOGRAD), make_examples(3)) <= 1e-10


def test_plain_lora_gets_the_packed_engine_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(small()).engine is Engine.PACKED
        assert choose(small(), Engine.HOOKS).engine is Engine.HOOKS


def test_full_fine_tuning_goes_one_by_one_and_lora_engines_say_so():
    model = base("llama").requires_grad_(True)
    assert choose(model).engine is Engine.AUTOGRAD
    with pytest.raises(UserError, match="embed_tokens"):
        choose(model, Engine.PACKED)


def test_layers_that_are_not_plain_linear_fall_back_to_hooks():
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = with_lora(transformers.GPT2LMHeadModel(config), targets=["c_attn", "c_fc"], fan_in_fan_out=True)
    with pytest.warns(UserWarning, match="c_attn adapts a Conv1D"):
        assert choose(model).engine is Engine.HOOKS
    assert worst_error(model, engine_of(model, Engine.HOOKS), make_examples(6)) <= 5e-5


def test_a_model_that_leaks_across_packed_sequences_is_caught():
    """A causal mix of neighbouring tokens, as short convolutions do it, sees the sequence packed before."""
    model = small()

    def mix(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden + torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)

    base_model(model).model.layers[0].register_forward_hook(mix)
    with pytest.warns(UserWarning, match="engine packed differs from batch-size-1 autograd"):
        assert choose(model).engine is Engine.HOOKS
    assert worst_error(model, engine_of(model, Engine.HOOKS), make_examples(9)) <= 5e-5


def test_a_model_that_looks_ahead_leaves_only_autograd():
    model = small()
    base_model(model).model.layers[0].register_forward_hook(
        lambda _, args, y: y + y.mean(dim=1, keepdim=True)
    )
    with pytest.warns(UserWarning) as caught:
        assert choose(model).engine is Engine.AUTOGRAD
    assert ["packed" in str(w.message) for w in caught] == [True, False]


def test_a_layer_that_runs_twice_falls_back():
    model = small("llama")
    layers = base_model(model).model.layers
    layers[1].mlp = layers[0].mlp
    with pytest.warns(UserWarning, match="called twice"):
        assert choose(model).engine is Engine.HOOKS
    assert worst_error(model, engine_of(model, Engine.HOOKS), make_examples(6)) <= 5e-5


def test_the_budget_holds_the_longest_example_and_counts_saved_activations():
    model = small()
    long = TokenizedExample("long", tuple([3] * 900), tuple([IGNORE] * 899 + [3]))
    parameters = trainable_parameters(model)
    engine = engine_of(model)
    assert choose_token_budget(engine, model, long) >= 900
    short, longer = make_examples(1)[0], TokenizedExample("x", tuple([3] * 200), tuple([3] * 200))
    assert saved_bytes(engine, model, longer) > 5 * saved_bytes(engine, model, short) > 0
    assert choose(model, token_budget=None).token_budget >= 20
    assert make_engine(
        Engine.AUTOGRAD, model, parameters, reduction=Reduction.MEAN, kernel=choose(model).kernel
    ).batches([5, 9], 1) == [[0], [1]]


def test_running_out_of_memory_halves_the_batch():
    """The allocator's limit is played by a bound on the batch; the error is the one torch raises."""
    examples, tried = make_examples(7), []

    def run(batch):
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [e.id for e in batch]

    with pytest.warns(UserWarning, match="out of memory with 7 examples"):
        results = halving(examples, run)
    assert [i for part in results for i in part] == [e.id for e in examples]
    assert max(len(part) for part in results) == 2


def test_one_example_that_does_not_fit_is_named_and_other_errors_pass():
    def exhausted(batch):
        # What the CPU allocator says.
        torch.empty(1 << 60, dtype=torch.uint8)

    def broken(batch):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(UserError, match=r"row-0-0 \(.* tokens\) does not fit"):
        halving(make_examples(1), exhausted)
    with pytest.raises(RuntimeError, match="shapes"):
        halving(make_examples(4), broken)


def test_an_error_that_half_precision_would_hide_is_found(monkeypatch):
    """A tenth too much is within bfloat16's tolerance, but the check on widened weights sees it."""
    contract = linear.contract
    monkeypatch.setattr(linear, "contract", lambda *parts: 1.1 * contract(*parts))
    model = small().bfloat16()
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="packed.*differs"):
        assert choose(model).engine is Engine.HOOKS
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_an_engine_that_has_passed_on_other_rows_is_not_compared_again(monkeypatch):
    contract = linear.contract
    monkeypatch.setattr(linear, "contract", lambda *parts: 1.1 * contract(*parts))
    model = small()
    with pytest.warns(UserWarning, match="packed.*differs"):
        assert choose(model).engine is Engine.HOOKS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(model, proven=Engine.PACKED).engine is Engine.PACKED
        assert choose(model, proven=Engine.HOOKS).engine is Engine.HOOKS  # packed is not tried before it
        assert choose(model, Engine.AUTOGRAD, proven=Engine.PACKED).engine is Engine.AUTOGRAD
