"""A row of the public DATE-LM leaderboard for fine-tuning, as its submission form would write it.

DATE-LM (Jiao et al., arXiv 2507.09424): out of 200,000 Tulu-3 rows 10,000 are chosen for each of MMLU
(0-shot), GSM8K (8-shot) and BBH (3-shot), and Llama-3.1-8B is fine-tuned on them:
`experiment=date_lm_finetune`.

The form is github.com/DataAttributionEval/DATE-LM-Leaderboard at commit 810e5d3: pr.py writes metadata.json,
scripts/merge_data.py turns it into a row of data/DataSelection/finetune.json (Rank 0: the page counts ranks),
and app.py refuses a metric that is missing or not positive. The form also wants a file of attribution scores
(.pt), one number per pool row: `scores` in selection/<key>/selection.safetensors of the stage cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from statistics import fmean
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.leaderboard.comparability import comparable_settings
from gtp_exp.leaderboard.metrics import n_test_rows
from gtp_exp.leaderboard.records import Run

LEADERBOARD = "Fine-Tuning"
POOL_ROWS, CHOSEN_ROWS = 200_000, 10_000


class MethodType(Enum):
    """Name the kind of a method as the public DATE-LM leaderboard does."""

    GRADIENT = "Gradient"
    SIMILARITY = "Similarity"
    REPRESENTATION = "Representation-Based"
    MODELING = "Modeling"
    BASELINE = "Baseline"
    LEXICAL = "Lexical"
    OTHER = "Other"


@dataclass(frozen=True)
class Column:
    """One column of the leaderboard, and how a run of it is recognised."""

    name: str
    prefix: str  # of the names of lm-eval's tasks
    tasks: int
    shots: int
    metric: str
    by_rows: bool  # a mean over test rows, not over tasks: as the evaluators of open-instruct average


COLUMNS = (
    Column("MMLU", "mmlu", 57, 0, "acc", by_rows=True),
    Column("GSM8K", "gsm8k", 1, 8, "exact_match", by_rows=False),
    Column("BBH", "bbh", 27, 3, "exact_match", by_rows=False),
)


@dataclass(frozen=True)
class Submission:
    """What the form asks beside the numbers."""

    selector: str
    method: str
    method_type: MethodType | None  # None: Gradient where gradients were collected, else it must be given
    link: str  # to a paper, code or contact
    model_size: str | None  # as in 8B; None reads it off the model's name


def write(runs: Sequence[Run], submission: Submission, folder: Path, now: datetime) -> list[Path]:
    """metadata.json and row.json in a folder named as the form names it. now: UTC.

    Raises UserError that lists all that is missing or not as the leaderboard demands; nothing is written.
    """
    entry = row(runs, submission)
    stamp = now.strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{''.join(submission.method.split())}-{submission.method}"
    metadata = {
        "Metadata Path": f"submissions/{name}/metadata.json",
        "Leaderboard": LEADERBOARD,
        "Date of Submission": stamp,
        **{key: value for key, value in entry.items() if key != "Rank"},
    }
    files = {"metadata.json": metadata, "row.json": entry}
    try:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to --date-lm {folder}: {error.strerror}") from error
    return [folder / name / file for file in files]


def row(runs: Sequence[Run], submission: Submission) -> dict[str, Any]:
    """The leaderboard's entry; metrics in per cent, means over the seeds. runs: complete ones."""
    if not submission.link.strip():
        raise UserError("--date-lm needs --date-lm-link: the leaderboard wants a paper, code or contact")
    if not submission.method.strip() or "/" in submission.method:
        raise UserError(f"--date-lm-method {submission.method!r} cannot name a folder of the leaderboard")
    own = [run for run in runs if run.record.names.selector == submission.selector]
    if not own:
        others = ", ".join(sorted({run.record.names.selector for run in runs})) or "none"
        raise UserError(
            f"--date-lm: no complete run of the selector {submission.selector}; there are: {others}"
        )
    tested = {column: [run for run in own if _is(column, run)] for column in COLUMNS}
    faults = [f"{column.name}: no complete run of it" for column in tested if not tested[column]]
    every = [run for column_runs in tested.values() for run in column_runs]
    faults += _differences(every, lambda key: not _of_the_test(key))
    for column_runs in tested.values():
        faults += _differences(column_runs, _of_the_test)
    faults += _seeds(tested)
    values: dict[str, float] = {}
    for column, column_runs in tested.items():
        faults += [f"{run.name}: {fault}" for run in column_runs for fault in _faults(column, run)]
        numbers = [number for run in column_runs if (number := _score(column, run)) is not None]
        if numbers:
            values[column.name] = round(100 * fmean(numbers), 2)
            if not values[column.name] > 0:
                faults.append(f"{column.name} is 0, which the leaderboard takes for missing")
    size, kind = submission.model_size or _size(own[0]), submission.method_type or _type(own)
    if size is None:
        faults.append(f"the model's name {_model(own[0])} tells no size: give --date-lm-size, such as 8B")
    if kind is None:
        choices = ", ".join(member.value for member in MethodType)
        faults.append(f"{submission.selector} reads no gradients: give --date-lm-type, one of {choices}")
    if faults:
        # Records may come from others: no control character of theirs reaches the terminal.
        plain = ["".join(c for c in fault if c.isprintable()) for fault in dict.fromkeys(faults)]
        listed = "\n".join(f"  {fault}" for fault in plain)
        raise UserError(f"--date-lm: the row of {submission.selector} is not complete:\n{listed}")
    assert kind is not None
    return {
        "Rank": 0,
        "Method": submission.method,
        "Attribution Method Type": kind.value,
        "Model": _model(own[0]),
        "Model Size": size,
        "Paper/Code/Contact Link": submission.link,
        **{column.name: values[column.name] for column in COLUMNS},
    }


def _is(column: Column, run: Run) -> bool:
    names = _benchmark(run).get("names")
    return isinstance(names, list) and bool(names) and all(str(n).startswith(column.prefix) for n in names)


def _faults(column: Column, run: Run) -> list[str]:
    """What keeps one run from being a result of the leaderboard's task."""
    benchmark, record, faults = _benchmark(run), run.record, []
    if benchmark.get("num_fewshot") != column.shots:
        shots = benchmark.get("num_fewshot")
        faults.append(f"{column.name} with {shots} examples in the prompt, not {column.shots}")
    if benchmark.get("test_rows") is not None:
        faults.append(f"{column.name} on {benchmark['test_rows']} test rows per task, not on all")
    if len(record.metrics) != column.tasks:
        faults.append(f"{column.name} has {len(record.metrics)} of {column.tasks} tasks")
    if lacking := [task for task, values in record.metrics.items() if column.metric not in values]:
        faults.append(f"{column.name} lacks {column.metric} for {', '.join(sorted(lacking)[:3])}")
    if record.selection and record.selection.n_selected != CHOSEN_ROWS:
        faults.append(f"{record.selection.n_selected:,} rows chosen, not {CHOSEN_ROWS:,}")
    # Some rows of the pool may have been skipped on reading, some left without a completion.
    if record.pool and not 0.98 * POOL_ROWS <= record.pool.candidates <= POOL_ROWS:
        faults.append(f"a pool of {record.pool.candidates:,} candidates, not {POOL_ROWS:,}")
    if column.by_rows and (unknown := [task for task in record.metrics if n_test_rows(record, task) < 1]):
        faults.append(f"{column.name} lacks the number of test rows of {', '.join(sorted(unknown)[:3])}")
    return faults


def _score(column: Column, run: Run) -> float | None:
    """A share of 1, or None where a task lacks the metric."""
    record, total, weights = run.record, 0.0, 0
    for task, values in record.metrics.items():
        if column.metric not in values:
            return None
        weight = n_test_rows(record, task) if column.by_rows else 1
        total, weights = total + float(values[column.metric]) * weight, weights + weight
    return total / weights if weights else None


def _of_the_test(key: str) -> bool:
    """Whether a setting belongs to the benchmark, or tells of its rows; the pool is the same in all tests."""
    return key.startswith("benchmark.") or (key.startswith("content of ") and key != "content of pool")


def _differences(runs: Sequence[Run], wanted: Callable[[str], bool]) -> list[str]:
    """Settings, of those that are wanted, that runs of one row do not share."""
    told = comparable_settings(runs)[0].values()
    settings = [{key: value for key, value in flat.items() if wanted(key)} for flat in told]
    values_by_key = {
        key: sorted({flat.get(key, "(absent)") for flat in settings})
        for key in sorted(set().union(*settings))
    }
    return [
        f"runs differ in {key}: {', '.join(values)}; name fewer RUNS"
        for key, values in values_by_key.items()
        if len(values) > 1
    ]


def _seeds(tested: Mapping[Column, Sequence[Run]]) -> list[str]:
    """Seeds that one test has and another lacks, or has twice."""
    faults = []
    every = sorted({run.record.seed for runs in tested.values() for run in runs})
    for column, runs in tested.items():
        seeds = [run.record.seed for run in runs]
        if runs and (missing := [seed for seed in every if seed not in seeds]):
            faults.append(f"{column.name}: no complete run of seed {', '.join(map(str, missing))}")
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            faults.append(
                f"{column.name}: several runs of seed {', '.join(map(str, twice))}; name fewer RUNS"
            )
    return faults


def _benchmark(run: Run) -> Mapping[str, Any]:
    benchmark = run.record.config.get("benchmark")
    return benchmark if isinstance(benchmark, Mapping) else {}


def _model(run: Run) -> str:
    model = run.record.config.get("model")
    name = model.get("name_or_path") if isinstance(model, Mapping) else None
    return Path(str(name or run.record.names.model)).name


def _size(run: Run) -> str | None:
    """`Llama-3.1-8B` -> `8B`: the last number before a B or an M."""
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?[BM])(?!\w)", _model(run), re.IGNORECASE)
    return sizes[-1].upper() if sizes else None


def _type(runs: Sequence[Run]) -> MethodType | None:
    gradients = all(any(stage.startswith("gradients") for stage in run.record.stages) for run in runs)
    return MethodType.GRADIENT if gradients else None
