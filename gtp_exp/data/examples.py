"""Define training and target examples, before and after tokenisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IGNORE = -100  # label of a token that carries no loss
ANSWER, END = 1, 2  # parts of what the model writes: the answer's own tokens, and the end of turn behind it


@dataclass(frozen=True)
class Message:
    """Holds one turn of a conversation."""

    role: str  # system, user, assistant, or tool: what a tool returned
    content: str
    reasoning: str = ""  # what the assistant thinks before it answers
    train: bool = True  # whether an assistant's turn may carry loss


@dataclass(frozen=True)
class Example:
    """Holds one conversation. The turns of the assistant are the completion that carries the loss.

    `subtask` groups target rows (say, the 57 subjects of MMLU); it is empty for pool rows. What a selector
    must not see (source, corrupted, duplicate_of, ...) is not here but in `Pool.hidden`.
    """

    id: str
    messages: tuple[Message, ...]
    subtask: str = ""
    tools: str = ""  # JSON list of the tools that the assistant may call, for the chat template

    @property
    def prompt(self) -> str:
        """Return everything before the last assistant turn as plain text."""
        return "\n".join(m.content for m in self.messages[:-1])

    @property
    def completion(self) -> str:
        """Return the text of the last turn."""
        return self.messages[-1].content

    @property
    def text(self) -> str:
        """Return all turns as plain text, each answer with the reasoning before it."""
        return plain_text(self.messages)


def plain_text(messages: Sequence[Message]) -> str:
    """Return turns as plain text, each answer with the reasoning before it."""
    return " ".join([part for m in messages for part in (m.reasoning, m.content) if part])


@dataclass(frozen=True)
class Pool:
    """Holds the candidates of a data set, with the facts about each row that only reports read."""

    examples: tuple[Example, ...]
    hidden: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by id
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows left out on loading


@dataclass(frozen=True)
class TokenizedExample:
    """Holds token ids and labels of equal length, unshifted.

    Labels are IGNORE outside of what the model itself writes: answers, what the chat template puts before an
    answer, and the end of turn behind it. `answers` are the ranges of the answers' own tokens, end exclusive.
    """

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    answers: tuple[tuple[int, int], ...] = ()
    cut: bool = False  # whether the end is missing, because the row was longer than the limit
    turns: tuple[int, ...] | None = None  # the messages that carry loss, before anything is cut, where known

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens, prompt included."""
        return len(self.input_ids)

    @property
    def parts(self) -> list[int]:
        """Return for every token what it is: ANSWER, END of turn, or 0."""
        parts = [0] * len(self.input_ids)
        for first, stop in self.answers:
            parts[first:stop] = [ANSWER] * (stop - first)
            while stop < len(parts) and self.labels[stop] != IGNORE:
                parts[stop] = END
                stop += 1
        return parts

    @property
    def n_answer_tokens(self) -> int:
        """Return how many tokens the answers themselves have."""
        return sum(stop - first for first, stop in self.answers)

    @property
    def n_completion_tokens(self) -> int:
        """Return how many label tokens are predicted, hence carry loss (the first token never is)."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORE)
