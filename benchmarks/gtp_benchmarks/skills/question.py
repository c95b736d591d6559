"""What a skill is, what one of its questions is, and which side of the split a question falls on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random

from gtp_exp.errors import UserError

# Put around a phrasing, so that two rows of one skill rarely share their whole frame.
OPENERS = (
    "Quick question. ",
    "Please help me with this. ",
    "Here is one for you. ",
    "I need an answer to this. ",
    "Let us try another one. ",
    "Question: ",
    "Think carefully. ",
    "For my homework: ",
)
CLOSERS = (
    " Give only the answer.",
    " Just the answer, please.",
    " Answer briefly.",
    " Reply with the answer alone.",
    " No explanation needed.",
    " Keep it short.",
    "\nAnswer:",
    " Thanks!",
)
FRAME_SHARE = 0.4  # of the rows get an opener, and independently a closer


class Split(Enum):
    """Names the sides of the split that a question can fall on."""

    POOL = "pool"
    TARGET = "target"
    TEST = "test"


# Of 100 hash buckets: the pool gets the first 60, the target the next 15, the test the rest.
_POOL_BUCKETS, _TARGET_BUCKETS = 60, 15
_PATIENCE = 1000  # draws in a row without a new question before the skill counts as used up


@dataclass(frozen=True)
class Question:
    """One question without its wording.

    `identity` says what is asked, whatever the wording and the order of presentation: two questions with the
    same identity are rephrasings of each other and always fall on the same side of the split.
    """

    form: str  # key of Skill.phrasings
    slots: Mapping[str, str]  # fills a phrasing
    identity: tuple[str, ...]
    answer: str
    distractors: tuple[str, ...]  # wrong answers in the format of the right one
    label: str = ""  # which of Skill.labels the answer is

    @property
    def is_fair(self) -> bool:
        """Return whether no choice begins another one.

        Scored by the log-likelihood of its tokens, the shorter could never lose.
        """
        choices = (self.answer, *self.distractors)
        return not any(a.startswith(b) for a in choices for b in choices if a is not b)


@dataclass(frozen=True)
class Skill:
    """Draws questions of one kind and puts them into words."""

    name: str
    draw: Callable[[Random], Question]
    phrasings: Mapping[str, tuple[str, ...]]  # form -> templates over the slots
    labels: tuple[str, ...] = ()  # all that an answer can be, where they are few; asked for equally often
    asked_wordings: int | None = None  # target and test use so many phrasings, the pool all; None: all
    decoy: bool = False  # asks for something else about the sentences of another skill

    def split_of(self, question: Question) -> Split:
        """Return the split of a question by a hash of what is asked, so that no seed and no wording changes
        it."""
        text = "\x1f".join((self.name, *question.identity))
        bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 100
        if bucket < _POOL_BUCKETS:
            return Split.POOL
        return Split.TARGET if bucket < _POOL_BUCKETS + _TARGET_BUCKETS else Split.TEST

    def questions(self, split: Split, rng: Random) -> Iterator[Question]:
        """Yield questions of one split in random order, each identity once, until the skill is used up.

        No label comes again before every other one has come as often.
        """
        seen: set[tuple[str, ...]] = set()
        due: set[str] = set()
        while True:
            due = due or set(self.labels)
            for _ in range(_PATIENCE):
                question = self.draw(rng)
                if due and question.label not in due:
                    continue
                if question.identity not in seen and self.split_of(question) is split and question.is_fair:
                    break
            else:
                raise UserError(
                    f"the skill {self.name!r} has no more than about {len(seen)} questions in its "
                    f"{split.value} split; ask for fewer rows of it"
                )
            seen.add(question.identity)
            due.discard(question.label)
            yield question

    def wordings(self, question: Question, split: Split = Split.POOL) -> int:
        """Return how many phrasings a question has on one side of the split."""
        in_all = len(self.phrasings[question.form])
        return in_all if split is Split.POOL or self.asked_wordings is None else self.asked_wordings

    def prompt(self, question: Question, wording: int, rng: Random) -> str:
        """Return the question in one of its phrasings, in some rows framed by an opener or a closer."""
        text = self.phrasings[question.form][wording].format(**question.slots)
        opener = rng.choice(OPENERS) if rng.random() < FRAME_SHARE else ""
        # A phrasing that breaks off ("7 + 5 =") wants its answer next.
        closer = rng.choice(CLOSERS) if rng.random() < FRAME_SHARE and text[-1] in ".?" else ""
        return opener + text + closer


def near_numbers(answer: int, mistakes: list[int], rng: Random) -> tuple[str, ...]:
    """Three wrong numbers, likely mistakes first, with as many digits as the answer.

    Same length, because a choice is scored by the summed log-likelihood of its tokens: the shorter wins.
    """
    digits = len(str(answer))
    low, high = (0, 9) if digits == 1 else (10 ** (digits - 1), 10**digits - 1)
    wrong_numbers: list[int] = []
    candidates = list(mistakes)
    rng.shuffle(candidates)
    while len(wrong_numbers) < 3:
        wrong = candidates.pop() if candidates else rng.randint(low, high)
        if low <= wrong <= high and wrong != answer and wrong not in wrong_numbers:
            wrong_numbers.append(wrong)
    return tuple(str(n) for n in wrong_numbers)


def number_slips(answer: int) -> list[int]:
    """Return likely wrong answers to a sum: slips of the pen and of the carry."""
    swapped = int(str(answer)[::-1])
    return [answer + d for d in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)] + [swapped]
