"""A data set and a benchmark of a few dozen rows, for runs of the whole pipeline in seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass

from conftest import conversation
from gtp_exp.data.benchmark import EvalTask
from gtp_exp.data.examples import Example, Pool
from gtp_exp.data.sources.base import DataSource

# Overrides of a job with this data, for --config-dir tests/conf.
TOY = [
    "model=tiny",
    "dataset=toy",
    "benchmark=toy",
    "gradients=toy",
    "train=toy",
    "tracking=none",
    "launch=cpu",
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "target_delimiter": "",
    "num_fewshot": 0,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


@dataclass(frozen=True)
class ToyPool(DataSource):
    rows: int

    def load(self) -> Pool:
        """Half sums, half greetings; every tenth row is a copy of the one before, one row has no answer."""
        rows = []
        for i in range(self.rows):
            j = i - 1 if i % 10 == 9 else i
            sums = (f"What is {j} plus 2?", f"{j + 2}")
            greetings = (f"Greet guest number {j}.", f"Welcome, guest {j}!")
            rows.append(conversation(i, *(sums if j % 2 else greetings)))
        rows.append(conversation(self.rows, "Say nothing.", ""))
        hidden = {e.id: {"skill": "sum" if "plus" in e.prompt else "greeting"} for e in rows}
        return Pool(tuple(rows), hidden)


@dataclass(frozen=True)
class ChangingPool(ToyPool):
    """One row more for every process, as if the file had grown in the meantime."""

    def load(self) -> Pool:
        return ToyPool(self.rows + int(os.environ.get("RANK", "0"))).load()


@dataclass(frozen=True)
class HugePool(ToyPool):
    """A pool that no machine has the memory for."""

    def load(self) -> Pool:
        import torch

        torch.empty(1 << 50)
        return super().load()


@dataclass(frozen=True)
class ToyBenchmark:
    target_rows: int
    test_rows: int
    in_domain: bool

    def target(self) -> tuple[Example, ...] | None:
        if self.in_domain:
            return None
        return tuple(
            conversation(500 + i, f"What is {i + 200} plus 2?", f"{i + 202}", "sum")
            for i in range(self.target_rows)
        )

    def tasks(self) -> tuple[EvalTask, ...]:
        numbers = range(300, 300 + self.test_rows)
        docs = tuple(
            {"question": f"What is {i} plus 2?", "choices": [f"{i + 2}", f"{i}"], "gold": 0} for i in numbers
        )
        held_out = tuple(conversation(i, f"What is {i} plus 2?", f"{i + 2}") for i in numbers)
        return (EvalTask("toy_sums", "acc,none", CHOICE, docs, held_out=held_out),)
