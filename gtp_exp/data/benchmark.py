"""Define the contract of a benchmark: what a selector may see as target, and what the tuned model is tested
on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from gtp_exp.data.examples import Example, Pool
from gtp_exp.errors import UserError

HELD_OUT_LOSS = "nats_per_token"  # `metric` of a task that has no other; lm-eval is not run then


class Mean(Enum):
    """Says what the tasks of a benchmark are averaged over."""

    ROWS = (
        "rows"  # every test row counts the same: lm-eval's groups with weight_by_size, such as mmlu and bbh
    )
    TASKS = "tasks"  # every task counts the same, however many test rows it has


class Answers(Enum):
    """Says what the answers of a benchmark are, and with it which metric ranks what was trained for it."""

    CHOICES = "choices"  # one of several: accuracy, or where it tells nothing apart the loss of the choice
    REASONING = "reasoning"  # what was thought before counts: the benchmark's own metric, never a bare loss
    TEXT = "text"  # all that is to be written: the held-out loss


@dataclass(frozen=True)
class EvalTask:
    """Describes one lm-eval task.

    With `docs` it is self-contained: docs and few-shot rows are written as JSONL next to a rendered task
    YAML. Without, `name` is a task that lm-eval bundles.
    """

    name: str
    metric: str  # lm-eval's key of the headline metric, e.g. "acc,none"; or HELD_OUT_LOSS
    config: Mapping[str, Any]  # lm-eval task YAML without `task` and data paths; overrides for a bundled task
    docs: tuple[Mapping[str, Any], ...] | None  # test rows
    fewshot: tuple[Mapping[str, Any], ...] = ()
    chat: bool = True  # prompts go through the tokenizer's chat template
    held_out: tuple[Example, ...] = ()  # the test prompts with their gold answers, for the held-out loss


class Benchmark(Protocol):
    """Lists what an option of the group `benchmark` has to offer.

    It may say as `answers` what its answers are, in a class attribute or a field; without one they are TEXT.
    """

    def target(self) -> tuple[Example, ...] | None:
        """Return the rows that a selector may see; None in-domain, where the target is the pool itself."""
        ...

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return the tasks with their test rows. Only evaluation calls this."""
        ...


@runtime_checkable
class DescribesBenchmark(Protocol):
    """Marks an option that is no benchmark itself but makes one, as its keys bear the names of a benchmark's
    methods."""

    def benchmark(self) -> Benchmark:
        """Return the benchmark that the option describes."""
        ...


@runtime_checkable
class ChecksFiles(Protocol):
    """Marks an option of the group `benchmark` that reads files of the user's."""

    def check_files(self, *, aimed_at: bool, tested: bool) -> None:
        """Raise UserError for what can be told of the files at once: a job asks before its long imports.

        aimed_at: whether a selector will see its target; tested: whether a model will be tested on it.
        """
        ...


def described(option: Benchmark | DescribesBenchmark) -> Benchmark:
    """Return the benchmark of an option: what it makes, or the option itself."""
    return option.benchmark() if isinstance(option, DescribesBenchmark) else option


def answers_of(benchmark: Benchmark) -> Answers:
    """Return what a benchmark says of its answers; TEXT where it says nothing. Raises UserError for another
    value than a member of Answers."""
    answers = getattr(benchmark, "answers", Answers.TEXT)
    if not isinstance(answers, Answers):
        raise UserError(
            f"{type(benchmark).__name__}.answers={answers!r} must be a member of "
            f"gtp_exp.data.benchmark.Answers: {', '.join(member.name for member in Answers)}"
        )
    return answers


@runtime_checkable
class SplitsPool(Protocol):
    """Marks a benchmark whose test rows are taken out of the pool before anything is selected."""

    def split(self, pool: Pool) -> tuple[Pool, Benchmark]:
        """Return the candidates that are left, and the benchmark to use from there on."""
        ...
