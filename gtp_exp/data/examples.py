"""What a training or target example is, before and after tokenisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IGNORE = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class Message:
    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Example:
    """One conversation; the assistant's turns are the completion that carries the loss.

    `subtask` groups target rows (say, the 57 subjects of MMLU); it is empty for pool rows.
    What a selector must not see (source, corrupted, duplicate_of, ...) is not here but in `Pool.hidden`.
    """

    id: str
    messages: tuple[Message, ...]
    subtask: str = ""

    @property
    def prompt(self) -> str:
        """Everything before the last assistant turn, as plain text."""
        return "\n".join(m.content for m in self.messages[:-1])

    @property
    def completion(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class Pool:
    """The candidates of a data set, with the per-row facts that only reports read."""

    examples: tuple[Example, ...]
    hidden: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by id
    skipped: Mapping[str, int] = field(default_factory=dict)  # reason -> rows left out on loading


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids and labels of equal length, unshifted; labels are IGNORE outside the completion."""

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def n_completion_tokens(self) -> int:
        """Label tokens that are predicted, hence that carry loss (the first token never is)."""
        return sum(label != IGNORE for label in self.labels[1:])
