"""Random models of a few thousand parameters, one per family, with LoRA; and examples for them."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model

from gtp_exp.data.examples import IGNORE, TokenizedExample
from gtp_exp.gradients.checkpoints import Checkpoint, save_checkpoint
from gtp_exp.gradients.engines.base import gradients_of
from gtp_exp.gradients.engines.check import relative_error
from gtp_exp.gradients.engines.choose import Engine, make_engine
from gtp_exp.gradients.engines.linear import LinearKernel
from gtp_exp.gradients.engines.packed import PackedEngine
from gtp_exp.model.loss import Reduction, reference_gradients
from gtp_exp.model.parameters import trainable_parameters

VOCABULARY = 61
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama_gqa_tied_bias": (
        "Llama",
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "sliding_window": 6}),
    "gemma2": (
        "Gemma2",
        {
            "num_key_value_heads": 2,
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 1.0,  # low enough to bend the scores of a random model
            "final_logit_softcapping": 0.5,
        },
    ),
    "gemma3": ("Gemma3", {"num_key_value_heads": 2, "sliding_window": 6}),
    "granite": ("Granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
}


def base(family: str, dtype: torch.dtype = torch.float32, **overrides: object):
    """Without adapters, all frozen. Biases and norms are random too: zeros and ones would hide mistakes."""
    kind, options = FAMILIES[family]
    config = getattr(transformers, kind + ("TextConfig" if kind == "Gemma3" else "Config"))
    torch.manual_seed(0)
    model = getattr(transformers, kind + "ForCausalLM")(config(**{**_SHAPE, **options, **overrides}))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
        else:
            parameter.mul_(4)  # away from the nearly linear regime of a fresh model
    return model.to(dtype).eval()


def with_lora(model, r: int = 4, targets: object = "all-linear", **options: object):
    """Dropout is set, to show that it plays no part; B is random, or the gradient of A would be zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            model, LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.1, target_modules=targets, **options)
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def small(family: str = "llama_gqa_tied_bias", dtype: torch.dtype = torch.float32, **options: object):
    return with_lora(base(family), **options).to(dtype)


def make_examples(n: int, seed: int = 0, longest: int = 20) -> list[TokenizedExample]:
    """Lengths 2 to `longest`; the loss starts at a random place and leaves out some tokens within."""
    source = random.Random(seed)
    rows = []
    for i in range(n):
        ids = [source.randrange(3, VOCABULARY) for _ in range(source.randint(2, longest))]
        labels = [t if k and source.random() < 0.7 else IGNORE for k, t in enumerate(ids)]
        labels[-1] = ids[-1]
        rows.append(TokenizedExample(f"row-{seed}-{i}", tuple(ids), tuple(labels)))
    return rows


def train(model, optimizer, steps: int) -> None:
    """A few real steps, so that the moments are those of gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(3, VOCABULARY, (2, 12), generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    optimizer.zero_grad()


def make_trajectory(model, directory: Path, segments: int = 2) -> list[Checkpoint]:
    """Checkpoints after 2, 4, ... steps; the model ends at the last one."""
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=0.02)
    checkpoints = []
    for t in range(segments):
        train(model, optimizer, steps=2)
        where = directory / f"checkpoint-{t}"
        checkpoints.append(
            save_checkpoint(where, model, optimizer, step=2 * t + 2, learning_rate=0.1 / (t + 1))
        )
    return checkpoints


def packed(model) -> PackedEngine:
    parameters = trainable_parameters(model)
    engine = make_engine(
        Engine.PACKED, model, parameters, reduction=Reduction.MEAN, kernel=LinearKernel.DEFAULT
    )
    assert isinstance(engine, PackedEngine)
    return engine


def worst_error(
    model, engine, examples, budget: int = 48, reduction: Reduction = Reduction.MEAN, order=float("inf")
):
    parameters, errors = trainable_parameters(model), []
    for index in engine.batches([e.n_tokens for e in examples], budget):
        for example, found in gradients_of(engine, [examples[i] for i in index]):
            assert found.keys() == parameters.keys()
            expected = reference_gradients(model, parameters, example, reduction)
            errors.append(relative_error(found, expected, order=order))
    assert len(errors) == len(examples)
    return max(errors)
