"""A checkpoint keeps parameters and moments by name, and goes back only into the model it came from."""

from __future__ import annotations

import pytest
import torch
from small_models import make_examples, small, train

from gtp_exp.errors import UserError
from gtp_exp.gradients.checkpoints import (
    check_moments,
    load_checkpoint,
    load_moments,
    load_trainable,
    save_checkpoint,
)
from gtp_exp.gradients.collect import collect
from gtp_exp.gradients.settings import GradientConfig
from gtp_exp.gradients.sketch import Sketch, SketchKind
from gtp_exp.model.lora import base_model
from gtp_exp.model.parameters import trainable_parameters


def test_moments_follow_the_name_not_the_optimizers_numbering(tmp_path):
    model = small("llama")
    parameters = trainable_parameters(model)
    backwards = list(reversed(parameters.values()))
    optimizer = torch.optim.AdamW([{"params": backwards[:5]}, {"params": backwards[5:], "lr": 0.1}])
    train(model, optimizer, steps=2)
    checkpoint = save_checkpoint(tmp_path / "c", model, optimizer, step=2, learning_rate=0.5)
    assert load_checkpoint(tmp_path / "c") == checkpoint
    moments = load_moments(checkpoint, list(parameters), "cpu")
    check_moments(moments, parameters, checkpoint)
    for name, parameter in parameters.items():
        assert torch.equal(moments[name].exp_avg, optimizer.state[parameter]["exp_avg"])
        assert torch.equal(moments[name].exp_avg_sq, optimizer.state[parameter]["exp_avg_sq"])


def test_parameters_come_back_bit_by_bit(tmp_path):
    model = small("llama")
    parameters = trainable_parameters(model)
    optimizer = torch.optim.Adam(parameters.values())
    train(model, optimizer, steps=1)
    checkpoint = save_checkpoint(tmp_path / "c", model, optimizer, step=1, learning_rate=1.0)
    saved = {name: p.detach().clone() for name, p in parameters.items()}
    train(model, optimizer, steps=1)
    assert not all(torch.equal(p, saved[name]) for name, p in parameters.items())
    load_trainable(model, checkpoint)
    assert all(torch.equal(p, saved[name]) for name, p in parameters.items())


def test_what_does_not_fit_is_named(tmp_path):
    model = small("llama", r=4)
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), momentum=0.9)
    train(model, optimizer, steps=1)
    with pytest.raises(UserError, match="SGD.*lora_A"):
        save_checkpoint(tmp_path / "a", model, optimizer, step=1, learning_rate=1.0)
    optimizer = torch.optim.Adam(trainable_parameters(model).values())
    with pytest.raises(UserError, match="no Adam moments"):
        save_checkpoint(tmp_path / "a", model, optimizer, step=0, learning_rate=1.0)
    train(model, optimizer, steps=1)
    with pytest.raises(UserError, match="step=3"):
        save_checkpoint(tmp_path / "a", model, optimizer, step=3, learning_rate=1.0)
    with pytest.raises(UserError, match="not a finished checkpoint"):
        load_checkpoint(tmp_path / "a")
    checkpoint = save_checkpoint(tmp_path / "a", model, optimizer, step=1, learning_rate=1.0)
    wider = small("llama", r=8)
    with pytest.raises(UserError, match="lora_A.*shape"):
        load_trainable(wider, checkpoint)
    names = list(trainable_parameters(wider))
    with pytest.raises(UserError, match="exp_avg.*shape"):
        check_moments(load_moments(checkpoint, names, "cpu"), trainable_parameters(wider), checkpoint)
    other = small("llama", targets=["q_proj"])
    with pytest.raises(UserError, match="not in the model"):
        load_trainable(other, checkpoint)
    with pytest.raises(UserError, match="lacks exp_avg.elsewhere"):
        load_moments(checkpoint, ["elsewhere"], "cpu")


def test_moments_in_eight_bits_are_dequantised(tmp_path):
    """Against bitsandbytes's own dequantisation, and near those that torch keeps of the same steps."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    stored, exact = small("llama", r=8), small("llama", r=8)
    # Some matrices here hold 256 values and some 384: a whole block, and one and a half.
    ours = bitsandbytes.optim.AdamW8bit(trainable_parameters(stored).values(), lr=1e-6, min_8bit_size=300)
    torchs = torch.optim.AdamW(trainable_parameters(exact).values(), lr=1e-6)
    for model, optimizer in ((stored, ours), (exact, torchs)):
        train(model, optimizer, steps=3)
    checkpoint = save_checkpoint(tmp_path / "c", stored, ours, step=3, learning_rate=0.5)
    parameters = trainable_parameters(stored)
    found, bits = load_moments(checkpoint, list(parameters), "cpu"), set()
    for (name, parameter), same in zip(parameters.items(), trainable_parameters(exact).values(), strict=True):
        state, reference = ours.state[parameter], torchs.state[same]
        bits.add(state["state1"].dtype)
        if state["state1"].dtype is torch.uint8:
            own = bitsandbytes.functional.dequantize_blockwise(
                state["state1"], absmax=state["absmax1"], code=state["qmap1"], blocksize=256
            )
            assert torch.equal(found[name].exp_avg, own)
        for moment in ("exp_avg", "exp_avg_sq"):
            there = reference[moment]
            assert float((getattr(found[name], moment) - there).norm()) <= 0.05 * float(there.norm())
    assert bits == {torch.uint8, torch.float32}


def test_a_parameter_that_takes_no_part_has_zero_moments_and_no_gradient(tmp_path):
    """As the layers for images of a model that reads text, or a projection whose weight alone is read."""
    model = small("llama", targets=["q_proj", "k_proj"])
    layer = base_model(model).model.layers[0].self_attn
    unused = [name for name in trainable_parameters(model) if "layers.0.self_attn.q_proj" in name]
    layer.q_proj.forward = layer.q_proj.base_layer.forward
    optimizer = torch.optim.AdamW(trainable_parameters(model).values())
    train(model, optimizer, steps=2)
    checkpoint = save_checkpoint(tmp_path / "c", model, optimizer, step=2, learning_rate=1.0)
    moments = load_moments(checkpoint, list(trainable_parameters(model)), "cpu")
    assert len(unused) == 2
    for name, of_one in moments.items():
        assert bool(of_one.exp_avg_sq.any()) == (name not in unused)
    foreign = torch.optim.AdamW([p for name, p in trainable_parameters(model).items() if name not in unused])
    train(model, foreign, steps=1)
    with pytest.raises(UserError, match="no Adam moments for .*layers.0.self_attn.q_proj"):
        save_checkpoint(tmp_path / "d", model, foreign, step=1, learning_rate=1.0)
    settings = GradientConfig(sketch=Sketch(SketchKind.NONE))
    with pytest.warns(UserWarning, match="a slower one is used"):
        store = collect(model, make_examples(3), [checkpoint], tmp_path / "store", settings)
    at, start = trainable_parameters(model), 0
    for name, parameter in at.items():
        part = store.features(0, "adam").rows(torch.arange(3))[:, start : start + parameter.numel()]
        assert bool(part.any()) == (name not in unused)
        start += parameter.numel()


def test_an_optimizer_without_moments_leaves_a_checkpoint_without_them(tmp_path):
    model = small("llama")
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    train(model, optimizer, steps=1)
    checkpoint = save_checkpoint(tmp_path / "c", model, optimizer, step=1, learning_rate=1.0, moments=False)
    load_trainable(model, checkpoint)
    with pytest.raises(UserError, match="lacks exp_avg"):
        load_moments(checkpoint, list(trainable_parameters(model)), "cpu")
