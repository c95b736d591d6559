"""A training that was interrupted ends as one that was not, whatever its optimizer keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import CONFIG, curve, distance, interrupt, tune

from gtp_exp.gradients.checkpoints import save_checkpoint
from gtp_exp.training.config import Optimizer
from gtp_exp.training.hooks import Hooks

OPTIMIZERS = [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT, Optimizer.ADAFACTOR]
THREE = replace(CONFIG, epochs=3)


def needs_package(optimizer: Optimizer) -> bool:
    """Skip the test where the package of an optimizer in eight bits is not installed; say if it is one."""
    if in_eight_bits := "8bit" in optimizer.value:
        pytest.importorskip("bitsandbytes")
    return in_eight_bits


@pytest.fixture(scope="module")
def wide(tiny):
    """bitsandbytes keeps the moments of 4,096 values or more in eight bits."""
    return replace(tiny, config=replace(tiny.config, lora=replace(tiny.config.lora, r=64)))


def tensors_of(state):
    """The tensors of an optimizer's state, however deep they lie."""
    inner = state.values() if isinstance(state, dict) else []
    return [state] if isinstance(state, torch.Tensor) else [t for part in inner for t in tensors_of(part)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fine_tune_goes_on_from_its_last_epoch(optimizer, wide, tokenized, tmp_path, monkeypatch):
    in_eight_bits, config = needs_package(optimizer), replace(THREE, optimizer=optimizer)
    straight = tune(wide, tokenized, tmp_path / "a", config)
    scratch = interrupt(wide, tokenized, tmp_path / "b", monkeypatch, config, step=5)
    stored = torch.load(scratch / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    assert any(t.dtype is torch.uint8 for t in tensors_of(stored)) == in_eight_bits
    assert distance(straight, tune(wide, tokenized, tmp_path / "b", config)) == 0
    assert [row["loss"] for row in curve(tmp_path / "a")] == [row["loss"] for row in curve(tmp_path / "b")]


def test_a_warm_up_in_eight_bits_starts_over_to_the_same_trajectory(wide, tokenized, tmp_path, monkeypatch):
    """Its hook saves every epoch's parameters and dequantised moments."""
    pytest.importorskip("bitsandbytes")
    config = replace(THREE, optimizer=Optimizer.ADAMW_8BIT)

    def keeping(directory):
        def keep(model, optimizer, step, rate):
            save_checkpoint(directory / f"{step}", model, optimizer, step=step, learning_rate=rate)

        return Hooks(keep)

    interrupt(wide, tokenized, tmp_path / "b", monkeypatch, config, step=5, hooks=keeping(tmp_path / "b"))
    assert not list((tmp_path / "b").glob("trainer/checkpoint-*"))  # nothing to go on from, so nothing wrong
    for name in ("a", "b"):
        tune(wide, tokenized, tmp_path / name, config, hooks=keeping(tmp_path / name))
    for file in [f"{step}/{kind}.safetensors" for step in (3, 6, 9) for kind in ("trainable", "moments")]:
        one, other = (load_file(tmp_path / name / file) for name in ("a", "b"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
