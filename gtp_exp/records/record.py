"""What a run leaves behind: results.json, and selected.jsonl beside it. The leaderboard reads nothing else.

`running` is written when a job starts, so that a killed job is visible as one that never finished.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from gtp_exp.data.benchmark import Answers
from gtp_exp.decode import decode
from gtp_exp.errors import UserError
from gtp_exp.files import write_whole
from gtp_exp.records.renamed import (
    ADDED_TO_RECORD,
    ADDED_TO_ROW,
    ADDED_TO_SELECTION,
    ADDED_TO_STAGE,
    with_present_names,
)

T = TypeVar("T")

VERSION = 3
# What a job writes into its folder or replaces there, beside its resolved.yaml and its model.
RECORD_NAME = "results.json"
SELECTED_NAME = "selected.jsonl"
SELECTED_FOLDER = "selected"
METRICS_NAME = "metrics.jsonl"
ROW_RESULTS_NAME = "row_results.safetensors"
TENSORBOARD_FOLDER = "tensorboard"
WORKER_LOG = "worker.log"
RUN_FILES = (
    *(RECORD_NAME, SELECTED_NAME, SELECTED_FOLDER, METRICS_NAME, ROW_RESULTS_NAME),
    *(TENSORBOARD_FOLDER, WORKER_LOG),
)
MODEL_FOLDER = "model"  # of the tuned model
MADE_FROM = "made_from.json"  # there: the stage that it came from
OPTIONAL = ("validation", "tracked_at")  # fields that a record without them does not name


class State(Enum):
    """Say how far a run has come."""

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Names:
    """The chosen option of each config group: what a person calls the parts of the run."""

    selector: str
    budget: str
    benchmark: str
    dataset: str
    model: str
    gradients: str
    train: str


@dataclass(frozen=True)
class StageCost:
    """Say what one stage of a run cost, and which cache entries hold it."""

    key: str
    seconds: float  # what computing it cost, also when this run found it in the cache
    cached: bool
    spent: float | None = None  # seconds that this run itself spent on it; None in records that do not tell

    @property
    def spent_here(self) -> float:
        """The seconds that this run itself spent on it, as far as the record tells."""
        if self.spent is not None:
            return self.spent
        return 0.0 if self.cached else self.seconds


@dataclass(frozen=True)
class PoolSummary:
    """Count the rows of the pool, and what became of them."""

    rows: int
    candidates: int
    excluded: Mapping[str, int]  # reason -> rows
    cut: int  # candidates shortened to model.max_length
    content: str  # hash of the candidates and their tokens: a file can be edited under its name


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows of the target or of a test task when they were tokenised."""

    used: int
    left_out: Mapping[str, int]  # reason -> rows
    cut: int  # rows shortened to model.max_length
    content: str  # hash of the used rows, and of the task that they test


@dataclass(frozen=True)
class SelectionSummary:
    """The chosen rows and what the hidden labels say of them; a selector never sees those labels."""

    n_selected: int
    n_tokens: int
    indices_ids: tuple[str, ...]  # most important first
    weights: tuple[float, ...]  # in the same order
    diagnostics: Mapping[str, Any]
    label_mix: Mapping[str, Mapping[str, float]]  # label -> value -> share of the chosen rows
    pool_mix: Mapping[str, Mapping[str, float]]  # the same for the pool
    exact_duplicates: int
    near_duplicates: int
    n_cut: int = 0  # chosen rows that lost their end, because they are longer than model.max_length
    target_labels: int = 0  # different labels that the pool has to teach for the target; 0: it tells of none
    labels_chosen: int = 0  # how many of these are among the chosen rows
    labels_entropy: float | None = None  # bits, of their shares among the chosen rows that have one of them
    repeats: int | None = None  # chosen rows less the originals that hidden labels call them copies of
    # What the choice depended on besides settings, rows and gradients: a list, scores, a library's release.
    read_beside_rows: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("indices_ids", "weights"):
            if len(getattr(self, name)) != self.n_selected:
                raise UserError(
                    f"selection.n_selected={self.n_selected} but selection.{name} has "
                    f"{len(getattr(self, name))} entries; the record contradicts itself, run the job again"
                )


@dataclass(frozen=True)
class TokenLoss:
    """Hold the mean loss of the answers' tokens of some rows, and its standard error over these rows."""

    nats_per_token: float
    nats_per_token_stderr: float  # 0 for a single row


@dataclass(frozen=True)
class ValidationSummary:
    """The loss on the rows that were held back from all that the job did before (`until=validation`)."""

    rows: int
    tuned: TokenLoss
    untuned: TokenLoss


@dataclass(frozen=True)
class FurtherTest:
    """What a run is worth on a benchmark that nothing aimed at; the fields are as in RunRecord."""

    answers: Answers | None = None
    rows: Mapping[str, RowCounts] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    untuned: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_all_metrics(self)


@dataclass(frozen=True)
class TrainingLength:
    """Says how long a fine-tune really was, which `train.min_steps` may have made longer than `epochs`."""

    epochs: int
    steps: int  # of the optimizer


@dataclass(frozen=True)
class RunRecord:
    """`metrics` and `untuned` map a task to its numbers and the name of its headline one, such as
    {"acc": 0.31, "acc_stderr": 0.027, "nats_per_token": 1.93, "nats_per_answer": 7.1, "headline": "acc"}.
    """

    state: State
    names: Names
    seed: int
    group: str  # the sweep
    config: Mapping[str, Any]  # resolved
    command: tuple[str, ...]
    git_sha: str | None
    packages: Mapping[str, str]  # name -> version
    started: str  # ISO 8601, UTC
    finished: str | None = None
    error: str | None = None
    stages: Mapping[str, StageCost] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)  # weights, chat template, precision, device
    selection_model: Mapping[str, Any] | None = None  # the same of the model that chose, if another one
    pool: PoolSummary | None = None
    rows: Mapping[str, RowCounts] = field(default_factory=dict)  # target, and each test task by name
    selection: SelectionSummary | None = None
    # target, selected, pool -> rows, and how many overlap with test rows (leakage.py)
    leakage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    untuned: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    validation: ValidationSummary | None = None  # in place of metrics, with until=validation
    version: int = VERSION
    answers: Answers | None = None  # of the benchmark; None in records that do not tell
    tests: Mapping[str, FurtherTest] = field(default_factory=dict)  # by the benchmark's name
    training: TrainingLength | None = None  # of the final fine-tune; None with until=selection
    tracked_at: str | None = None  # the run's page in W&B, where it was tracked online

    def __post_init__(self) -> None:
        for name in ("started", "finished"):
            _check_time(name, getattr(self, name))
        _check_all_metrics(self)

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self, dict_factory=_plain)
        return {name: value for name, value in plain.items() if name not in OPTIONAL or value is not None}

    @staticmethod
    def from_json(data: object) -> RunRecord:
        """Raises UserError for a field that is missing, unknown or of another type."""
        if not isinstance(data, dict) or "version" not in data:
            raise UserError("this is not a run record (no `version`); give folders that gtp-exp wrote")
        if data["version"] != VERSION:
            raise UserError(
                f"version={data['version']!r} of a run record is not {VERSION}; run the job again"
            )
        if isinstance(data.get("config"), dict):
            data = {**data, "config": with_present_names(data["config"])}
        if isinstance(data.get("selection"), dict):
            data = {**data, "selection": {**ADDED_TO_SELECTION, **data["selection"]}}
        if isinstance(data.get("stages"), dict):
            costs = data["stages"].items()
            stages = {name: {**ADDED_TO_STAGE, **c} if isinstance(c, dict) else c for name, c in costs}
            data = {**data, "stages": stages}
        return decode(RunRecord, {**ADDED_TO_RECORD, **data}, "", whole=True)


@dataclass(frozen=True)
class SelectedRow:
    """One chosen example as selected.jsonl holds it."""

    rank: int  # 1 is the most important
    id: str
    weight: float
    score: float
    messages: tuple[Mapping[str, Any], ...]  # {role, content}, and what else changes their meaning
    hidden: Mapping[str, Any] = field(default_factory=dict)  # labels that only reports read
    tools: str = ""  # JSON list of the tools that the assistant may call


def write_record(record: RunRecord, run_dir: Path) -> Path:
    """Writes results.json in one step: a reader sees the old or the new one, each whole."""
    path = run_dir / RECORD_NAME
    # sort_keys stays off: the order of stages and tasks is the pipeline's.
    _replace(path, [json.dumps(record.to_json(), indent=2, ensure_ascii=False, allow_nan=False), "\n"])
    return path


def read_record(path: Path) -> RunRecord:
    """path: a results.json. Raises UserError, which names the file, for a damaged or foreign one."""
    return _read(path, RunRecord.from_json)


def read_newer_record(path: Path) -> tuple[RunRecord, dict[str, Any]]:
    """The record, and apart what the file holds under names that are not known here: a newer program may
    write more. Raises UserError for anything else that is amiss."""
    return _read(path, _known_and_more)


def _known_and_more(data: Any) -> tuple[RunRecord, dict[str, Any]]:
    known = {f.name for f in fields(RunRecord)}
    names = sorted(set(data) - known) if isinstance(data, dict) else []
    more = {name: data.pop(name) for name in names}
    return RunRecord.from_json(data), more


def _read(path: Path, make: Callable[[Any], T]) -> T:
    try:
        return make(json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, it is not JSON: {error}; run the job again") from None


def write_selected(rows: Iterable[SelectedRow], run_dir: Path) -> Path:
    """Write selected.jsonl in one step, and return its path."""
    path = run_dir / SELECTED_NAME
    _replace(path, (json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
    return path


def read_selected(path: Path) -> Iterator[SelectedRow]:
    """Raises UserError with the line's number where a line is damaged."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line, parse_constant=_refuse_constant)
                if isinstance(row, dict):
                    row = {**ADDED_TO_ROW, **row}
                yield decode(SelectedRow, row, "", whole=True)
            except (UserError, ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: {error}") from None


def _replace(path: Path, chunks: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, chunks)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in items}


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON value")


def _check_time(name: str, value: str | None) -> None:
    try:
        if value is not None:
            datetime.fromisoformat(value)
    except ValueError:
        raise UserError(f"{name}={value!r} is not an ISO 8601 time") from None


def _check_all_metrics(tested: FurtherTest | RunRecord) -> None:
    for group, by_task in (("metrics", tested.metrics), ("untuned", tested.untuned)):
        for task, values in by_task.items():
            _check_metrics(f"{group}.{task}", values)


def _check_metrics(where: str, values: Mapping[str, float | str]) -> None:
    headline = values.get("headline")
    if not isinstance(headline, str) or headline == "headline" or headline not in values:
        raise UserError(
            f"{where}.headline={headline!r} must name one of {sorted(set(values) - {'headline'})}"
        )
    for name, value in values.items():
        if name == "headline":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{where}.{name}={value!r} must be a finite number")
