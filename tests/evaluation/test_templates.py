"""What is scored is what is trained, under every kind of chat template: a model that knows eight answers by
heart is right in all of lm-eval's ways to ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gtp_benchmarks.choice_task import ChoiceMetric, choice_task
from gtp_exp.data.batching import pad_collate
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example, Message, TokenizedExample
from gtp_exp.data.tokenization import encode, ensure_chat_template
from gtp_exp.errors import UserError
from gtp_exp.evaluation.tasks import evaluate
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import row_nats

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} {{ eos_token }}"
    "{% else %}{{ bos_token }}[INST] {{ m['content'] | trim }} [/INST]{% endif %}{% endfor %}"
)
QWEN3 = (
    "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
    "{%- set content = m['content'].split('</think>')[-1].lstrip('\n') -%}"
    "{{- '<|im_start|>assistant\n' -}}"
    "{%- if loop.last -%}{{- '<think>\n' + m.get('reasoning_content', '') + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- content + '<|im_end|>\n' -}}{%- else -%}"
    "{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
OPENED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# template, whether the tokenizer itself puts a BOS first, the EOS token, whether words keep the blank before
KINDS = {
    "ChatML": (CHATML, False, "<|im_end|>", False),
    "ChatML, another EOS": (CHATML, False, "<|endoftext|>", False),
    "Llama 2": (LLAMA2, True, "</s>", True),
    "Mistral, blanks apart": (LLAMA2, True, "</s>", False),
    "Llama 3": (LLAMA3, True, "<|im_end|>", False),
    "Gemma": (GEMMA, True, "<|endoftext|>", False),
    "Qwen3": (QWEN3, False, "<|im_end|>", False),
    "DeepSeek R1": (OPENED, False, "<|im_end|>", False),
    "Zephyr": (ZEPHYR, True, "</s>", False),
    "base model": (None, True, "</s>", False),
}
WORDS = ["brown", "red", "2024-05-01", "null", "7", "/etc/hosts", "yes.", "blue green"]
ROWS = tuple(
    Example(str(i), (Message("user", f"What is in {'the ' * (i % 3)}box {i}?"), Message("assistant", word)))
    for i, word in enumerate(WORDS)
)


def make_tokenizer(template: str | None, bos_added: bool, eos: str, words: bool, plain: str = "") -> Any:
    """plain: a token that is none of the special ones."""
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start|>", "<|end|>"]
    merges = []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*special, *alphabet]
    if words:  # a blank and the letter after it are one token, as in SentencePiece
        merges = [("Ġ", letter) for letter in alphabet if letter != "Ġ"]
        vocabulary += ["Ġ" + letter for _, letter in merges]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocabulary)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos_added:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=eos,
        additional_special_tokens=[t for t in special[2:] if t not in (eos, plain)],
    )
    tokenizer.add_tokens([plain] if plain else [])
    tokenizer.chat_template = template
    ensure_chat_template(tokenizer)
    return tokenizer


def learn_by_heart(tokenizer: Any, rows: Sequence[TokenizedExample] | None = None) -> LoadedModel:
    """Train a tiny model on all the rows until it knows every answer. rows: in place of these."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    batch = pad_collate(rows or encode(ROWS, tokenizer), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.8, 0.95))  # in half the steps
    for _ in range(400):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 5e-3:
            break
    assert loss < 1e-2
    return LoadedModel(model.eval(), tokenizer, 256, torch.float32)


@pytest.fixture(scope="module", params=KINDS)
def taught(request) -> LoadedModel:
    return learn_by_heart(make_tokenizer(*KINDS[request.param]))


def choices() -> EvalTask:
    docs = [{"id": e.id, "query": e.prompt, "choices": WORDS, "gold": i} for i, e in enumerate(ROWS)]
    return choice_task("boxes", docs, metric=ChoiceMetric.ACC, chat=True)


def generations() -> EvalTask:
    config = {
        "output_type": "generate_until",
        "doc_to_text": "query",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["\n\n\n"], "do_sample": False, "max_gen_toks": 40},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    docs = tuple({"query": e.prompt, "answer": e.completion} for e in ROWS)
    return EvalTask("boxes_written", "exact_match,none", config, docs)


def samples(folder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_choices_held_out_loss_and_training_agree_on_every_answer(taught, tmp_path):
    rows = encode(ROWS, taught.tokenizer)
    metrics = evaluate(choices(), taught, held_out=rows, batch_size=3, directory=tmp_path)
    assert metrics["acc"] == 1.0 and metrics["rows_tested"] == 8 and metrics["rows_left_out"] == 0
    # Training's own loss of the answers: that of the labels within them, row by row.
    nats = []
    for row in rows:
        inputs = pad_collate([row], 0)
        first, stop = row.answers[0]
        inputs["labels"][:, :first] = inputs["labels"][:, stop:] = -100
        with torch.no_grad():
            nats.append(float(row_nats(taught.model, inputs)[0]))
    assert metrics["nats_per_answer"] == pytest.approx(sum(nats) / 8, rel=1e-4, abs=1e-6)
    gold = [-float(s["filtered_resps"][s["target"]][0]) for s in samples(tmp_path)]
    assert gold == pytest.approx(nats, rel=1e-3, abs=1e-5)
    assert metrics["nats_end"] < 0.05


def test_what_is_written_is_the_answer_and_stops_at_the_end_of_turn(taught, tmp_path):
    metrics = evaluate(generations(), taught, held_out=(), batch_size=3, directory=tmp_path)
    assert metrics["exact_match"] == 1.0, [s["resps"] for s in samples(tmp_path)]


def test_an_answer_that_the_task_opens_is_completed(taught, tmp_path):
    task = generations()
    docs = tuple({**doc, "begun": doc["answer"][:1], "rest": doc["answer"][1:]} for doc in task.docs or ())
    task = replace(
        task, config={**task.config, "doc_to_target": "rest", "gen_prefix": "{{begun}}"}, docs=docs
    )
    metrics = evaluate(task, taught, held_out=(), batch_size=3, directory=tmp_path)
    assert metrics["exact_match"] == 1.0, [s["resps"] for s in samples(tmp_path)]


def untrained(tokenizer: Any) -> LoadedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes))
    return LoadedModel(model.eval(), tokenizer, 256, torch.float32)


@pytest.mark.parametrize("begun", ["It is: ", "It is:", "It  "])
def test_a_choice_is_scored_behind_what_the_task_opens_though_a_token_would_span_both(begun, tmp_path):
    """A blank and the letter after it are one token, and some choices are one letter."""
    loaded = untrained(make_tokenizer(CHATML, False, "<|im_end|>", True))
    docs = [{"id": "0", "query": "Which?", "choices": ["A", "B", "red"], "gold": 0}]
    task = choice_task("letters", docs, metric=ChoiceMetric.ACC, chat=True)
    delimiter = " " if begun.endswith(":") else ""
    config = {**task.config, "gen_prefix": begun, "target_delimiter": delimiter}
    task = replace(task, config=config, held_out=())
    evaluate(task, loaded, held_out=(), batch_size=3, directory=tmp_path)
    chat = [{"role": "user", "content": "Which?"}]
    text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + begun
    prompt = loaded.tokenizer(text, add_special_tokens=False).input_ids
    (sample,) = samples(tmp_path)
    for choice, found in zip(docs[0]["choices"], sample["filtered_resps"], strict=True):
        answer = loaded.tokenizer(delimiter + choice, add_special_tokens=False).input_ids
        with torch.no_grad():
            log_p = loaded.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = sum(float(log_p[len(prompt) - 1 + t, token]) for t, token in enumerate(answer))
        assert float(found[0]) == pytest.approx(expected, rel=1e-4)


def test_what_the_task_opens_is_all_that_the_model_sees_of_an_answer(tmp_path, monkeypatch):
    loaded, seen = untrained(make_tokenizer(CHATML, False, "<|im_end|>", True)), []
    generate = loaded.model.generate
    monkeypatch.setattr(
        loaded.model, "generate", lambda **k: seen.extend(k["input_ids"].tolist()) or generate(**k)
    )
    task = generations()
    task = replace(task, config={**task.config, "gen_prefix": "It is: "}, docs=task.docs and task.docs[:1])
    evaluate(task, loaded, held_out=(), batch_size=1, directory=tmp_path)
    assert [loaded.tokenizer.decode(ids).endswith("It is: ") for ids in seen] == [True]


def test_an_answer_that_the_template_removes_is_not_scored(tmp_path):
    loaded = untrained(make_tokenizer(GEMMA, True, "<|endoftext|>", True))
    docs = [{"id": "0", "query": "Which?", "choices": ["A", " "], "gold": 0}]
    task = choice_task("letters", docs, metric=ChoiceMetric.ACC, chat=True)
    task = replace(task, config={**task.config, "gen_prefix": "It is:"}, held_out=())
    with pytest.raises(UserError, match="' ' of a test has no token of its own"):
        evaluate(task, loaded, held_out=(), batch_size=3, directory=tmp_path)


def test_a_test_that_the_template_refuses_is_named(tmp_path):
    refusing = "{% if 'Lima' in messages[0]['content'] %}{{ raise_exception('not of Lima') }}{% endif %}"
    loaded = untrained(make_tokenizer(refusing + CHATML, False, "<|im_end|>", True))
    docs = [
        {"id": "0", "query": f"Where is {place}?", "choices": ["A", "B"], "gold": 0}
        for place in ("Rome", "Lima")
    ]
    task = replace(choice_task("places", docs, metric=ChoiceMetric.ACC, chat=True), held_out=())
    with pytest.raises(UserError, match=r"refuses a prompt of a test \(not of Lima\): 'Where is Lima\?'"):
        evaluate(task, loaded, held_out=(), batch_size=3, directory=tmp_path)


def test_an_answer_ends_at_the_end_of_turn_and_at_eos_whether_these_are_special_or_not(tmp_path):
    """Half of the answers end by EOS, as those of a base model do; shorter ones wait for the longest."""
    tokenizer = make_tokenizer(CHATML, False, "<|endoftext|>", False, plain="<|im_end|>")
    end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    rows = [
        row
        if i % 2
        else replace(row, **{k: ended_by(getattr(row, k), end, eos) for k in ("input_ids", "labels")})
        for i, row in enumerate(encode(ROWS, tokenizer))
    ]
    taught = learn_by_heart(tokenizer, rows)
    metrics = evaluate(generations(), taught, held_out=(), batch_size=8, directory=tmp_path)
    assert metrics["exact_match"] == 1.0, [s["resps"] for s in samples(tmp_path)]


def ended_by(ids: Sequence[int], end: int, other: int) -> tuple[int, ...]:
    """The ids with another token in place of the last `end`."""
    at = len(ids) - 1 - list(reversed(ids)).index(end)
    return (*ids[:at], other, *ids[at + 1 :])
