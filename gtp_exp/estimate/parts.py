"""The models and the data of some jobs, each read once; placeholders stand for what is not on this machine.

A placeholder has a size, as far as one is known, and a key made of the configuration: jobs that would share a
stage share it here too, but what a cache holds of such rows or of such a model is not found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gtp_exp.config import build, describe
from gtp_exp.data.benchmark import EvalTask, SplitsPool
from gtp_exp.data.examples import Example, Pool, TokenizedExample
from gtp_exp.data.hashing import content_hash
from gtp_exp.errors import UserError, first_line
from gtp_exp.estimate.runs import Earlier, Job, fingerprint
from gtp_exp.experiment import Experiment
from gtp_exp.inputs import Inputs, PreparedRows, load_inputs, prepare_rows
from gtp_exp.launch.launcher import Device
from gtp_exp.model.device import Precision, choose_device
from gtp_exp.model.loading import Model, ModelConfig, ModelNotHere, prepare
from gtp_exp.worker import assemble

ASSUMED_ROWS = 100_000  # of a pool whose size is known nowhere here
MOST_ROWS = 5_000  # that are all tokenised, in a few seconds; of more only a sample is
SAMPLED_ROWS = 400


@dataclass(frozen=True)
class Unread(Example):
    """Stands for a row that is not on this machine; its id is the key of the rows that it is one of."""

    rows_from: str = ""  # how their number is known; empty where it is not
    tokens: int = 0
    tokens_from: str = ""
    at_most: bool = False  # whether `tokens` is only a bound


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
    notes: Mapping[str, str]  # what is known of the rows and not known of the models, by config group
    row_tokens: float  # mean length of a candidate as the model that chooses reads it
    tuned_tokens: float  # as the tuned model does
    target_tokens: float  # mean length of a target row


@dataclass(frozen=True)
class _Rows:
    """Offers rows that are there, or placeholders, as a data set and a benchmark do."""

    pool: Pool = Pool(())
    targeted: tuple[Example, ...] | None = None
    tested: tuple[EvalTask, ...] = ()

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

    def _once(self, make: Callable[..., Any], *key: Any) -> Any:
        """Return `make()`, made once for a key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def experiment(self, job: Job) -> Experiment:
        """Return a job as the worker builds it. Raises UserError with the key that is wrong."""
        return assemble(
            job, lambda node, group: self._once(lambda: build(node, group), group, fingerprint(node))
        )

    def data(self, job: Job, experiment: Experiment) -> Data:
        """Return a job's models and rows, with placeholders for what is not here."""
        read = ("model", "selection_model", "dataset", "benchmark", "outputs", "launch")
        key = fingerprint([job.get(name) for name in read])
        return self._once(lambda: self._data(job, experiment), "data", key)

    def _data(self, job: Job, experiment: Experiment) -> Data:
        tuned = chooser = self._model(experiment.model, experiment)
        if experiment.selection_model is not None:
            chooser = self._model(experiment.selection_model, experiment)
        dataset, benchmark, unknown = experiment.dataset, experiment.benchmark, ""
        splits = isinstance(benchmark, SplitsPool)
        run = self._same_rows(job, "dataset", "model", "selection_model", *["benchmark"] * splits)
        pool, why = self._once(lambda: _tried(dataset.load), "pool", id(dataset))
        if pool is None:
            held_out = getattr(benchmark, "test_rows", 0) if splits else 0
            pool = Pool(_unread_pool(job, why, run, held_out))
            if splits:
                rows = (Unread(fingerprint(job["dataset"], job["benchmark"]), (), rows_from="test"),)
                task = EvalTask("held out", "", {}, (), held_out=rows * held_out)
                benchmark = _Rows(tested=(task,))
        elif run and run.pool.rows != len(pool.examples) + sum(pool.skipped.values()):
            run = None  # the data have changed since
        if not isinstance(benchmark, (SplitsPool, _Rows)):
            benchmark, unknown = self._once(functools.partial(_read, benchmark), "benchmark", id(benchmark))
        tokenise = functools.partial(self._tokenise, run)
        inputs = load_inputs(_Rows(pool), benchmark, tuned, chooser, tokenise)
        notes = {
            "model": _note_on_model(tuned, experiment),
            "selection_model": "" if chooser is tuned else _note_on_model(chooser, experiment),
            "dataset": _note_on_pool(inputs.candidates, tuned, run),
            "benchmark": unknown or _note_on_benchmark(inputs),
        }
        read = (inputs.candidates_to_select, inputs.candidates, inputs.target)
        return Data(tuned, chooser, inputs, notes, *(rows and _mean_tokens(rows) or 0.0 for rows in read))

    def _model(self, config: ModelConfig, experiment: Experiment) -> Model:
        """Return a model that is here, or a placeholder without a tokenizer."""
        root = Path(experiment.settings.outputs) / "cache"
        try:
            device = choose_device(experiment.launch.device.value)
        except UserError:  # the job is meant for a machine with a GPU
            device = torch.device("cpu")

        def make() -> Model:
            try:
                return prepare(config, root, device, make=False)
            except ModelNotHere:
                return Model(config, "", torch.float32, device, None, {"not here": describe(config)})

        return self._once(make, "model", id(config), root, device)

    def _same_rows(self, job: Job, *groups: str) -> Earlier | None:
        """Return a run that is like a job in some groups, of a selector that looks at no row if there is one:
        what it chose is the least biased in length."""
        found = [
            run for run in self.runs if all(run.record.config.get(name) == job.get(name) for name in groups)
        ]
        return min(found, key=lambda run: run.record.names.selector not in ("random", "full"), default=None)

    def _tokenise(
        self, run: Earlier | None, name: str, examples: Sequence[Example], model: Model
    ) -> PreparedRows:
        """Do what `prepare_rows` does, once for the same rows. run: one that has read the same pool."""
        run = run if name.startswith("pool") else None
        make = lambda: (_prepared(name, examples, model, run), examples)  # noqa: E731  an id is of what is kept
        return self._once(make, "rows", id(examples), id(model), id(run))[0]


def _prepared(name: str, examples: Sequence[Example], model: Model, run: Earlier | None) -> PreparedRows:
    """Do what `prepare_rows` does, as far as it can be done soon, or at all.

    The rows of a test have no part in a key and are not tokenised. Of many rows some tell the length, and an
    earlier run tells which carry loss; without one, all are taken to.
    """
    known = unread(examples)
    if known is not None:
        return _counted(examples, known.tokens, known.id)
    if name.startswith("test"):
        return _counted(examples, 0, content_hash(examples))
    if model.tokenizer is None:
        sizes = [sum(len(message.content) for message in row.messages) / 4 for row in examples]
        mean = sum(min(model.config.max_length, size) for size in sizes) / max(1, len(sizes))
        return _counted(examples, round(max(1, mean)), content_hash(examples))
    if len(examples) <= MOST_ROWS:
        return prepare_rows(name, examples, model)
    sample = prepare_rows(name, examples[:: len(examples) // SAMPLED_ROWS], model).tokenized
    mean = round(sum(row.n_tokens for row in sample) / len(sample))
    if run is None:
        return _counted(examples, mean, content_hash(examples))
    return _counted(examples[: run.pool.candidates], mean, run.pool.content)


def _counted(examples: Sequence[Example], tokens: int, key: str) -> PreparedRows:
    """Return rows of one length, without their token ids."""
    row = TokenizedExample("", (0,) * tokens, ())
    n = len(examples)
    return PreparedRows(tuple(examples), (row,) * n, tuple(range(n)), {}, 0, key)


def _tried(load: Callable[[], Pool]) -> tuple[Pool | None, str]:
    """Return a pool, or None and why it cannot be read."""
    try:
        return load(), ""
    except (UserError, OSError) as error:
        return None, _why(error)


def _read(benchmark: Any) -> tuple[_Rows, str]:
    """Return what a benchmark offers, or a row and a task that stand for it and why it cannot be read."""
    try:
        return _Rows(targeted=benchmark.target(), tested=benchmark.tasks()), ""
    except Exception as error:  # whatever a library raises without network
        key = fingerprint(describe(benchmark))
        return _Rows(targeted=(Unread(key, ()),), tested=(EvalTask(key, "", {}, None),)), (
            f"its rows are unknown and left out of the sums ({_why(error)})"
        )


def _unread_pool(job: Job, why: str, run: Earlier | None, held_out: int) -> tuple[Unread, ...]:
    """Return the candidates of a pool that is not here, as an earlier run found them or as the configuration
    tells. held_out: rows that the benchmark takes."""
    if run is not None:
        row = Unread(
            run.pool.content,
            (),
            "",
            run.name,
            round(run.selection.n_tokens / run.selection.n_selected),
            f"those of {run.name}",
        )
        return (row,) * run.pool.candidates
    rows, place = published_rows(job["dataset"])
    key = fingerprint(job["dataset"], job["benchmark"] if held_out else None)
    bound = "at most, by model.max_length"
    return (Unread(key, (), "", f"{place}, {why}", job["model"]["max_length"], bound, True),) * (
        rows - held_out
    )


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


def _why(error: Exception) -> str:
    message = first_line(error)
    absent = any(word in message for word in ("Offline", "offline", "from the hub"))
    return "not on this machine" if absent else message


def _note_on_model(model: Model, job: Experiment) -> str:
    """Say what is not known of a model; empty where all is."""
    if model.tokenizer is None:
        return "not on this machine; what it has made is not found"
    guessed = model.config.precision is Precision.AUTO and job.launch.device is not Device.CPU
    if guessed and model.dtype is torch.float32:
        return "no GPU here, so in fp32; what it has made in bf16 is not found"
    return ""


def _note_on_pool(rows: PreparedRows, model: Model, run: Earlier | None) -> str:
    """Say how many candidates there are, how long they are, and how that is known."""
    left_out = sum(rows.excluded.values())
    rows_from = f"read, {left_out:,} left out" if left_out else "read"
    tokens_from = "tokenised"
    if known := unread(rows.examples):
        rows_from, tokens_from = known.rows_from, known.tokens_from
    elif model.tokenizer is None:
        tokens_from = "characters / 4, the tokenizer is not here"
    elif len(rows.tokenized) > MOST_ROWS:
        rows_from = f"those that {run.name} has used" if run else "read, all taken to have a completion"
        tokens_from = f"tokenised {SAMPLED_ROWS:,} of them"
    n, mean = len(rows.examples), _mean_tokens(rows)
    return f"{n:,} rows ({rows_from}), {mean:,.0f} tokens a row ({tokens_from})"


def _note_on_benchmark(inputs: Inputs) -> str:
    """Say how many rows a benchmark has as target and as test."""
    tasks = [test.task for test in inputs.tasks]
    sizes = [len(task.docs or task.held_out) for task in tasks]
    target = (
        "the pool is the target" if inputs.target is None else f"{len(inputs.target.examples):,} target rows"
    )
    tests = f"{sum(sizes):,} test rows" if all(sizes) else "as many test rows as lm-eval holds"
    return f"{target}, {tests} in {len(tasks)} task{'s' * (len(tasks) != 1)}"


def _mean_tokens(rows: PreparedRows) -> float:
    return sum(row.n_tokens for row in rows.tokenized) / len(rows.tokenized)
