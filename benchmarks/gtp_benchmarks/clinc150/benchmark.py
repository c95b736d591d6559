"""The benchmark: a few requests of each intent of some domains to aim at, and as test a choice among intents
of the domain."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

from gtp_benchmarks.choice_task import ChoiceMetric, choice_task
from gtp_benchmarks.clinc150.intents import INTENTS
from gtp_benchmarks.clinc150.phrasing import asked, in_words
from gtp_benchmarks.clinc150.source import Request, Split, Version, check_domains, read_split
from gtp_exp.data.benchmark import Answers, EvalTask
from gtp_exp.data.examples import Example, Message
from gtp_exp.errors import UserError


@dataclass(frozen=True)
class Clinc150Benchmark:
    """Describes the benchmark; every domain is a subtask. Target rows come from the validation split, test
    rows from the test split."""

    answers: ClassVar[Answers] = Answers.CHOICES

    path: Optional[str] = None  # of a copy of data_full.json; None reads the hub
    domains: list[str] = field(default_factory=lambda: ["banking"])
    target_rows: int = 2  # per intent
    test_rows: Optional[int] = 150  # per domain; None for all 450
    choices: int = 5  # of a test row
    chat: bool = True  # ask through the tokenizer's chat template
    seed: int = 0  # of what is drawn; not the run's seed, so that every run has the same test
    in_domain: bool = False  # whether the pool itself is the target

    def __post_init__(self) -> None:
        check_domains(self.domains, "benchmark.domains")
        if self.target_rows < 1 or (self.test_rows is not None and self.test_rows < 1):
            raise UserError(
                f"benchmark.target_rows={self.target_rows} and test_rows={self.test_rows} must be 1 or more"
            )
        most = min(len(INTENTS[domain]) for domain in self.domains)
        if not 2 <= self.choices <= most:
            raise UserError(f"benchmark.choices={self.choices} must lie in 2 to {most}, a domain's intents")

    def target(self) -> tuple[Example, ...] | None:
        """Return the rows that a selector may see, the same number of each intent; None in-domain."""
        if self.in_domain:
            return None
        rows = self._read(Split.VALIDATION)
        return tuple(
            Example(
                f"{domain}-validation-{intent}-{i}",
                (Message("user", asked(row.text)), Message("assistant", in_words(intent))),
                domain,
            )
            for domain in self.domains
            for intent in INTENTS[domain]
            for i, row in enumerate(
                self._draw([r for r in rows if r.intent == intent], self.target_rows, intent, "target_rows")
            )
        )

    def tasks(self) -> tuple[EvalTask, ...]:
        """Return one multiple-choice task per domain."""
        rows = self._read(Split.TEST)
        tasks = []
        for domain in self.domains:
            own = [row for row in rows if row.domain == domain]
            drawn = self._draw(
                own, len(own) if self.test_rows is None else self.test_rows, domain, "test_rows"
            )
            docs = [self._doc(f"{domain}-test-{i}", row) for i, row in enumerate(drawn)]
            name = f"clinc150_{domain}"
            tasks.append(choice_task(name, docs, metric=ChoiceMetric.ACC, chat=self.chat, subtask=domain))
        return tuple(tasks)

    def _read(self, split: Split) -> list[Request]:
        return read_split(split, Version.PLUS, self.path, "benchmark.path")  # the same in every version

    def _draw(self, rows: list[Request], n: int, of: str, key: str) -> list[Request]:
        """Return n of the rows in random order, which only the seed and their intent or domain decide."""
        if n > len(rows):
            raise UserError(f"benchmark.{key}={n}, but there are only {len(rows)} rows of '{of}'; lower it")
        return random.Random(f"{self.seed} {of}").sample(rows, n)

    def _doc(self, name: str, row: Request) -> dict[str, Any]:
        """Return a test row: the right intent among others of its domain, in random order."""
        rng = random.Random(f"{self.seed} {row.text}")
        others = [intent for intent in INTENTS[row.domain] if intent != row.intent]
        choices = [row.intent, *rng.sample(others, self.choices - 1)]
        rng.shuffle(choices)
        gold = choices.index(row.intent)
        return {"id": name, "query": asked(row.text), "choices": list(map(in_words, choices)), "gold": gold}
