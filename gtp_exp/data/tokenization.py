"""Turn conversations into token ids and labels: only what the model itself has to write carries loss.

A conversation is rendered with the tokenizer's chat template and tokenised as one text, as at inference. The
loss of an assistant turn begins where the generation prompt ends (found by rendering the turns before it) and
ends with the end-of-turn token, so the model learns to stop. Nothing is derived from the pad id, because many
tokenizers pad with the end-of-turn token.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from tqdm import tqdm

from gtp_exp.data.examples import IGNORE, Example, Message, TokenizedExample
from gtp_exp.data.rows import EMPTY, NO_ASSISTANT
from gtp_exp.errors import UserError

VERSION = 1  # raise it when the same text gets other ids or labels: it enters `chat_template_hash`

# The format of Tulu v1, which LESS trains with (Xia et al. 2024, concat_messages in get_training_dataset.py):
# texts are stripped, and end-of-turn is the EOS token.
FALLBACK_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

NO_PROMPT = "no turn before the completion"
ALTERED = "the chat template alters the completion"
CUT_AWAY = "no completion token left after truncation"

_CHUNK = 512  # rows per tokenizer call

# Some templates print the date, and token ids would change with the day. This macro stands in for the
# function that tells it; 26 Jul 2024 is what Llama 3 templates print where there is no such function.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{{ {'%d %b %Y': '26 Jul 2024', '%Y-%m-%d': '2024-07-26'}.get(format, 'July 26, 2024') }}"
    "{%- endmacro %}"
)

Span = tuple[int, int]  # character positions in the rendered text, end exclusive


@dataclass(frozen=True)
class Tokenized:
    """Holds the rows that carry loss, in input order, and what became of the others."""

    examples: tuple[TokenizedExample, ...]
    kept: tuple[int, ...]  # index into the input, one per example
    excluded: Mapping[str, tuple[str, ...]]  # reason -> ids
    truncated: tuple[str, ...]  # ids of kept rows that lost their end


def ensure_chat_template(tokenizer: Any, system_prompt: str | None = None) -> None:
    """Give a tokenizer without a chat template the Tulu format.

    A BOS token is put first if the tokenizer itself would put one. A template that prints today's date is
    changed to print a fixed one, for training and evaluation alike. A conversation without a system turn gets
    `system_prompt`, where there is one, in place of the template's own.
    """
    if not tokenizer.chat_template:
        tokenizer.chat_template = _fallback(tokenizer)
    template = tokenizer.get_chat_template()
    preamble = _FIXED_DATE if "strftime_now" in template else ""
    if system_prompt is not None:
        preamble += _with_system_turn(system_prompt)
    if preamble and not template.startswith(preamble):
        tokenizer.chat_template = preamble + template


def _with_system_turn(prompt: str) -> str:
    """Return template text that puts a system turn before a conversation without one."""
    turn = "{'role': 'system', 'content': " + json.dumps(prompt, ensure_ascii=False) + "}"
    return (
        "{%- if messages[0]['role'] != 'system' -%}"
        "{%- set messages = [" + turn + "] + messages -%}"
        "{%- endif -%}"
    )


def _fallback(tokenizer: Any) -> str:
    """Return the Tulu template for this tokenizer. Raises UserError if it has no EOS token."""
    if tokenizer.eos_token is None:
        raise UserError(
            "the tokenizer has neither a chat template nor an EOS token, so a model could not learn to stop; "
            "set tokenizer.eos_token or give it a chat_template"
        )
    ids = tokenizer("x")["input_ids"]
    starts_with_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if starts_with_bos else "") + FALLBACK_CHAT_TEMPLATE


def chat_template_hash(tokenizer: Any) -> str:
    """Return the SHA-256 (hex) of what decides the rendered text and its labels beyond the vocabulary."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [VERSION, tokenizer.get_chat_template(), special]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenize(examples: Sequence[Example], tokenizer: Any, *, max_length: int) -> Tokenized:
    """Return token ids and labels of every example that keeps at least one completion token within
    `max_length`.

    Longer rows are cut at the right. A blank assistant turn carries no loss, nor does one that opens the
    conversation, since nothing prompts it. Raises UserError if the tokenizer cannot say where a completion
    lies.
    """
    if max_length < 2:
        raise UserError(f"max_length={max_length} leaves no room for a prompt and a completion token")
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not map tokens to characters, which the loss mask needs; "
            "use a model that comes with a tokenizer.json"
        )
    one_object: dict[int, int] = {}  # token ids as fresh integers would take twice the memory
    stops = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.get_added_vocab().values())
    rows: list[TokenizedExample] = []
    kept: list[int] = []
    excluded: dict[str, list[str]] = {}
    truncated: list[str] = []
    with tqdm(total=len(examples), desc="tokenise", unit="row", delay=2.0) as progress:
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            rendered: list[tuple[int, str, list[Span]]] = []
            for offset, example in enumerate(chunk):
                outcome = _render(example, tokenizer)
                if isinstance(outcome, str):
                    excluded.setdefault(outcome, []).append(example.id)
                else:
                    rendered.append((start + offset, *outcome))
            encoded = _encode([text for _, text, _ in rendered], tokenizer)
            for (index, text, spans), (ids, offsets) in zip(rendered, encoded, strict=True):
                example = examples[index]
                if _straddles(offsets, spans):
                    ids, offsets = _cut_at_prompts(text, spans, tokenizer, ids, offsets)
                ids = list(map(one_object.setdefault, ids, ids))
                labels = _labels(example.id, text, spans, ids, offsets, stops)
                row = TokenizedExample(example.id, tuple(ids[:max_length]), tuple(labels[:max_length]))
                if row.n_completion_tokens == 0:
                    excluded.setdefault(CUT_AWAY, []).append(example.id)
                    continue
                if len(ids) > max_length:
                    truncated.append(example.id)
                rows.append(row)
                kept.append(index)
            progress.update(len(chunk))
    return Tokenized(
        tuple(rows), tuple(kept), {reason: tuple(ids) for reason, ids in excluded.items()}, tuple(truncated)
    )


def _render(example: Example, tokenizer: Any) -> tuple[str, list[Span]] | str:
    """Return the rendered text and a span for every assistant turn that carries loss, or why the row is left
    out.

    A span goes from the end of the generation prompt to the end of the answer's text.
    """
    messages = example.messages
    turns = [k for k, m in enumerate(messages) if m.role == "assistant"]
    if not turns:
        return NO_ASSISTANT
    if not messages[turns[-1]].content.strip():
        return EMPTY
    turns = [k for k in turns if k > 0 and messages[k].content.strip()]
    if not turns:
        return NO_PROMPT
    try:
        text = _apply(messages, tokenizer, prompt=False)
        spans: list[Span] = []
        for k in turns:
            prefix = _apply(messages[:k], tokenizer, prompt=True)
            if not text.startswith(prefix):
                return ALTERED
            # What the template puts between the prompt and the answer's text (a blank, an empty thinking
            # block) is for the model to write, hence inside the span.
            end = _end_of_answer(messages, k, text, tokenizer)
            if end is None:
                return ALTERED
            spans.append((len(prefix), end))
    except TemplateError as error:
        return f"the chat template refuses it: {error}"
    return text, spans


def _end_of_answer(messages: Sequence[Message], k: int, text: str, tokenizer: Any) -> int | None:
    """Return where the text of turn k ends in the rendered conversation; None if it is not there as it was
    given.

    A mark is rendered in its place: a search could stop at the same words elsewhere.
    """
    mark = "\ue000"
    while mark in text:
        mark += "\ue000"
    marked = _apply([*messages[:k], Message("assistant", mark), *messages[k + 1 :]], tokenizer, prompt=False)
    at = marked.find(mark)
    if at < 0:
        return None
    for answer in (messages[k].content, messages[k].content.strip()):  # many templates strip
        if text == marked.replace(mark, answer, 1):
            return at + len(answer)
    return None


def _apply(messages: Sequence[Message], tokenizer: Any, *, prompt: bool) -> str:
    """Return the conversation as text by the chat template."""
    return tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        tokenize=False,
        add_generation_prompt=prompt,
    )


def _encode(texts: list[str], tokenizer: Any) -> list[tuple[list[int], list[Span]]]:
    """Return ids and character offsets of each text; the template has written BOS where there is one."""
    if not texts:
        return []
    batch = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # rows longer than the context are cut below
    )
    return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))


def _first_after(offsets: Sequence[Span], position: int) -> int:
    """Return the first token that reaches beyond a character position."""
    return bisect_right(offsets, position, key=lambda span: span[1])


def _straddles(offsets: Sequence[Span], spans: Sequence[Span]) -> bool:
    """Return whether a token spans the end of a generation prompt."""
    for start, _ in spans:
        token = _first_after(offsets, start)
        if token < len(offsets) and offsets[token][0] < start:
            return True
    return False


def _cut_at_prompts(
    text: str, spans: Sequence[Span], tokenizer: Any, ids: list[int], offsets: list[Span]
) -> tuple[list[int], list[Span]]:
    """Return ids and offsets of the same text with a token boundary at the end of every generation prompt.

    A token may span that boundary (a newline of the prompt merged with one that opens the answer), but at
    inference the prompt is tokenised on its own. Tokenizers that mark the start of a text by an added blank
    cannot be cut without changing the text; then the merged token stays, and carries loss for the part of the
    answer that it holds.
    """
    cuts = [0, *(start for start, _ in spans), len(text)]
    pieces = list(zip(cuts, cuts[1:], strict=False))
    encoded = _encode([text[a:b] for a, b in pieces], tokenizer)
    cut_ids = [i for piece, _ in encoded for i in piece]
    exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    if tokenizer.decode(cut_ids, **exact) != tokenizer.decode(ids, **exact):
        return ids, offsets
    cut_offsets = [
        (a + s, a + e) for (a, _), (_, piece) in zip(pieces, encoded, strict=True) for s, e in piece
    ]
    return cut_ids, cut_offsets


def _labels(
    example_id: str,
    text: str,
    spans: Sequence[Span],
    ids: Sequence[int],
    offsets: Sequence[Span],
    stops: frozenset[int],
) -> list[int]:
    """Return the labels of one row: its ids within the spans and their end-of-turn tokens, IGNORE elsewhere.

    Raises UserError where no end-of-turn token follows a completion.
    """
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        first = _first_after(offsets, start)
        stop = _first_after(offsets, end)
        # Blanks may stand before the end-of-turn token, perhaps merged with the answer's last characters.
        while stop < len(ids) and ids[stop] not in stops:
            if not text[max(end, offsets[stop][0]) : offsets[stop][1]].isspace():
                break
            stop += 1
        if stop == len(ids) or ids[stop] not in stops:
            raise UserError(
                f"the chat template puts no end-of-turn token behind the completion of '{example_id}' "
                f"(there stands {text[end : end + 20]!r}), so a model could not learn to stop; "
                "set a chat template that closes a turn with a special token, such as the EOS token"
            )
        labels[first : stop + 1] = ids[first : stop + 1]
    return labels
