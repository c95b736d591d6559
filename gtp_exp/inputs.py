"""Load the pool, the target and the test rows of a job, tokenise each row once per model, and check them.

Everything that can be wrong with the data shows here, before the long work.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gtp_exp.config import describe
from gtp_exp.data.benchmark import HELD_OUT_LOSS, Benchmark, EvalTask, SplitsPool, described
from gtp_exp.data.examples import Example, Pool, TokenizedExample
from gtp_exp.data.generation import check_room_to_generate, warn_of_long_answers
from gtp_exp.data.hashing import digest, rows_hash
from gtp_exp.data.leakage import TestRows, flagged, leakage
from gtp_exp.data.near_duplicates import without_near_duplicates
from gtp_exp.data.scores import scores_of, with_scores
from gtp_exp.data.sources.base import DataSource, NearCopies
from gtp_exp.data.tokenization import OverLength, RowRules, tokenize, with_special_tokens
from gtp_exp.data.validation import NAME as VALIDATION
from gtp_exp.data.validation import Validation, hold_back
from gtp_exp.distributed import Processes
from gtp_exp.errors import UserError
from gtp_exp.model.loading import Model, check_token_ids
from gtp_exp.records.record import PoolSummary, RowCounts

TEST_RULES = RowRules(OverLength.DROP)  # a test asks what it asks, or does not ask

TARGET = "target"  # what a run's record calls the rows that a selector aims at, beside the tests' names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRows:
    """Hold examples that carry loss, with their token ids as one model reads them."""

    examples: tuple[Example, ...]
    tokenized: tuple[TokenizedExample, ...]  # in the same order
    positions: tuple[int, ...]  # among the examples that were given to be prepared
    excluded: Mapping[str, int]  # reason -> rows left out
    cut: int  # rows shortened to the model's context
    key: str  # hash of the examples, their token ids and labels

    def with_tokens(self, tokenized: tuple[TokenizedExample, ...]) -> PreparedRows:
        """Return the same rows read in another way, under a key of their own."""
        return replace(self, tokenized=tokenized, key=rows_hash(self.examples, tokenized))

    def counts(self) -> RowCounts:
        """Return what became of the rows, as results.json tells it."""
        return RowCounts(len(self.examples), self.excluded, self.cut, self.key)


@dataclass(frozen=True)
class PreparedTask:
    """Hold a test task with its answers as the tuned model reads them; None for a task without any."""

    task: EvalTask
    held_out: PreparedRows | None

    @functools.cached_property
    def description(self) -> Any:
        """Return the task as the cache key of its evaluation holds it; made once, for it may have many
        rows."""
        return describe(self.task)

    @property
    def content(self) -> str:
        """Return the hash of what is asked, and how: documents, prompts, metric and right answers."""
        return digest(self.description, self.held_out and self.held_out.key)


@dataclass(frozen=True)
class Inputs:
    """Hold all the data of a job, read and tokenised.

    `candidates` and `candidates_to_select` are the same rows in the same order, tokenised for the model that
    is tuned and for the one that chooses; where that is one model they are one object.
    """

    pool: Pool
    candidates: PreparedRows
    candidates_to_select: PreparedRows
    target: PreparedRows | None  # as the model that chooses reads it; None in-domain
    tasks: tuple[PreparedTask, ...]  # none where rows are held back for validation
    validation: PreparedRows | None = None  # what is held back, as the tuned model reads it
    further: Mapping[str, tuple[PreparedTask, ...]] = field(default_factory=dict)  # by benchmark
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of the candidates, by column

    @property
    def all_tasks(self) -> tuple[PreparedTask, ...]:
        """Return the tasks of the benchmark, and those of every benchmark that nothing aims at."""
        return (*self.tasks, *(test for tests in self.further.values() for test in tests))

    def named_rows(self) -> dict[str, PreparedRows]:
        """Return the target, what is held back of it and the test rows of each task, as far as there are any,
        by name."""
        rows = {TARGET: self.target, VALIDATION: self.validation}
        rows |= {test.task.name: test.held_out for test in self.tasks}
        return {name: part for name, part in rows.items() if part is not None}

    def further_row_counts(self, benchmark: str) -> dict[str, RowCounts]:
        """Return what became of the test rows of a benchmark that nothing aims at, by task."""
        return {
            test.task.name: replace(test.held_out.counts(), content=test.content)
            for test in self.further[benchmark]
            if test.held_out is not None
        }

    def row_counts(self) -> dict[str, RowCounts]:
        """Return what became of the rows of the target, of what is held back of it and of each test task, as
        results.json tells it."""
        contents = {test.task.name: test.content for test in self.tasks}
        counts = {name: rows.counts() for name, rows in self.named_rows().items()}
        return {
            name: replace(told, content=contents.get(name, told.content)) for name, told in counts.items()
        }

    def pool_summary(self) -> PoolSummary:
        """Return what became of the pool's rows, as results.json tells it."""
        return PoolSummary(
            rows=len(self.pool.examples) + sum(self.pool.skipped.values()),
            candidates=len(self.candidates.examples),
            excluded={**self.pool.skipped, **self.candidates.excluded},
            cut=self.candidates.cut,
            content=self.candidates.key,
        )


def load_inputs(
    dataset: DataSource,
    benchmark: Benchmark,
    tuned: Model,
    chooser: Model,
    prepare: Callable[[str, Sequence[Example], Model, RowRules], PreparedRows] | None = None,
    validation: Validation | None = None,
    further: Mapping[str, Benchmark] | None = None,
    check_pool: Callable[[Pool], None] = lambda pool: None,
) -> Inputs:
    """Read and tokenise all rows of a job. chooser: the model that chooses; may be the `tuned` one itself.

    prepare: used in place of `prepare_rows`. validation: what is held back before all else; then no test is
    read. further: benchmarks whose tests alone are read, by name. check_pool: looks at the whole pool, before
    anything is taken out of it. Raises UserError for data that cannot be
    read, for a part without a row that carries loss, and for a test whose answers do not fit the model.
    """
    prepare = prepare or prepare_rows
    pool, benchmark = with_scores(dataset.load(), dataset.scores), described(benchmark)
    check_pool(pool)
    if dataset.near_copies is NearCopies.DROP:
        pool = without_near_duplicates(pool)
    if isinstance(benchmark, SplitsPool):
        pool, benchmark = benchmark.split(pool)
    target, held_back = benchmark.target(), ()
    if validation is not None:
        pool, target, held_back = hold_back(pool, target, validation)
    rules = dataset.rules
    candidates = prepare("pool", pool.examples, tuned, rules)
    to_select = candidates
    if chooser is not tuned:
        to_select = prepare("pool of the selection model", candidates.examples, chooser, rules)
        candidates = _as_both_read(candidates, to_select)
    prepared_target = None if target is None else prepare("target", target, chooser, rules)
    prepared_validation = prepare(VALIDATION, held_back, tuned, TEST_RULES) if held_back else None

    def tests_of(tested: Benchmark) -> tuple[PreparedTask, ...]:
        tests = described(tested).tasks() if validation is None else ()
        _check_names(tests)
        for task in tests:
            check_room_to_generate(task, tuned.config.max_length)
        prepared = tuple(
            PreparedTask(
                task,
                prepare(f"test of {task.name}", task.held_out, tuned, TEST_RULES) if task.held_out else None,
            )
            for task in tests
        )
        for test in prepared:
            if test.held_out is not None:
                warn_of_long_answers(test.task, [row.n_answer_tokens for row in test.held_out.tokenized])
        return prepared

    tasks, further_tasks = tests_of(benchmark), {name: tests_of(b) for name, b in (further or {}).items()}
    return Inputs(
        pool,
        candidates,
        to_select,
        prepared_target,
        tasks,
        prepared_validation,
        further_tasks,
        scores_of(pool, candidates.examples, dataset.scores),
    )


def _check_names(tests: Sequence[EvalTask]) -> None:
    """Raise UserError for a test under whose name a run would record something else as well: the rows of its
    target, or another test."""
    names = Counter(test.name for test in tests)
    if TARGET in names:
        raise UserError(
            f"a test is called '{TARGET}', the name under which a run records its target rows; "
            "give the test another, such as benchmark.name=mine"
        )
    if twice := [name for name, times in names.items() if times > 1]:
        raise UserError(f"two tests are called '{twice[0]}'; results are recorded by name, so name each once")


def prepare_rows(name: str, examples: Sequence[Example], model: Model, rules: RowRules) -> PreparedRows:
    """Tokenise examples; leave out those without a completion token, count and log them.

    name: of the rows, for messages; rules: what becomes of those that cannot be taken as they are. Raises
    UserError if none is left.
    """
    tokens = tokenize(examples, model.tokenizer, max_length=model.config.max_length, rules=rules)
    excluded = {reason: len(ids) for reason, ids in tokens.excluded.items() if ids}
    for reason, count in excluded.items():
        log.warning("%s: left out %d of %d rows (%s)", name, count, len(examples), reason)
    if special := with_special_tokens(examples, model.tokenizer):
        log.warning(
            "%s: the text of %d rows names special tokens of the tokenizer (%s); they are read by "
            "dataset.special_tokens=%s",
            *(name, len(special), ", ".join(special[:3]), rules.special_tokens.value),
        )
    if tokens.truncated:
        limit = f"model.max_length={model.config.max_length}"
        log.warning("%s: cut %d of %d rows to %s", name, len(tokens.truncated), len(examples), limit)
    if not tokens.examples:
        raise UserError(
            f"the {name} has no row with a completion; {len(examples)} rows read, excluded: {excluded}"
        )
    largest = (max(row.input_ids) for row in tokens.examples)
    check_token_ids(largest, model.tokenizer, model.n_embeddings, model.config.name_or_path)
    kept = tuple(examples[i] for i in tokens.kept)
    cut = len(tokens.truncated)
    key = rows_hash(kept, tokens.examples)
    return PreparedRows(kept, tokens.examples, tokens.kept, excluded, cut, key)


def _as_both_read(candidates: PreparedRows, to_select: PreparedRows) -> PreparedRows:
    """Return the candidates, as the tuned model reads them, without those that the model that chooses cannot
    read. to_select: what it can."""
    if len(to_select.examples) == len(candidates.examples):
        return candidates
    lost = {
        reason: to_select.excluded.get(reason, 0) + candidates.excluded.get(reason, 0)
        for reason in {**to_select.excluded, **candidates.excluded}
    }
    tokenized = tuple(candidates.tokenized[i] for i in to_select.positions)
    return replace(
        candidates,
        examples=to_select.examples,
        tokenized=tokenized,
        positions=tuple(candidates.positions[i] for i in to_select.positions),
        excluded=lost,
        key=rows_hash(to_select.examples, tokenized),
    )


def check_agreement(inputs: Inputs, processes: Processes) -> None:
    """Raise UserError where the processes of a job have read different rows: they would divide different
    work."""
    further = {
        f"test of {name}/{test.task.name}": test.held_out
        for name, tests in inputs.further.items()
        for test in tests
        if test.held_out is not None
    }
    for name, rows in {"pool": inputs.candidates, **inputs.named_rows(), **further}.items():
        if len(set(processes.all_gather(rows.key))) > 1:
            raise UserError(f"the {name} changed while the job's processes read it; start the job again")


class Overlap:
    """Counts how much of the test rows, or of those held back for validation, stands in the target, in the
    pool and among the chosen rows.

    `report` is what results.json tells. Raises UserError for a target row that is a test row.
    """

    def __init__(self, inputs: Inputs) -> None:
        """Count target and pool at once."""
        tasks = [test.task for test in inputs.all_tasks]
        if inputs.validation is not None:
            tasks.append(EvalTask(VALIDATION, HELD_OUT_LOSS, {}, (), held_out=inputs.validation.examples))
        self._with = "test" if inputs.validation is None else "validation rows"
        self._tests = TestRows(tasks)
        self.report: dict[str, dict[str, int]] = {}
        if inputs.target is not None and all(row.messages for row in inputs.target.examples):
            self.count("target", inputs.target.examples)  # not a store's own rows, which have no text
        self.count("pool", inputs.candidates.examples)

    def count(self, part: str, examples: Sequence[Example]) -> None:
        """Count one part of the data (target, pool or selected), and log an overlap."""
        counts = leakage(self._tests, {part: examples})
        for line in flagged(counts):
            log.warning("overlap with the %s: %s", self._with, line)
        self.report |= counts
