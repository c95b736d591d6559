"""The records of runs as one flat row each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gtp_exp.leaderboard.records import Run, load
from gtp_exp.paths import at_home
from gtp_exp.records.record import RunRecord


def results(folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Return one flat dict per run below the folder (or folders), for `pandas.DataFrame(...)`.

    Columns: run (its folder's last two names), directory, the option of each group (selector, budget, ...),
    seed, state, started, n_selected, seconds (of all stages, as if nothing had been cached) and error; then,
    for each task, `TASK/METRIC` for its headline metric and `TASK/nats_per_token` where there is one (of
    further `tests` under `BENCHMARK/TASK/METRIC`), and for
    runs until=validation `validation/nats_per_token` and `validation/nats_per_token_stderr`.
    Every row has every column; None stands where a run has no such value. A record that cannot be read has
    the state "unreadable" and says why in `error`. Raises UserError for a folder that is missing or
    holds no run.
    """
    folders = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    loaded = load([at_home(path) for path in folders])
    rows = [_row(run) for run in loaded.runs]
    rows += [{"run": each.name, "state": "unreadable", "error": each.reason} for each in loaded.unreadable]
    # Columns of every run first, then those of the tasks; each in the order in which they were met.
    columns = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: "/" in name)
    return [{name: row.get(name) for name in columns} for row in rows]


def _row(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "run": run.name,
        "directory": str(run.directory),
        **asdict(record.names),
        "seed": record.seed,
        "state": record.state.value,
        "started": record.started,
        "n_selected": record.selection.n_selected if record.selection else None,
        "seconds": sum(stage.seconds for stage in record.stages.values()),
        "error": record.error,
        **_headlines(record.metrics),
        **{
            f"{name}/{column}": value
            for name, test in record.tests.items()
            for column, value in _headlines(test.metrics).items()
        },
        **_validation(record),
    }


def _validation(record: RunRecord) -> dict[str, float]:
    """The loss on the rows that were held back, where there are any."""
    if record.validation is None:
        return {}
    return {f"validation/{name}": value for name, value in asdict(record.validation.tuned).items()}


def _headlines(metrics: Mapping[str, Mapping[str, float | str]]) -> dict[str, float | str]:
    """Each task's headline metric, and its held-out loss."""
    return {
        f"{task}/{name}": values[name]
        for task, values in metrics.items()
        for name in dict.fromkeys((str(values["headline"]), "nats_per_token"))
        if name in values
    }
