"""The loss of labelled tokens is that of all logits, whatever the head and in however many pieces."""

from __future__ import annotations

import pytest
import torch
from small_models import FAMILIES, VOCABULARY, base, make_examples, small, with_lora
from transformers import (
    LlamaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

from gtp_exp.data.batching import pad_collate
from gtp_exp.data.examples import IGNORE
from gtp_exp.model import labelled
from gtp_exp.model.labelled import labelled_nll, token_nll
from gtp_exp.model.lora import base_model


@pytest.fixture(params=["whole", "pieces"])
def pieces(request, monkeypatch):
    """Nothing is cut, or all is computed three tokens at a time."""
    if request.param == "pieces":
        monkeypatch.setattr(labelled, "_PIECE", 3 * 61)
        monkeypatch.setattr(labelled, "_KEPT", 0)


def plain(model, batch, labels):
    """Return the same by all logits of the model."""
    logits = model(**batch).logits
    wanted = [(r, t) for r, row in enumerate(labels.tolist()) for t, y in enumerate(row) if t and y != IGNORE]
    nll = [token_nll(logits[r, t - 1 : t], labels[r, t : t + 1]) for r, t in wanted]
    return torch.cat(nll), wanted


def compare(model):
    """Hold losses and the gradient of a weighted sum of them to the plain ones, in float32, to 1e-6."""
    batch = pad_collate(make_examples(6), 0)
    labels = batch.pop("labels")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    nll, row, column = labelled_nll(model, batch, labels)
    expected, places = plain(model, batch, labels)
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == places
    torch.testing.assert_close(nll, expected, rtol=1e-6, atol=1e-6)
    weights = torch.linspace(-1, 2, len(nll)) / len(nll)
    found = torch.autograd.grad((nll * weights).sum(), list(trained.values()))
    right = torch.autograd.grad((expected * weights).sum(), list(trained.values()))
    largest = max(float(g.abs().max()) for g in right)
    for name, ours, theirs in zip(trained, found, right, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-6 * largest, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_head(family, pieces):
    compare(small(family))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_trained_head_tied_to_the_embeddings_or_not(family, pieces):
    compare(base(family).requires_grad_(True))


def test_a_head_with_an_adapter(pieces):
    compare(with_lora(base("llama"), targets=["q_proj", "lm_head"]))


def opt():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 16, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(vocab_size=VOCABULARY, num_hidden_layers=2, dropout=0.0, **shape))


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_a_model_that_passes_over_its_backbone_and_calls_the_decoder_inside(trained, pieces):
    compare(opt().requires_grad_(True) if trained == "all" else with_lora(opt(), targets=["q_proj", "fc1"]))


def modernbert_decoder():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "local_attention": 8}
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id"], 0)
    config = ModernBertDecoderConfig(
        vocab_size=VOCABULARY, num_hidden_layers=2, sep_token_id=0, **shape, **special
    )
    return ModernBertDecoderForCausalLM(config)


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_a_model_that_calls_its_output_head_a_decoder(trained, pieces):
    model = modernbert_decoder()
    assert model.get_decoder() is model.get_output_embeddings()
    compare(model.requires_grad_(True) if trained == "all" else with_lora(model, targets=["q_proj", "Wo"]))


class PastItsBackbone(LlamaForCausalLM):
    """Calls the layers itself, as a model with code of its own may."""

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0):
        at = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = self.model.norm(self.model.embed_tokens(input_ids))
        return CausalLMOutput(logits=self.lm_head(hidden[:, at]))


def test_a_model_whose_head_reads_something_unknown_gives_all_logits(pieces):
    model = base("llama").requires_grad_(True)
    model.__class__ = PastItsBackbone
    model.model.layers.requires_grad_(False)  # which it passes over, too
    compare(model)


def test_without_gradients(pieces):
    model = small("gemma2")
    batch = pad_collate(make_examples(6), 0)
    labels = batch.pop("labels")
    with torch.inference_mode():
        torch.testing.assert_close(labelled_nll(model, batch, labels)[0], plain(model, batch, labels)[0])


def test_what_stands_around_the_head_stays(pieces):
    """A hook on it, as a model of one's own may have, counts; what is put in its place is taken away."""
    model = small("llama")
    base_model(model).lm_head.register_forward_hook(lambda _, args, logits: logits + logits.sin())
    before = {module: module.forward for module in model.modules()}
    compare(model)
    assert all(module.forward == forward for module, forward in before.items())
    assert not any("forward" in vars(module) for module in base_model(model).modules())


def test_a_batch_without_labels_has_no_losses_and_can_be_differentiated(pieces):
    model = small("llama")
    nll, row, column = labelled_nll(
        model, {"input_ids": torch.tensor([[3, 4]])}, torch.tensor([[IGNORE, IGNORE]])
    )
    assert nll.shape == row.shape == column.shape == (0,)
    nll.sum().backward()
    # Zero, but there: data-parallel training waits for every one of them.
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)
