"""Define the contract of a benchmark: what a selector may see as target, and what the tuned model is tested
on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from gtp_exp.data.examples import Example, Pool

HELD_OUT_LOSS = "nats_per_token"  # `metric` of a task that has no other; lm-eval is not run then


class Mean(Enum):
    """Says what the tasks of a benchmark are averaged over."""

    ROWS = (
        "rows"  # every test row counts the same: lm-eval's groups with weight_by_size, such as mmlu and bbh
    )
    TASKS = "tasks"  # every task counts the same, however many test rows it has


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
    """Lists what an option of the group `benchmark` has to offer."""

    def target(self) -> tuple[Example, ...] | None:
        """Return the rows that a selector may see; None in-domain, where the target is the pool itself."""
        ...

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return the tasks with their test rows. Only evaluation calls this."""
        ...


@runtime_checkable
class SplitsPool(Protocol):
    """Marks a benchmark whose test rows are taken out of the pool before anything is selected."""

    def split(self, pool: Pool) -> tuple[Pool, Benchmark]:
        """Return the candidates that are left, and the benchmark to use from there on."""
        ...
