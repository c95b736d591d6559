"""Turn conversations into token ids and labels: only what the model itself has to write carries loss.

A conversation is rendered with the tokenizer's chat template and tokenised as one text, as at inference. The
loss of an assistant turn begins where the generation prompt ends and ends with the end-of-turn token, so the
model learns to stop. Nothing is derived from the pad id, because many tokenizers pad with the end-of-turn
token.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tqdm import tqdm

from gtp_exp.data.examples import IGNORE, Example, TokenizedExample
from gtp_exp.data.rendering import Rendered, render
from gtp_exp.errors import UserError
from gtp_exp.files import json_digest

VERSION = 2  # raise it when the same text gets other ids or labels: it enters `chat_template_hash`

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

CUT_AWAY = "no completion token left after truncation"
TOO_LONG = "longer than model.max_length"

_CHUNK = 512  # rows per tokenizer call

# Some templates print the date, and token ids would change with the day. This macro stands in for the
# function that tells it; 26 Jul 2024 is what Llama 3 templates print where there is no such function.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{{ {'%d %b %Y': '26 Jul 2024', '%Y-%m-%d': '2024-07-26'}.get(format, 'July 26, 2024') }}"
    "{%- endmacro %}"
)

Span = tuple[int, int]  # character positions in the rendered text, end exclusive


class OverLength(Enum):
    """Says what becomes of a row that is longer than the limit."""

    DROP = "drop"  # it is left out, and counted
    CUT = "cut"  # it loses its end, so that the model is not taught to stop there
    ERROR = "error"


class SpecialTokens(Enum):
    """Says how the names of special tokens are read that stand in a row's own text, such as <|im_end|>."""

    KEEP = "keep"  # as the special token
    ESCAPE = "escape"  # as text: a zero-width space is put behind their first character


@dataclass(frozen=True)
class RowRules:
    """Holds what becomes of rows that cannot be taken as they are."""

    over_length: OverLength = OverLength.CUT
    special_tokens: SpecialTokens = SpecialTokens.KEEP


@dataclass(frozen=True)
class Tokenized:
    """Holds the rows that carry loss, in input order, and what became of the others."""

    examples: tuple[TokenizedExample, ...]
    kept: tuple[int, ...]  # index into the input, one per example
    excluded: Mapping[str, tuple[str, ...]]  # reason -> ids

    @property
    def truncated(self) -> tuple[str, ...]:
        """Return the ids of kept rows that lost their end."""
        return tuple(row.id for row in self.examples if row.cut)


def ensure_chat_template(tokenizer: Any, system_prompt: str | None = None) -> None:
    """Give a tokenizer without a chat template the Tulu format.

    A BOS token is put first if the tokenizer itself would put one. A template that prints today's date is
    changed to print a fixed one, for training and evaluation alike. A conversation without a system turn gets
    `system_prompt`, where there is one, in place of the template's own. Of several templates by name (one is
    for rows with tools) each is changed; raises UserError where none is the default.
    """
    if not tokenizer.chat_template:
        tokenizer.chat_template = _fallback(tokenizer)
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        tokenizer.chat_template = _changed(template, system_prompt)
        return
    if "default" not in template:
        raise UserError(
            f"the tokenizer has several chat templates, {' and '.join(template)}, and none is 'default'; "
            "give one that name in tokenizer.chat_template, and save the tokenizer (save_pretrained)"
        )
    tokenizer.chat_template = {name: _changed(text, system_prompt) for name, text in template.items()}


def _changed(template: str, system_prompt: str | None) -> str:
    """Return a chat template that prints a fixed date and the system prompt."""
    preamble = _FIXED_DATE if "strftime_now" in template else ""
    if system_prompt is not None:
        preamble += _with_system_turn(system_prompt)
    return template if template.startswith(preamble) else preamble + template


def check_vocabulary(tokenizer: Any, name: str) -> None:
    """Raise UserError for a tokenizer that knows special tokens alone: transformers makes such a one, without
    a word, where a model's folder has no tokenizer. name: of the model, for messages."""
    ids = tokenizer("A question and its answer.", add_special_tokens=False)["input_ids"]
    if set(ids) <= set(tokenizer.all_special_ids):
        raise UserError(
            f"the tokenizer of {name} has no vocabulary, for its files are not there; put them beside the "
            "weights: AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER) writes them"
        )


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
    return json_digest(parts)


def tokenize(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    max_length: int,
    rules: RowRules = RowRules(),  # noqa: B008 (frozen)
) -> Tokenized:
    """Return token ids and labels of every example that keeps at least one completion token within
    `max_length`.

    rules: what becomes of longer rows, which are cut at the right, and of special tokens in a row's own text.
    Raises UserError if the tokenizer cannot say where a completion lies, and for a row that is too long where
    that is an error.
    """
    if max_length < 2:
        raise UserError(f"max_length={max_length} leaves no room for a prompt and a completion token")
    _check_offsets(tokenizer)
    one_object: dict[int, int] = {}  # token ids as fresh integers would take twice the memory
    rows: list[TokenizedExample] = []
    kept: list[int] = []
    excluded: dict[str, list[str]] = {}
    with tqdm(total=len(examples), desc="tokenise", unit="row", delay=2.0) as progress:
        for start in range(0, len(examples), _CHUNK):
            chunk = examples[start : start + _CHUNK]
            if rules.special_tokens is SpecialTokens.ESCAPE:
                chunk = escaped(chunk, tokenizer)
            for index, outcome in enumerate(encode(chunk, tokenizer), start):
                row = outcome if isinstance(outcome, str) else _fit(outcome, max_length, rules.over_length)
                if isinstance(row, str):
                    excluded.setdefault(row, []).append(examples[index].id)
                    continue
                shared = tuple(map(one_object.setdefault, row.input_ids, row.input_ids))
                rows.append(replace(row, input_ids=shared))
                kept.append(index)
            progress.update(len(chunk))
    return Tokenized(tuple(rows), tuple(kept), {reason: tuple(ids) for reason, ids in excluded.items()})


def _fit(row: TokenizedExample, limit: int, over_length: OverLength) -> TokenizedExample | str:
    """Return a row of at most `limit` tokens, or why it is left out."""
    n = row.n_tokens
    if n <= limit:
        return row
    if over_length is OverLength.ERROR:
        raise UserError(
            f"row '{row.id}' has {n} tokens, more than model.max_length={limit}; raise it, or set "
            "dataset.over_length=drop (leave such rows out) or cut (train their beginning)"
        )
    if over_length is OverLength.DROP:
        return TOO_LONG
    answers = tuple((first, min(stop, limit)) for first, stop in row.answers if first < limit)
    short = replace(
        row, input_ids=row.input_ids[:limit], labels=row.labels[:limit], answers=answers, cut=True
    )
    return short if short.n_completion_tokens else CUT_AWAY


def encode(examples: Sequence[Example], tokenizer: Any) -> list[TokenizedExample | str]:
    """Return every example as token ids and labels, of whatever length; or why it carries no loss."""
    outcomes = [render(example, tokenizer) for example in examples]
    rendered = [outcome for outcome in outcomes if isinstance(outcome, Rendered)]
    encoded = iter(_encode_rendered(rendered, tokenizer))
    added = tokenizer.get_added_vocab().items()
    stops = frozenset(tokenizer.all_special_ids) | {i for token, i in added if not token.isspace()}
    rows: list[TokenizedExample | str] = []
    for example, outcome in zip(examples, outcomes, strict=True):
        if isinstance(outcome, str):
            rows.append(outcome)
            continue
        rows.append(_labelled(example.id, outcome, *next(encoded), stops))
    return rows


def encode_begun(examples: Sequence[Example], tokenizer: Any) -> list[list[int] | str]:
    """Return the token ids of every example up to where its last answer ends, as of a text that ends there;
    or why it carries no loss."""
    outcomes = [render(example, tokenizer) for example in examples]
    begun = [replace(r, text=r.text[: r.turns[-1].end]) for r in outcomes if isinstance(r, Rendered)]
    encoded = iter(_encode_rendered(begun, tokenizer))
    return [outcome if isinstance(outcome, str) else next(encoded)[0] for outcome in outcomes]


def _encode_rendered(rendered: Sequence[Rendered], tokenizer: Any) -> list[tuple[list[int], list[Span]]]:
    """Return ids and character offsets of each text, with a token boundary at the end of every generation
    prompt where the tokenizer allows it."""
    encoded = _encode([r.text for r in rendered], tokenizer)
    for i, (r, (ids, offsets)) in enumerate(zip(rendered, encoded, strict=True)):
        starts = [turn.start for turn in r.turns]
        if _straddles(offsets, starts):
            encoded[i] = _cut_at_prompts(r.text, starts, tokenizer, ids, offsets)
    return encoded


def decode_exactly(ids: Sequence[int], tokenizer: Any) -> str:
    """Return the text of token ids with its special tokens and blanks."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def with_special_tokens(examples: Sequence[Example], tokenizer: Any) -> list[str]:
    """Return the ids of the examples whose own text names a special token of the tokenizer."""
    names = _special_names(tokenizer)
    return [
        example.id
        for example in examples
        if names.search(example.tools)
        or any(names.search(text) for m in example.messages for text in (m.content, m.reasoning))
    ]


def escaped(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
    """Return the examples with the special tokens that their own text names told as text."""
    names = _special_names(tokenizer)

    def escape(text: str) -> str:
        return names.sub(lambda match: match[0][0] + "\u200b" + match[0][1:], text)

    return [
        replace(
            example,
            messages=tuple(
                replace(m, content=escape(m.content), reasoning=escape(m.reasoning)) for m in example.messages
            ),
            tools=escape(example.tools),
        )
        for example in examples
    ]


def _special_names(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds the names of special tokens in a text; not those of one character."""
    names = {token for token in tokenizer.all_special_tokens if len(token) > 1}
    names |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = {name for name in names if len(name) > 1}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _check_offsets(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not map tokens to characters, which the loss mask needs; "
            "use a model that comes with a tokenizer.json"
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


def _straddles(offsets: Sequence[Span], starts: Sequence[int]) -> bool:
    """Return whether a token spans the end of a generation prompt."""
    for start in starts:
        token = _first_after(offsets, start)
        if token < len(offsets) and offsets[token][0] < start:
            return True
    return False


def _cut_at_prompts(
    text: str, starts: Sequence[int], tokenizer: Any, ids: list[int], offsets: list[Span]
) -> tuple[list[int], list[Span]]:
    """Return ids and offsets of the same text with a token boundary at the end of every generation prompt.

    A token may span that boundary (a newline of the prompt merged with one that opens the answer), but at
    inference the prompt is tokenised on its own. Tokenizers that mark the start of a text by an added blank
    cannot be cut without changing the text; then the merged token stays, and carries loss for the part of the
    answer that it holds.
    """
    cuts = [0, *starts, len(text)]
    pieces = list(zip(cuts, cuts[1:], strict=False))
    encoded = _encode([text[a:b] for a, b in pieces], tokenizer)
    cut_ids = [i for piece, _ in encoded for i in piece]
    if decode_exactly(cut_ids, tokenizer) != decode_exactly(ids, tokenizer):
        return ids, offsets
    cut_offsets = [
        (a + s, a + e) for (a, _), (_, piece) in zip(pieces, encoded, strict=True) for s, e in piece
    ]
    return cut_ids, cut_offsets


def _labelled(
    example_id: str, rendered: Rendered, ids: Sequence[int], offsets: Sequence[Span], stops: frozenset[int]
) -> TokenizedExample:
    """Return the row with labels: its ids within the turns and their end-of-turn tokens, IGNORE elsewhere.

    Raises UserError where no end-of-turn token follows a completion.
    """
    text, labels, answers = rendered.text, [IGNORE] * len(ids), []
    for turn in rendered.turns:
        first, answer, stop = (_first_after(offsets, at) for at in (turn.start, turn.answer, turn.end))
        # Blanks may stand before the end-of-turn token, perhaps merged with the answer's last characters.
        answer_end = stop + (stop < len(ids) and offsets[stop][0] < turn.end)
        while stop < len(ids) and ids[stop] not in stops:
            if text[max(turn.end, offsets[stop][0]) : offsets[stop][1]].strip():  # offsets may omit blanks
                break
            stop += 1
        if stop == len(ids) or ids[stop] not in stops:
            raise UserError(
                f"the chat template puts no end-of-turn token behind the completion of '{example_id}' "
                f"(there stands {text[turn.end : turn.end + 20]!r}), so a model could not learn to stop; "
                "set a chat template that closes a turn with a special token, such as the EOS token"
            )
        labels[first : stop + 1] = ids[first : stop + 1]
        answers.append((answer, answer_end))
    turns = tuple(turn.message for turn in rendered.turns)
    return TokenizedExample(example_id, tuple(ids), tuple(labels), tuple(answers), turns=turns)
