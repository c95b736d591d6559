"""Write a conversation as the text that a model reads, and say which parts of it the model itself writes.

Training, held-out loss, and lm-eval's choices and generations all take their text from `render`: a question
is asked in a test exactly as it was in training. What the model writes in a turn begins where the generation
prompt ends. In front of the answer itself the template may put something of its own (a blank, an empty
thinking block), and behind it the end of turn: both are there to be learnt, but they are no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError

from gtp_exp.data.conversations import EMPTY, NO_ASSISTANT
from gtp_exp.data.examples import Example, Message

NO_PROMPT = "no turn before the completion"
NOT_TRAINED = "every answer is marked as not to be trained"
ALTERED = "the chat template alters the completion"
NO_PLACE_FOR_TOOLS = "the chat template has no place for the row's tools"
NO_PLACE_FOR_RESULTS = "the chat template has no place for what a tool returns"
NO_PLACE_FOR_REASONING = "the chat template has no place for the answer's reasoning"

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError)  # a filter of a template raises its own

_OPEN, _CLOSE = "<think>", "</think>"
_BLOCK = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """Holds character positions of a turn that carries loss."""

    start: int  # where the generation prompt ends: what the model writes begins here
    answer: int  # where the answer's own text begins
    end: int  # where it ends; the end of turn follows
    message: int  # its number in the conversation


@dataclass(frozen=True)
class Rendered:
    """Holds a conversation as text, and its turns that carry loss."""

    text: str
    turns: tuple[Turn, ...]


class _Refused(Exception):
    """Says why the chat template cannot print a conversation."""


def render(example: Example, tokenizer: Any) -> Rendered | str:
    """Return the text of a conversation by the tokenizer's chat template, or why the row is left out.

    A blank turn of the assistant carries no loss, nor does one that opens the conversation, one that is
    marked as not to be trained, or an earlier one whose thinking block the template removes.
    """
    messages = (
        tuple(map(_with_reasoning_apart, example.messages)) if _reasons(tokenizer) else example.messages
    )
    assistant = [k for k, m in enumerate(messages) if m.role == "assistant"]
    if not assistant:
        return NO_ASSISTANT
    if not messages[assistant[-1]].content.strip():
        return EMPTY
    prompted = [k for k in assistant if k > 0 and messages[k].content.strip()]
    if not prompted:
        return NO_PROMPT
    if not any(messages[k].train for k in prompted):
        return NOT_TRAINED
    if any(messages[k].reasoning for k in assistant) and not _reasons(tokenizer):
        return NO_PLACE_FOR_REASONING
    try:
        return _Conversation(messages, example.tools, tokenizer).render(prompted)
    except _Refused as error:
        return f"the chat template refuses it: {error}"


def _reasons(tokenizer: Any) -> bool:
    """Return whether the chat template knows of thinking blocks."""
    return "think>" in tokenizer.get_chat_template()


def _with_reasoning_apart(message: Message) -> Message:
    """Return an answer that begins with a thinking block as its reasoning and the answer itself."""
    block_and_answer = _BLOCK.fullmatch(message.content) if message.role == "assistant" else None
    if block_and_answer is None or message.reasoning:
        return message
    return replace(message, reasoning=block_and_answer[1].strip("\n"), content=block_and_answer[2])


@dataclass(frozen=True)
class _Conversation:
    """Renders one conversation, whole and in parts."""

    messages: tuple[Message, ...]
    tools: str  # JSON, or empty
    tokenizer: Any

    def render(self, prompted: Sequence[int]) -> Rendered | str:
        """Return text and turns, or why the row is left out. prompted: the turns that have a prompt."""
        whole = self.apply(self.messages)
        if self.tools and whole == replace(self, tools="").apply(self.messages):
            return NO_PLACE_FOR_TOOLS
        for k, message in enumerate(self.messages):
            if message.role == "tool" and whole == self.apply([*self.messages[:k], *self.messages[k + 1 :]]):
                return NO_PLACE_FOR_RESULTS
        text, turns = whole, list[Turn]()
        for k in reversed(prompted):
            prefix = self.apply(self.messages[:k], prompt=True)
            place = self.place_of_answer(k, whole)
            if place is None:
                return ALTERED
            turn, reasoning = Turn(len(prefix), *place, message=k), self.messages[k].reasoning
            opened, closed = (prefix.rstrip().endswith(mark) for mark in (_OPEN, _CLOSE))
            as_generated = text.startswith(prefix) and text[: turn.end] == whole[: turn.end]
            if not (as_generated and reasoning.strip() in whole[turn.start : turn.answer]):
                if not (opened or closed or reasoning):
                    return ALTERED
                if k < len(self.messages) - 1:
                    continue  # the template removes the thinking block of earlier turns
                if closed and reasoning:
                    return NO_PLACE_FOR_REASONING
                block = "" if closed else _thinking_block(opened, reasoning)
                text, turn = _written_behind(prefix, block, whole, turn)
            if self.messages[k].train:
                turns.append(turn)
        return Rendered(text, tuple(reversed(turns))) if turns else NOT_TRAINED

    def apply(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return messages as text by the chat template; with `prompt`, up to where an answer is to begin.

        Raises _Refused where the template raises.
        """
        more = {"tools": json.loads(self.tools)} if self.tools else {}
        turns = [as_dict(m) for m in messages]
        apply = self.tokenizer.apply_chat_template
        try:
            return apply(turns, tokenize=False, add_generation_prompt=prompt, **more)
        except TEMPLATE_ERRORS as error:
            raise _Refused(error) from error

    def place_of_answer(self, k: int, whole: str) -> tuple[int, int] | None:
        """Return where the answer of turn k begins and ends in the whole text; None if it is not there as it
        was given.

        A mark is rendered in its place: a search could stop at the same words elsewhere.
        """
        mark = "\ue000"
        while mark in whole:
            mark += "\ue000"
        marked_turn = replace(self.messages[k], content=mark)
        marked = self.apply([*self.messages[:k], marked_turn, *self.messages[k + 1 :]])
        at = marked.find(mark)
        if at < 0:
            return None
        content = self.messages[k].content
        for answer in (content, content.strip(), content.lstrip("\n")):  # many templates strip
            if whole == marked.replace(mark, answer, 1):
                return at, at + len(answer)
        return None


def _thinking_block(opened: bool, reasoning: str) -> str:
    """Return what the model writes before its answer, which the template leaves out. opened: whether the
    generation prompt has opened the block. An empty one stands for no reasoning, as Qwen3's template has it.
    """
    return ("" if opened else f"{_OPEN}\n") + reasoning.strip("\n") + f"\n{_CLOSE}\n\n"


def _written_behind(prefix: str, block: str, whole: str, turn: Turn) -> tuple[str, Turn]:
    """Return the text of a conversation whose last answer is written as at inference: behind the generation
    prompt (prefix) stand a thinking block, the answer and the end of turn."""
    answer = len(prefix) + len(block)
    text = prefix + block + whole[turn.answer :]
    return text, Turn(len(prefix), answer, answer + turn.end - turn.answer, turn.message)


def as_dict(message: Message) -> Mapping[str, str]:
    """Return a message as chat templates take it."""
    reasoning = {"reasoning_content": message.reasoning} if message.reasoning else {}
    return {"role": message.role, "content": message.content, **reasoning}
