"""The models and the data of some jobs, each read once; placeholders stand for what is not on this machine.

A placeholder has a size, as far as one is known, and a key made of the configuration: jobs that would share a
stage share it here too, but what a cache holds of such rows or of such a model is not found.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gtp_exp.config import build, describe
from gtp_exp.data.benchmark import HELD_OUT_LOSS, Benchmark, EvalTask, SplitsPool, described
from gtp_exp.data.examples import Example, Pool, TokenizedExample
from gtp_exp.data.hashing import content_hash
from gtp_exp.data.sources.base import DataSource, NearCopies
from gtp_exp.data.tokenization import RowRules
from gtp_exp.errors import NotHere, UserError, first_line
from gtp_exp.estimate.runs import Earlier, Job, fingerprint
from gtp_exp.experiment import Experiment, Until
from gtp_exp.inputs import Inputs, PreparedRows, load_inputs, prepare_rows
from gtp_exp.launch.launcher import Device
from gtp_exp.model.device import Precision, choose_device
from gtp_exp.model.loading import Model, ModelConfig, ModelNotHere, prepare
from gtp_exp.paths import at_home
from gtp_exp.selection.base import Selector
from gtp_exp.worker import assemble, check_rows

ASSUMED_ROWS = 100_000  # of a pool whose size is known nowhere here
MOST_ROWS = 5_000  # that are all tokenised, in a few seconds; of more only a sample is
SAMPLED_ROWS = 400


@dataclass(frozen=True)
class Unread(Example):
    """Stands for a row that is not on this machine; its id is the key of the rows that it is one of."""

    tokens: int = 0
    at_most: bool = False  # whether `tokens` is only a bound
    note: str = ""  # what is known of the rows


def unread(rows: Sequence[Example]) -> Unread | None:
    """Return one of some rows that are not on this machine; None where they are."""
    first = next(iter(rows), None)
    return first if isinstance(first, Unread) else None


@dataclass(frozen=True)
class Data:
    """Holds the models and the rows of a job, and what is known of them."""

    tuned: Model
    chooser: Model
    inputs: Inputs
    notes: Mapping[str, str]  # by config group
    row_tokens: float  # mean length of a candidate as the model that chooses reads it
    tuned_tokens: float  # as the tuned model does
    target_tokens: float  # mean length of a target row


@dataclass(frozen=True)
class _Rows(DataSource):
    """Offers rows as a data set and a benchmark do."""

    pool: Pool
    targeted: tuple[Example, ...] | None
    tested: tuple[EvalTask, ...]

    def load(self) -> Pool:
        return self.pool

    def target(self) -> tuple[Example, ...] | None:
        return self.targeted

    def tasks(self) -> tuple[EvalTask, ...]:
        return self.tested


class Parts:
    """Builds jobs and reads what they are made of, each part once; makes and downloads nothing."""

    def __init__(self, runs: Sequence[Earlier] = ()) -> None:
        """Read nothing yet. runs: complete ones, which may know of rows that are not here."""
        self.runs = runs
        self._kept: dict[Any, Any] = {}

    def _once(self, make: Callable[[], Any], *key: Any) -> Any:
        """Return `make()`, made once for a key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def experiment(self, job: Job) -> Experiment:
        """Return a job as the worker builds it. Raises UserError with the key that is wrong."""
        return assemble(
            job, lambda node, name: self._once(lambda: build(node, name), name, fingerprint(node))
        )

    def data(self, job: Job, experiment: Experiment) -> Data:
        """Return a job's models and rows, with placeholders for what is not here. Raises UserError for a job
        that is refused at once, for its files: it has no price."""
        asks = type(experiment.selector).check_pool is not Selector.check_pool
        looks_at = ("dataset", "benchmark", "tests", "until", *["selector"] * asks)
        self._once(lambda: _check(job), "checked", fingerprint([job.get(name) for name in looks_at]))
        read = ("model", "selection_model", "dataset", "benchmark", "outputs", "launch")
        parts = [*(job.get(name) for name in read), job.get("tests") or {}, held_back(job)]
        return self._once(lambda: self._data(job, experiment), fingerprint(parts))

    def _data(self, job: Job, experiment: Experiment) -> Data:
        tuned = self._model(experiment.model, experiment)
        chooser = self._model(experiment.selection_model or experiment.model, experiment)
        dataset, splits = experiment.dataset, isinstance(experiment.benchmark, SplitsPool)
        held_out = getattr(experiment.benchmark, "test_rows", 0) if splits else 0
        validation = experiment.settings.held_back
        takes_rows = splits or validation is not None
        run = self._run_like(job, ["dataset", "model", "selection_model", *["benchmark"] * takes_rows])
        pool, why = self._once(lambda: _tried(dataset.load), "pool", id(dataset))
        if pool is None:
            pool = Pool(_unread_pool(job, why, run, held_out))
        elif run and run.pool.rows != len(pool.examples) + sum(pool.skipped.values()):
            run = None  # the data have changed since
        benchmark, why = self._benchmark(job, experiment.benchmark, pool, held_out)
        further, unread_tests = self._further(job, experiment)
        if why or (unread(pool.examples) and benchmark.target() is None):
            validation = None  # which rows are held back cannot be known
        prepare_soon = functools.partial(self._prepare, run)
        rows = _Rows(
            pool,
            None,
            (),
            over_length=dataset.over_length,
            special_tokens=dataset.special_tokens,
            scores=[] if unread(pool.examples) else dataset.scores,
            near_copies=NearCopies.KEEP if unread(pool.examples) else dataset.near_copies,
        )
        inputs = load_inputs(rows, benchmark, tuned, chooser, prepare_soon, validation, further)
        notes = {
            "dataset": _note_on_pool(inputs.candidates, tuned, run),
            "benchmark": why or _note_on_benchmark(inputs),
            "tests": _note_on_tests(inputs, unread_tests),
            "model": _note_on_model(tuned, experiment),
            "selection_model": _note_on_model(chooser, experiment) if chooser is not tuned else "",
        }
        read = (inputs.candidates_to_select, inputs.candidates, inputs.target)
        return Data(tuned, chooser, inputs, notes, *(rows and mean_tokens(rows) or 0.0 for rows in read))

    def _benchmark(self, job: Job, benchmark: Benchmark, pool: Pool, held_out: int) -> tuple[Benchmark, str]:
        """Return a benchmark, with placeholders for rows that cannot be read, and a note on these."""
        if isinstance(benchmark, SplitsPool):
            key = fingerprint(job["benchmark"], job["dataset"])
            task = EvalTask(key, "", {}, (), held_out=(Unread(key, ()),) * held_out)
            return (_Rows(pool, None, (task,)) if unread(pool.examples) else benchmark), ""
        tests, rows_of, key = held_back(job) is None, described(benchmark), fingerprint(job["benchmark"])
        # Each by itself: tests that are not here change nothing in the target, and in-domain there is none.
        target, no_target = self._once(lambda: _tried(rows_of.target), "target", id(benchmark))
        tasks, no_tests = (
            self._once(lambda: _tried(rows_of.tasks), "tasks", id(benchmark)) if tests else ((), "")
        )
        if no_target:
            target = (Unread(key, ()),)
        if no_tests:
            tasks = (_unread_test(key),)
        absent = " and ".join(name for name, why in (("target", no_target), ("test", no_tests)) if why)
        note = f"its {absent} rows are left out of the sums ({no_target or no_tests})" if absent else ""
        return _Rows(pool, target, tasks), note

    def _further(self, job: Job, experiment: Experiment) -> tuple[dict[str, Benchmark], dict[str, str]]:
        """Return the further tests, with placeholders for what cannot be read, and why it cannot, by name."""
        further: dict[str, Benchmark] = {}
        unread_tests: dict[str, str] = {}
        for name, benchmark in experiment.tests.items():
            tests = held_back(job) is None
            reading = functools.partial(_tried, described(benchmark).tasks)
            tasks, why = self._once(reading, "further", id(benchmark)) if tests else ((), "")
            if why:
                unread_tests[name] = why
                tasks = (_unread_test(fingerprint(job["tests"][name])),)
            further[name] = _Rows(Pool((), {}), None, tuple(tasks))
        return further, unread_tests

    def _model(self, config: ModelConfig, experiment: Experiment) -> Model:
        """Return a model that is here, or a placeholder without a tokenizer."""
        root, device = at_home(experiment.settings.outputs) / "cache", torch.device("cpu")
        with contextlib.suppress(UserError):  # where the job is meant for another machine, with a GPU
            device = choose_device(experiment.launch.device.value)

        def make() -> Model:
            try:
                return prepare(config, root, device, make=False)
            except ModelNotHere:
                return Model(config, "", torch.float32, device, None, {"not here": describe(config)})

        return self._once(make, "model", id(config), root, device)

    def _run_like(self, job: Job, groups: Sequence[str]) -> Earlier | None:
        """Return a run that is like a job in some groups, of a selector that looks at no row if there is one:
        what it chose is the least biased in length."""
        alike = [
            run
            for run in self.runs
            if all(run.record.config.get(g) == job.get(g) for g in groups)
            and held_back(run.record.config) == held_back(job)
        ]
        return min(alike, key=lambda run: run.record.names.selector not in ("random", "full"), default=None)

    def _prepare(
        self, run: Earlier | None, name: str, examples: Sequence[Example], model: Model, rules: RowRules
    ) -> PreparedRows:
        """Do what `prepare_rows` does, soon and once for the same rows. run: one that has read the pool."""
        run = run if name.startswith("pool") else None
        # The rows themselves are kept beside what they became, or another's could get their id.
        prepared, _ = self._once(
            lambda: (_prepared(name, examples, model, rules, run), examples),
            *(id(examples), id(model), id(run), rules),
        )
        return prepared


def _prepared(
    name: str, examples: Sequence[Example], model: Model, rules: RowRules, run: Earlier | None
) -> PreparedRows:
    """Do what `prepare_rows` does, as far as it can be done, and soon.

    Of many rows some tell the length, and an earlier run tells which carry loss; without one, all are taken
    to.
    """
    key, tokens, limit = "", 0.0, model.config.max_length
    if known := unread(examples):
        key, tokens = known.id, known.tokens
    elif model.tokenizer is None and examples:
        sizes = [sum(len(message.content) for message in row.messages) / 4 for row in examples]
        tokens = max(1.0, sum(min(limit, size) for size in sizes) / len(sizes))
    else:
        if len(examples) <= MOST_ROWS:
            return prepare_rows(name, examples, model, rules)
        tokens = mean_tokens(prepare_rows(name, examples[:: len(examples) // SAMPLED_ROWS], model, rules))
        if run is not None:
            key, examples = run.pool.content, examples[: run.pool.candidates]
    n, row = len(examples), TokenizedExample("", (0,) * round(tokens), ())
    return PreparedRows(tuple(examples), (row,) * n, tuple(range(n)), {}, 0, key or content_hash(examples))


def _check(job: Job) -> None:
    """Look at the files of a job, as it does at once; what is not on this machine is no reason to refuse."""
    with contextlib.suppress(NotHere):
        check_rows(job)


def held_back(job: Job) -> Any:
    """Return what the configuration says of the rows that a job holds back; None where it holds back none."""
    return job.get("validation") if job.get("until") == Until.VALIDATION.value else None


def mean_tokens(rows: PreparedRows) -> float:
    """Return the mean number of tokens of a row."""
    return sum(row.n_tokens for row in rows.tokenized) / len(rows.tokenized)


def _tried(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return what could be read, or None and why it could not."""
    try:
        return read(), ""
    except Exception as error:  # whatever a library raises without network
        why = first_line(error)
        absent = any(word in why for word in ("Offline", "offline", "from the hub"))
        return None, "not on this machine" if absent else why


def _unread_pool(job: Job, why: str, run: Earlier | None, held_out: int) -> tuple[Unread, ...]:
    """Return the candidates of a pool that is not here, as an earlier run found them or as the configuration
    tells. held_out: rows that the benchmark takes."""
    if run is not None:
        n, tokens = run.pool.candidates, round(run.selection.n_tokens / run.selection.n_selected)
        key, place, how = run.pool.content, run.name, f"those of {run.name}"
    else:
        (n, place), tokens = published_rows(job["dataset"]), job["model"]["max_length"]
        key, how = (
            fingerprint(job["dataset"], job["benchmark"] if held_out else None),
            "at most, by model.max_length",
        )
        n -= held_out
    note = f"{n:,} rows ({place}, {why}), {tokens:,} tokens a row ({how})"
    return (Unread(key, (), tokens=tokens, at_most=run is None, note=note),) * n


def _unread_test(key: str) -> EvalTask:
    """Return what stands for tests that are not on this machine: no task that lm-eval would look for."""
    return EvalTask(key, HELD_OUT_LOSS, {}, None)


def published_rows(node: Mapping[str, Any]) -> tuple[int, str]:
    """Return the size that the configuration states, of a subset, of the whole set or of its sources; and
    where."""
    whole, place = node.get("expected_rows"), "dataset.expected_rows"
    if isinstance(sources := node.get("sources"), list):
        counts = [source.get("rows") or source.get("expected_rows") for source in sources]
        whole, place = sum(counts) if all(counts) else None, "expected_rows of dataset.sources"
    rows = node.get("rows")
    if isinstance(rows, int):
        return (rows, "dataset.rows") if whole is None or rows <= whole else (whole, place)
    if isinstance(whole, int):
        return whole, place
    return ASSUMED_ROWS, f"unknown: {ASSUMED_ROWS:,} rows assumed"


def _note_on_pool(rows: PreparedRows, model: Model, run: Earlier | None) -> str:
    """Say how many candidates there are, how long they are, and how that is known."""
    if known := unread(rows.examples):
        return known.note
    left_out, read, how = sum(rows.excluded.values()), "read", "tokenised"
    if left_out:
        read = f"read, {left_out:,} left out"
    if model.tokenizer is None:
        how = "characters / 4, the tokenizer is not here"
    elif len(rows.examples) > MOST_ROWS:
        read = f"those that {run.name} has used" if run else "read, all taken to have a completion"
        how = f"tokenised {SAMPLED_ROWS:,} of them"
        how += "" if run else "; which stages are done is not known"
    return f"{len(rows.examples):,} rows ({read}), {mean_tokens(rows):,.0f} tokens a row ({how})"


def _note_on_benchmark(inputs: Inputs) -> str:
    """Say how many rows a benchmark has as target and as test."""
    sizes = [len(test.task.docs or test.task.held_out) for test in inputs.tasks]
    aim = (
        "the pool is the target" if inputs.target is None else f"{len(inputs.target.examples):,} target rows"
    )
    if inputs.validation is not None:
        return f"{aim}, {len(inputs.validation.examples):,} rows held back for validation, no test"
    tests = f"{sum(sizes):,} test rows" if all(sizes) else "as many test rows as lm-eval holds"
    return f"{aim}, {tests} in {len(sizes)} task{'s' * (len(sizes) != 1)}"


def _note_on_tests(inputs: Inputs, unread_tests: Mapping[str, str]) -> str:
    """Say how many rows every further test has."""
    notes = []
    for name, tests in inputs.further.items():
        sizes = [len(test.task.docs or test.task.held_out) for test in tests]
        told = f"{sum(sizes):,} test rows" if all(sizes) else "as many test rows as lm-eval holds"
        notes.append(
            f"{name} left out of the sums ({unread_tests[name]})"
            if name in unread_tests
            else f"{name} with {told} in {len(sizes)} task{'s' * (len(sizes) != 1)}"
        )
    return ", ".join(notes) if notes and inputs.validation is None else ""


def _note_on_model(model: Model, job: Experiment) -> str:
    """Say what is not known of a model; empty where all is."""
    if model.tokenizer is None:
        return "not on this machine; which of its stages are done is not known"
    guessed = model.config.precision is Precision.AUTO and job.launch.device is not Device.CPU
    if guessed and model.dtype is torch.float32:
        return "fp32, for want of a GPU here; which stages are done in bf16 is not known"
    return ""
