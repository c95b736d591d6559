"""Rows laid end to end: none sees another, and a model that mixes them is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from small_models import FAMILIES, VOCABULARY, base, make_examples, small

from gtp_exp.data.examples import IGNORE
from gtp_exp.model.lora import base_model
from gtp_exp.model.packing import lay_end_to_end, packing_obstacle, rows_apart

ROWS = make_examples(5)


def packed_logits(model, rows):
    """The logits of each row in a packed pass."""
    laid = lay_end_to_end(rows)
    with rows_apart(model, laid.bounds) as extra:
        inputs = {"input_ids": torch.tensor([laid.tokens]), "position_ids": torch.tensor([laid.positions])}
        logits = model(**inputs, **extra).logits[0]
    return [logits[start:end] for start, end in laid.bounds]


def test_no_label_reaches_over_the_border_of_a_row():
    rows = [replace(row, labels=row.input_ids) for row in ROWS]
    laid = lay_end_to_end(rows)
    for row, (start, end) in zip(rows, laid.bounds, strict=True):
        assert laid.tokens[start:end] == list(row.input_ids)
        assert laid.positions[start:end] == list(range(row.n_tokens))
        assert laid.labels[start:end] == [IGNORE, *row.input_ids[1:]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_a_packed_row_are_those_of_the_row_alone(family, attention):
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("it caps the scores of its attention, which torch's fused one cannot")
    model = base(family, torch.float64, attn_implementation=attention)
    with torch.no_grad():
        for row, found in zip(ROWS, packed_logits(model, ROWS), strict=True):
            alone = model(torch.tensor([row.input_ids]), use_cache=False).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)  # some norms compute in float32
    assert base_model(model).config._attn_implementation == attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changed", range(len(ROWS)))
def test_changing_a_row_changes_no_other(family, dtype, changed):
    model, others = small(family, dtype), list(ROWS)
    tokens = tuple(3 + (token + 1) % (VOCABULARY - 3) for token in ROWS[changed].input_ids)
    others[changed] = replace(ROWS[changed], input_ids=tokens)
    with torch.no_grad():
        before, after = packed_logits(model, ROWS), packed_logits(model, others)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) == (i != changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_attend_through_transformers_may_be_packed(family, dtype):
    model = small(family, dtype)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    assert packing_obstacle(model, ROWS) is None
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


def bloom():
    """Its positions are made of the attention mask."""
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    return transformers.BloomForCausalLM(config)


def mamba():
    """Its state runs on from token to token."""
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    return transformers.MambaForCausalLM(config)


def leaking():
    """A causal mix of neighbouring tokens sees the end of the row before."""

    def mix(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden + 0.1 * torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)

    model = small()
    base_model(model).model.layers[0].register_forward_hook(mix)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [bloom, mamba, leaking])
def test_a_model_that_would_mix_rows_is_found_out(make, dtype):
    torch.manual_seed(0)
    assert packing_obstacle(make().to(dtype), ROWS)


def test_unknown_kinds_of_layers_are_not_tried():
    model = small("mistral")
    base_model(model).config.layer_types = ["full_attention", "chunked_attention"]
    assert "chunked_attention" in packing_obstacle(model, ROWS)


def test_a_window_longer_than_a_short_row_is_checked_on_the_longest_row():
    """Only rows longer than the window can tell whether it is kept."""
    model = small("mistral")
    long = make_examples(1, seed=3)[0]
    long = replace(long, input_ids=long.input_ids[:2] * 100, labels=long.labels[:2] * 100)
    assert packing_obstacle(model, [*ROWS, long]) is None


def test_a_model_that_mixes_long_rows_alone_is_found_out_on_the_longest_row():
    """It has a window of attention, so what it does may depend on a row's length."""

    def mix(_, args, kwargs, output):
        far = (kwargs["position_ids"] >= 130).unsqueeze(-1)
        return output + far * output[:, :1]

    model = small("mistral")
    base_model(model).model.layers[0].register_forward_hook(mix, with_kwargs=True)
    long = make_examples(1, seed=3)[0]
    rows = [replace(long, input_ids=long.input_ids[:2] * n, labels=long.labels[:2] * n) for n in (65, 100)]
    assert packing_obstacle(model, [*ROWS, rows[0]]) is None
    assert "differ" in (packing_obstacle(model, [*ROWS, rows[1]]) or "")
