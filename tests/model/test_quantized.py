"""Models in four and eight bits: told by their identity, one function in every stage, refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_experiment import run

from gtp_exp import errors
from gtp_exp.data.batching import pad_collate
from gtp_exp.errors import UserError
from gtp_exp.model.loading import ModelSource, prepare
from gtp_exp.model.loss import row_nats
from gtp_exp.model.quantized import Quantization, dense_weight, is_quantized, with_dense_weights
from gtp_exp.worker import check_inputs

CPU = torch.device("cpu")
BITS = [Quantization.NF4, Quantization.INT8]


def test_a_missing_package_is_named_before_anything_else_is_read(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"selection_model.quantization=int8 .*pip install '\.\[quantization\]'"
    ):
        check_inputs({"model": {"quantization": "none"}, "selection_model": {"quantization": "int8"}})
    with pytest.raises(
        UserError, match="gradients.warmup.optimizer=adamw_8bit needs the package bitsandbytes"
    ):
        check_inputs({"gradients": {"warmup": {"optimizer": "adamw_8bit"}}, "selection_model": None})
    with pytest.raises(UserError, match=r"model.quantization=nf4 needs the package bitsandbytes"):
        prepare(replace(tiny_config, quantization=Quantization.NF4), tmp_path, CPU)


def test_a_model_that_is_not_quantised_is_told_as_before(tiny):
    assert not {"quantization", "bitsandbytes", "attention"} & set(tiny.identity)


@pytest.fixture(params=BITS, ids=lambda bits: bits.value)
def stored(request, tiny_config, tmp_path):
    pytest.importorskip("bitsandbytes")
    return prepare(replace(tiny_config, quantization=request.param), tmp_path, CPU)


def test_every_linear_layer_but_the_head_is_stored_in_few_bits(stored, tiny):
    model, full = stored.load().model, tiny.load().model
    quantised = {name for name, module in model.named_modules() if is_quantized(module)}
    assert len(quantised) == 14 and "lm_head" not in quantised
    most = {Quantization.NF4: 0.2, Quantization.INT8: 0.01}[stored.config.quantization]
    for name in quantised:
        weight, exact = (
            dense_weight(model.get_submodule(name), torch.float32),
            full.get_submodule(name).weight,
        )
        assert 0 < float((weight - exact).norm() / exact.norm()) < most
    bits = stored.config.quantization.value
    assert stored.identity["quantization"] == bits and stored.identity["bitsandbytes"]
    assert {k: v for k, v in stored.identity.items() if k in tiny.identity} == tiny.identity


def test_training_tests_and_gradients_see_the_dequantised_weights(stored, tokenized):
    """The reference is the same model with plain layers; a pass without gradients repacks nothing."""
    model = stored.load().model
    plain = with_dense_weights(stored.load().model, torch.float32)
    batch = pad_collate(tokenized[:5], pad_id=0)
    for training in (False, True):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                model.train(training), plain.train(training)
                torch.testing.assert_close(row_nats(model, dict(batch)), row_nats(plain, dict(batch)))


def test_a_model_that_is_stored_quantised_is_not_quantised_again(stored, tiny, tiny_config, tmp_path):
    shutil.copytree(tiny.location, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    own = replace(stored.config, source=ModelSource.HUB, name_or_path=str(tmp_path / "own"))
    with pytest.raises(UserError, match="own is stored quantised already"):
        prepare(own, tmp_path, CPU)


@pytest.mark.parametrize("bits", BITS, ids=lambda bits: bits.value)
def test_a_whole_job_runs_on_a_quantised_model(bits, tmp_path, caplog):
    pytest.importorskip("bitsandbytes")
    with caplog.at_level("INFO", "gtp_exp"):
        record = run(tmp_path, "selector=less", f"model.quantization={bits.value}")
    assert record.model["quantization"] == bits.value
    assert "pool gradients: engine packed" in caplog.text
    assert set(record.metrics) == set(record.untuned) and record.metrics != record.untuned


def test_a_job_whose_warm_up_keeps_its_moments_in_eight_bits_runs_on_four(tmp_path):
    pytest.importorskip("bitsandbytes")
    options = ["optimizer=adamw_8bit", "gradient_checkpointing=true"]
    options = [f"{of}.{option}" for of in ("train", "gradients.warmup") for option in options]
    options += ["model.quantization=nf4", "model.lora.use_dora=true", "model.lora.target_modules=all-linear"]
    record = run(tmp_path, "selector=less", *options)
    assert record.metrics != record.untuned
