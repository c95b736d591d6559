"""One pass over a prompt gives all its answers the score that lm-eval's own way gives them."""

from __future__ import annotations

import random

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from small_models import base
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaForCausalLM, MptConfig, MptForCausalLM

from gtp_exp.evaluation.shared_prompts import can_share, score_answers

VOCABULARY = 61


def requests(seed: int, n_prompts: int = 9):
    rng = random.Random(seed)
    made = []
    for _ in range(n_prompts):
        prompt = tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.choice([1, 2, 5, 17, 30])))
        for _ in range(rng.choice([1, 2, 4])):
            made.append(
                (prompt, tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.choice([1, 1, 3, 8]))))
            )
    rng.shuffle(made)
    return made


def one_by_one(model, request):
    prompt, answer = request
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
    log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    tokens = torch.tensor(answer)
    return float(log_p[torch.arange(len(answer)), tokens].sum()), bool((log_p.argmax(-1) == tokens).all())


@pytest.mark.parametrize("family", ["llama", "llama_gqa_tied_bias", "qwen2", "qwen3", "granite", "cohere"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_are_those_of_prompt_and_answer_in_one_sequence(family, batch_size):
    model = base(family).eval()
    assert can_share(model)
    asked = requests(0)
    for found, request in zip(score_answers(model, asked, batch_size), asked, strict=True):
        nats, greedy = one_by_one(model, request)
        assert found[0] == pytest.approx(nats, abs=1e-4) and found[1] == greedy


class WithAllLogits(LlamaForCausalLM):
    """As models are that cannot be asked for their logits at some positions only."""

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None
    ):
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, use_cache=use_cache)


def test_a_model_that_always_gives_all_logits_gives_the_same_scores():
    model = base("llama").eval()
    asked = requests(1)
    expected = score_answers(model, asked, 4)
    model.__class__ = WithAllLogits
    for found, (nats, greedy) in zip(score_answers(model, asked, 4), expected, strict=True):
        assert found == (pytest.approx(nats, abs=1e-5), greedy)


def test_the_likeliest_answer_is_told(tiny):
    model = base("llama").eval()
    prompt = (5, 9, 11)
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=3, min_new_tokens=3, do_sample=False)[0]
    best = tuple(ids[3:].tolist())
    other = (*best[:2], (best[2] + 1) % VOCABULARY)
    (_, first), (_, second) = score_answers(model, [(prompt, best), (prompt, other)], 8)
    assert first and not second


def test_a_sliding_window_keeps_to_lm_evals_own_way():
    assert not can_share(base("mistral")) and not can_share(base("gemma2"))


def with_local_windows():
    config = GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
    )
    return GPTNeoForCausalLM(config)


def with_alibi():
    return MptForCausalLM(MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4))


def with_rope(kind: str, **more):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}
    return base("llama", rope_parameters=rope, max_position_embeddings=16 if kind == "dynamic" else 64)


PLACES = {
    "local windows": with_local_windows,
    "ALiBi by key": with_alibi,
    "dynamic": lambda: with_rope("dynamic"),
    "longrope": lambda: with_rope(
        "longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=16
    ),
}


@pytest.mark.parametrize("kind", PLACES)
def test_attention_that_depends_on_the_place_in_the_cache_is_scored_in_lm_evals_own_way(kind):
    """Shared, some answers would get other scores than in a sequence of their own."""
    torch.manual_seed(0)
    model = PLACES[kind]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4 if kind in ("local windows", "ALiBi by key") else 1)
    asked = requests(0)
    alone = [one_by_one(model, request)[0] for request in asked]
    shared = [nats for nats, _ in score_answers(model, asked, 64)]
    assert max(abs(a - b) for a, b in zip(alone, shared, strict=True)) > 1e-3
    assert not can_share(model)


def test_a_prompt_is_passed_once(monkeypatch):
    model = base("llama").eval()
    asked = [((5, 6, 7, 8, 9, 10), (n, 4, 5)) for n in range(11, 19)]
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: seen.append(k["input_ids"].numel()) or forward(*a, **k)
    )
    score_answers(model, asked, 8)
    assert seen == [6, 8 * 2]


def test_lm_evals_own_way_agrees(tiny):
    loaded = tiny.load()
    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4, max_length=256)
    asked = [((5, 6, 7), (8, 9)), ((5, 6, 7), (10,)), ((11, 12), (13, 14, 15))]
    reference = lm._loglikelihood_tokens([(("", ""), list(p), list(a)) for p, a in asked], disable_tqdm=True)
    for found, expected in zip(score_answers(loaded.model, asked, 4), reference, strict=True):
        assert found[0] == pytest.approx(expected[0], abs=1e-4) and found[1] == expected[1]
