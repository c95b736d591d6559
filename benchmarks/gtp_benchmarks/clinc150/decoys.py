"""Ask something else about the sentences of a domain: rows of the target's topic that need another skill."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gtp_benchmarks.clinc150.phrasing import draw
from gtp_benchmarks.clinc150.source import Request
from gtp_exp.errors import UserError


@dataclass(frozen=True)
class OtherTask:
    """Holds a task that any sentence can be given, with the rule that answers it."""

    name: str
    wordings: tuple[str, ...]
    answer: Callable[[str], str]


OTHER_TASKS = (
    OtherTask("repeat", ("Repeat this: {}", 'Say "{}" again.', "{}\nWrite the same once more."), str),
    OtherTask(
        "count words",
        ("Count the words: {}", 'How many words has "{}"?', "{}\nThe number of words is"),
        lambda text: str(len(text.split())),
    ),
    OtherTask(
        "capitals",
        ("Write in capitals: {}", 'Put "{}" in upper case.', "{}\nThe same in capital letters is"),
        str.upper,
    ),
    OtherTask(
        "first word",
        ("Give the first word: {}", 'With which word does "{}" begin?', "{}\nThe first word is"),
        lambda text: text.split()[0],
    ),
)


@dataclass(frozen=True)
class Decoy:
    """Holds a sentence of the pool with another task, as a question and its answer."""

    about: Request
    task: str
    question: str
    answer: str


def draw_decoys(requests: Sequence[Request], n: int, rng: random.Random) -> list[Decoy]:
    """Return n different pairs of a sentence and a task, every set of pairs equally likely.

    Raises UserError where there are too few.
    """
    pairs = [(request, task) for request in requests for task in OTHER_TASKS]
    if n > len(pairs):
        raise UserError(
            f"dataset.decoys={n} is more than the {len(pairs)} that {len(requests)} sentences of "
            f"dataset.decoy_domain allow with {len(OTHER_TASKS)} tasks each; lower it, or raise dataset.rows"
        )
    return [_decoy(request, task) for request, task in rng.sample(pairs, n)]


def _decoy(about: Request, task: OtherTask) -> Decoy:
    wording = task.wordings[draw(about.text, len(task.wordings))]
    return Decoy(about, task.name, wording.format(about.text), task.answer(about.text))
