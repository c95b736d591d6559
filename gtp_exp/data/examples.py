"""Define training and target examples, before and after tokenisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IGNORE = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class Message:
    """Holds one turn of a conversation."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Example:
    """Holds one conversation. The turns of the assistant are the completion that carries the loss.

    `subtask` groups target rows (say, the 57 subjects of MMLU); it is empty for pool rows. What a selector
    must not see (source, corrupted, duplicate_of, ...) is not here but in `Pool.hidden`.
    """

    id: str
    messages: tuple[Message, ...]
    subtask: str = ""

    @property
    def prompt(self) -> str:
        """Return everything before the last assistant turn as plain text."""
        return "\n".join(m.content for m in self.messages[:-1])

    @property
    def completion(self) -> str:
        """Return the text of the last turn."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Pool:
    """Holds the candidates of a data set, with the facts about each row that only reports read."""

    examples: tuple[Example, ...]
    hidden: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by id
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows left out on loading


@dataclass(frozen=True)
class TokenizedExample:
    """Holds token ids and labels of equal length, unshifted; labels are IGNORE outside the completion."""

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens, prompt included."""
        return len(self.input_ids)

    @property
    def n_completion_tokens(self) -> int:
        """Return how many label tokens are predicted, hence carry loss (the first token never is)."""
        return sum(label != IGNORE for label in self.labels[1:])
