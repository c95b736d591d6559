"""What the tuned model scored on every test row, in a small file beside results.json.

The leaderboard resamples test rows by it. Rows stand in the order of the task's documents, without those that
do not fit the model. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gtp_exp.errors import UserError
from gtp_exp.files import written_aside
from gtp_exp.records.record import ROW_RESULTS_NAME

ANSWER_TOKENS = "answer_tokens"  # of every row: what a mean per token weighs it by
TaskRows = Mapping[str, np.ndarray]  # by metric: the values of the test rows, float64 [rows]


def write_row_results(
    results: Mapping[str, Mapping[str, Mapping[str, Sequence[float] | np.ndarray]]], directory: Path
) -> None:
    """Write values of test rows by benchmark ("" for the one whose target was aimed at), task and metric, in
    one step."""
    arrays = {
        json.dumps([benchmark, task, metric]): np.asarray(values, dtype=np.float64)
        for benchmark, tasks in results.items()
        for task, metrics in tasks.items()
        for metric, values in metrics.items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    with written_aside(directory / ROW_RESULTS_NAME) as partial:
        save_file(arrays, partial)


def read_row_results(directory: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Return what `write_row_results` has written; {} where there is no such file. Raises UserError for a
    damaged one."""
    path = directory / ROW_RESULTS_NAME
    results: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    if not path.is_file():
        return results
    try:
        for key, values in load_file(path).items():
            benchmark, task, metric = json.loads(key)
            results.setdefault(benchmark, {}).setdefault(task, {})[metric] = values
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; run the job again") from None
    return results
