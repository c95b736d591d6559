"""Training on rows laid end to end is training on padded rows, without the padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from recorded_steps import CASES, CONFIG, step_gradients, unequal_rows
from test_batch_loss import assert_same, expected_steps
from test_finetune import CONFIG as TUNING
from test_finetune import distance, interrupt, tune
from transformers import TrainingArguments

from gtp_exp.data.examples import TokenizedExample
from gtp_exp.training import finetune as finetuning
from gtp_exp.training.batches import NO_ROW, Collate, TermsDataset, TrainingRows
from gtp_exp.training.config import BatchLoss
from gtp_exp.training.trainer import WeightedTrainer


@pytest.fixture
def batches(monkeypatch):
    """The form of the batches that are made from here on: "packed" or "padded" for each."""
    forms = []

    class Noting(Collate):
        def __call__(self, rows):
            forms.append("packed" if self.packed else "padded")
            return super().__call__(rows)

    monkeypatch.setattr(finetuning, "Collate", Noting)
    return forms


def padded_too(monkeypatch):
    """Make the next fine-tune pad."""
    monkeypatch.setattr(finetuning, "packing_obstacle", lambda model, rows: "the test wants padding")


def variant(tiny, **lora):
    """The tiny model with other settings of its LoRA."""
    return replace(tiny, config=replace(tiny.config, lora=replace(tiny.config.lora, **lora)))


@pytest.mark.parametrize("name", CASES)
def test_padded_and_packed_rows_take_the_steps_of_a_loop_over_rows(
    tiny, tmp_path, monkeypatch, batches, name
):
    loss, weights = CASES[name]
    rows, config = unequal_rows(), replace(CONFIG, loss=loss, micro_batch_size=4)
    expected = expected_steps(tiny.load_trainable(0).model, rows, weights, loss, 4)
    packed = step_gradients(tiny, TrainingRows(rows, weights), config, tmp_path / "packed")
    assert set(batches) == {"packed"}
    padded_too(monkeypatch)
    padded = step_gradients(tiny, TrainingRows(rows, weights), config, tmp_path / "padded")
    assert set(batches) == {"packed", "padded"}
    assert_same(packed, expected)
    assert_same(padded, expected)


@pytest.mark.parametrize("micro", [1, 4])
def test_every_weight_may_be_trained(tiny, tmp_path, batches, micro):
    whole = replace(tiny, config=replace(tiny.config, lora=None))
    rows, config = unequal_rows(), replace(CONFIG, micro_batch_size=micro)
    found = step_gradients(whole, TrainingRows(rows), config, tmp_path)
    assert set(batches) == {"packed"}
    expected = expected_steps(
        whole.load_trainable(0).model, rows, None, BatchLoss.EXAMPLE_MEAN, CONFIG.batch_size
    )
    assert_same(found, expected)


@pytest.mark.parametrize("trained", ["LoRA", "every weight"])
def test_bf16_differs_from_fp32_by_rounding(tiny, tmp_path, batches, trained):
    lora = tiny.config.lora if trained == "LoRA" else None
    model = replace(tiny, config=replace(tiny.config, lora=lora), dtype=torch.bfloat16)
    rows, config = unequal_rows(), replace(CONFIG, micro_batch_size=4)
    found = step_gradients(model, TrainingRows(rows), config, tmp_path)
    assert set(batches) == {"packed"}
    exact = replace(model, dtype=torch.float32).load_trainable(0).model
    expected = expected_steps(exact, rows, None, BatchLoss.EXAMPLE_MEAN, CONFIG.batch_size)
    for ours, right in zip(found, expected, strict=True):
        assert float((ours - right).norm() / right.norm()) < 0.05


def test_activations_may_be_computed_again_in_the_backward_pass(tiny, tmp_path, monkeypatch, batches):
    """Gradient checkpointing runs the forward of a layer anew when its gradient is asked for."""
    rows, config = unequal_rows(), replace(CONFIG, micro_batch_size=4)
    expected = step_gradients(tiny, TrainingRows(rows), config, tmp_path / "plain")
    original, layers = type(tiny).load_trainable, []

    def checkpointing(self, seed):
        loaded = original(self, seed)
        loaded.model.gradient_checkpointing_enable()
        loaded.model.enable_input_require_grads()
        attention = loaded.model.get_base_model().model.layers[0].self_attn
        attention.register_forward_pre_hook(lambda *_: layers.append(1))
        return loaded

    monkeypatch.setattr(type(tiny), "load_trainable", checkpointing)
    found = step_gradients(tiny, TrainingRows(rows), config, tmp_path / "checkpointing")
    assert set(batches) == {"packed"}
    assert len(layers) == 4 + 2 * len(expected)  # in the check, and twice in every step
    assert_same(found, expected)


def test_a_model_that_mixes_packed_rows_is_trained_on_padded_ones(
    tiny, tmp_path, monkeypatch, batches, caplog
):
    def mix(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        return hidden + torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)

    original = type(tiny).load_trainable

    def mixing(self, seed):
        loaded = original(self, seed)
        loaded.model.get_base_model().model.layers[0].register_forward_hook(mix)
        return loaded

    monkeypatch.setattr(type(tiny), "load_trainable", mixing)
    caplog.set_level("INFO")
    rows, config = unequal_rows(), replace(CONFIG, micro_batch_size=4)
    found = step_gradients(tiny, TrainingRows(rows), config, tmp_path)
    assert set(batches) == {"padded"}
    assert "cannot be packed: the logits of packed rows differ" in caplog.text
    expected = expected_steps(
        tiny.load_trainable(0).model, rows, None, BatchLoss.EXAMPLE_MEAN, CONFIG.batch_size
    )
    assert_same(found, expected)


def test_dropout_masks_follow_the_seed_and_an_interruption(tiny, tokenized, tmp_path, monkeypatch, batches):
    dropping, config = variant(tiny, dropout=0.3), replace(TUNING, epochs=3)
    straight = tune(dropping, tokenized, tmp_path / "a", config)
    interrupt(dropping, tokenized, tmp_path / "b", monkeypatch, config, step=5)
    assert distance(straight, tune(dropping, tokenized, tmp_path / "b", config)) == 0
    assert distance(straight, tune(dropping, tokenized, tmp_path / "c", config, seed=1)) > 1e-3
    assert distance(straight, tune(tiny, tokenized, tmp_path / "d", config)) > 1e-5
    assert set(batches) == {"packed"}


def test_a_packed_batch_holds_no_more_tokens_than_a_padded_one():
    rows = TermsDataset(TrainingRows(unequal_rows()), BatchLoss.EXAMPLE_MEAN, 0)
    some = [rows[i] for i in (0, 3, 4, NO_ROW)]
    packed, padded = Collate(0, packed=True)(some), Collate(0, packed=False)(some)
    assert packed["input_ids"].numel() == sum(example.n_tokens for example, _ in some)
    assert packed["input_ids"].numel() <= padded["input_ids"].numel()
    for batch in (packed, padded):
        assert batch["labels"].shape == batch["input_ids"].shape == batch["token_weight"].shape
        assert batch["size"].tolist() == [1, 1, 1, 0]


def saved_for_backward(loaded, rows, directory, packed):
    """The bytes of activations that autograd keeps in a pass over these rows, each storage once."""
    weights, saved = {p.untyped_storage().data_ptr() for p in loaded.model.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    data = TermsDataset(TrainingRows(rows), BatchLoss.EXAMPLE_MEAN, 0)
    batch = Collate(0, packed=packed)([data[i] for i in range(len(data))])
    arguments = TrainingArguments(str(directory), use_cpu=True, report_to="none")
    trainer = WeightedTrainer(loaded.model, arguments)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=loaded.dtype == torch.bfloat16):
            trainer.training_step(loaded.model, batch, torch.tensor(float(len(rows))))
    return sum(saved.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(60, 60, 60, 60), (200, 200, 200, 200), (10, 20, 40, 200)])
def test_a_packed_pass_keeps_little_more_where_there_is_no_padding_and_else_less(
    tiny, tmp_path, dtype, lengths
):
    """More is at most the output of each layer's attention, which is put together of the rows' own, and the
    angles of all positions, which padded rows share."""
    model = replace(tiny, dtype=dtype)
    ids = tuple(97 + i % 26 for i in range(200))
    labels = [(-100,) * (n - 5) + ids[n - 5 : n] for n in lengths]
    rows = [TokenizedExample(f"row-{n}", ids[:n], label) for n, label in zip(lengths, labels, strict=True)]
    padded, packed = (
        saved_for_backward(model.load_trainable(0), rows, tmp_path, packed) for packed in (False, True)
    )
    config = model.load_trainable(0).model.config
    outputs = config.num_hidden_layers * sum(lengths) * config.hidden_size * dtype.itemsize
    assert packed <= padded + 1.25 * outputs
    assert packed < padded or len(set(lengths)) == 1
