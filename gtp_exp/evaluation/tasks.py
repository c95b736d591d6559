"""Evaluate a model on one task: lm-eval's metrics, and the held-out loss of the test answers beside them."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.data.examples import TokenizedExample
from gtp_exp.data.generation import bundled_tasks
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError, first_line
from gtp_exp.evaluation.choice_loss import choice_loss, choice_parts
from gtp_exp.evaluation.held_out import held_out_loss
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.sharding import dividing
from gtp_exp.records.row_results import write_row_results

if TYPE_CHECKING:
    from gtp_exp.evaluation.chat_model import Documents

log = logging.getLogger(__name__)

ByRow = dict[str, list[float]]  # by metric, the value of every test row
SEED = 1234  # of lm-eval's samplers: part of the task, the same in every run


def evaluate(
    task: EvalTask,
    loaded: LoadedModel,
    *,
    held_out: Sequence[TokenizedExample],
    batch_size: int,
    directory: Path,
    processes: Processes = ALONE,
) -> dict[str, float | str]:
    """Return the metrics of one task, in every process; each takes part of the documents, or all of them
    where the processes share the model's weights.

    Writes per-document results to `samples.jsonl` in `directory`, and the values of every test row, of the
    metrics that are means over rows, to `row_results.safetensors`. held_out: the answers of `task.held_out`
    as the model reads them, without rows that do not fit it. The result holds lm-eval's numbers ("acc",
    "exact_match", ..., with "<name>_stderr"), the parts of a choice's loss ("content", "form"), the held-out
    loss of the right answers, "headline", the name of the metric that counts, and how many rows were tested
    and how many left out ("rows_tested", "rows_left_out"): a row whose prompt does not fit the model is left
    out of all metrics alike.
    """
    metrics: dict[str, float | str] = {"headline": HELD_OUT_LOSS}
    by_row: ByRow = {}
    rows = list(held_out)
    tested, all_rows = len(rows), len(task.held_out)
    if task.metric != HELD_OUT_LOSS:
        positions = {example.id: i for i, example in enumerate(task.held_out)}
        paired = task.docs is not None and len(task.held_out) == len(task.docs)
        asked = {task.name: sorted(positions[row.id] for row in rows)} if paired else {}
        metrics, by_row, answered, too_long = _lm_eval(task, loaded, batch_size, directory, processes, asked)
        tested, all_rows = len(answered), len(task.docs or ()) or len(answered) + too_long
        if paired:
            rows = [row for row in rows if (task.name, positions[row.id]) in answered]
    if task.held_out:
        loss = held_out_loss(rows, loaded, batch_size=batch_size, label=task.name, processes=processes)
        metrics |= loss.metrics()
        by_row |= loss.by_row()
    if processes.main:
        write_row_results({"": {task.name: by_row}}, directory)
    return {**metrics, "rows_tested": float(tested), "rows_left_out": float(all_rows - tested)}


def _lm_eval(
    task: EvalTask,
    loaded: LoadedModel,
    batch_size: int,
    directory: Path,
    processes: Processes,
    asked: Documents,
) -> tuple[dict[str, float | str], ByRow, set[tuple[str, int]], int]:
    """Return lm-eval's metrics of a task, their values by row, the tested documents, each by the name of
    lm-eval's task and its position, and how many did not fit, in every process; write its samples to the
    directory.

    asked: the documents to test; empty for all.
    """
    from lm_eval import evaluator

    # What it would tell of code and machine it finds by starting git, pip and others: seconds per task.
    evaluator.get_git_commit_hash = lambda: None
    evaluator.add_env_info = lambda storage: None
    from gtp_exp.evaluation import text_metrics
    from gtp_exp.evaluation.chat_model import ChatModel, PromptsTooLong

    text_metrics.register()

    divided = dividing(processes, loaded.model)
    state = torch.get_rng_state()
    too_long = 0
    try:
        # lm-eval wants absolute data paths, which must not end up in a cache that others may copy.
        with tempfile.TemporaryDirectory() as scratch:
            manager = _manager(task, Path(scratch))
            while True:
                # lm-eval wants a document of every task for each of them.
                enough = divided.size == 1 or _fewest_documents(task, asked, manager) >= divided.size
                try:
                    output: Any = evaluator.simple_evaluate(
                        model=ChatModel(loaded, batch_size, divided if enough else ALONE),
                        tasks=[task.name],
                        task_manager=manager,
                        apply_chat_template=task.chat,
                        samples={name: list(positions) for name, positions in asked.items()} or None,
                        log_samples=True,
                        bootstrap_iters=0,
                        random_seed=SEED,
                        numpy_random_seed=SEED,
                        torch_random_seed=SEED,
                        fewshot_random_seed=SEED,
                    )
                    break
                except PromptsTooLong as error:
                    asked = _fitting(task, asked, error.fitting, loaded.max_length)
                    too_long += error.n_long
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"task '{task.name}' cannot get its data ({first_line(error)}); "
            "download the data set and set benchmark.dataset_path to its folder, or go online"
        ) from error
    finally:
        torch.set_rng_state(state)  # simple_evaluate reseeds the global generators
    if not processes.main:  # lm-eval tells the main process alone
        return processes.broadcast(None)
    _write_samples(output["samples"], directory / "samples.jsonl")
    tested = {(name, row["doc_id"]) for name, rows in output["samples"].items() for row in rows}
    metrics, rows = _headline(task, output)
    return processes.broadcast((metrics, values_by_row(metrics, rows), tested, too_long))


def _manager(task: EvalTask, scratch: Path) -> Any:
    """Return lm-eval's manager that knows the task. scratch: where to render what it has to read."""
    from lm_eval.tasks import TaskManager

    if not _render(task, scratch):
        return bundled_tasks()
    manager = TaskManager(include_path=str(scratch), include_defaults=False)
    if task.docs is None:  # it may be made of bundled tasks
        for name, entry in bundled_tasks().task_index.items():
            manager.task_index.setdefault(name, entry)
    return manager


def _fewest_documents(task: EvalTask, asked: Documents, manager: Any) -> int:
    """Return how many documents are asked of the task, or of that one of its tasks that has the fewest."""
    if asked:
        return min(map(len, asked.values()))
    if task.docs is not None:
        return len(task.docs)
    return min(len(part.eval_docs) for part in manager.load([task.name])["tasks"].values())


def _fitting(task: EvalTask, asked: Documents, fitting: Documents, max_length: int) -> Documents:
    """Return the documents that are still to be asked. fitting: positions among those asked before.

    Raises UserError where none is left.
    """
    kept = {
        name: [asked[name][i] for i in positions] if asked.get(name) else list(positions)
        for name, positions in fitting.items()
    }
    if empty := [name for name, positions in kept.items() if not positions]:
        raise UserError(
            f"task '{empty[0]}': no prompt fits model.max_length={max_length}, with its examples and the "
            "tokens to be generated; raise it, or lower benchmark.num_fewshot or the task's max_gen_toks"
        )
    log.warning(
        "%s: left out documents whose prompt is longer than model.max_length=%d; %d are tested",
        *(task.name, max_length, sum(map(len, kept.values()))),
    )
    return kept


def _render(task: EvalTask, folder: Path) -> bool:
    """Write the task as lm-eval reads it (JSON is YAML), and return whether there was need to: not for a
    bundled task without overrides."""
    config: dict[str, Any] = dict(task.config)
    if task.docs is not None:
        data = {"test": _write_parquet(folder / "test.parquet", task.docs)}
        config = {"task": task.name, "dataset_path": "parquet", "test_split": "test", **config}
        if task.fewshot:
            data["train"] = _write_parquet(folder / "train.parquet", task.fewshot)
            config["fewshot_split"] = "train"
        # Its copy of the rows goes where they are: in the user's cache each run would leave another.
        config["dataset_kwargs"] = {"data_files": data, "cache_dir": str(folder / "datasets")}
    if str(config.get("include", "")).startswith("lm_eval/"):  # a bundled task's file
        import lm_eval

        config["include"] = str(Path(lm_eval.__file__).parent.parent / config["include"])
    if config:
        (folder / "task.yaml").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return bool(config)


def values_by_row(metrics: Mapping[str, float | str], rows: Sequence[Mapping[str, Any]]) -> ByRow:
    """Return the values of every row of those metrics that are means over the rows; others, such as a mean
    over the tasks of a group, have none."""
    by_row: ByRow = dict(choice_parts(rows))
    for name, value in metrics.items():
        values = [row.get(name) for row in rows]
        if not isinstance(value, str) and all(isinstance(v, (bool, int, float)) for v in values):
            numbers = [float(v) for v in values if v is not None]
            if numbers and math.isclose(math.fsum(numbers) / len(numbers), value, abs_tol=1e-9):
                by_row[name] = numbers
    return by_row


def _headline(
    task: EvalTask, output: Mapping[str, Any]
) -> tuple[dict[str, float | str], list[Mapping[str, Any]]]:
    """Return the metrics of the task's filter with the name of the headline one, and the samples that they
    are of, in the order of the documents.

    Raises UserError where lm-eval has not computed `task.metric`.
    """
    results = {**output.get("groups", {}), **output["results"]}[task.name]
    if task.metric not in results:
        known = ", ".join(k for k in results if "," in k and "_stderr" not in k)
        raise UserError(f"task '{task.name}' has no metric '{task.metric}'; it has {known}")
    name, _, chosen_filter = task.metric.partition(",")
    metrics: dict[str, float | str] = {"headline": name}
    for key, value in results.items():
        metric, _, filter_name = key.partition(",")
        if filter_name == chosen_filter and isinstance(value, (int, float)) and math.isfinite(value):
            metrics[metric] = float(value)
    if name not in metrics:
        raise UserError(
            f"task '{task.name}' gives {task.metric} = {results[task.metric]}, which is no number; "
            "look at how the task computes it, or rank by another of its metrics"
        )
    rows = [  # each stands there once per filter
        row
        for _, samples in sorted(output["samples"].items())
        for row in sorted(samples, key=lambda sample: sample["doc_id"])
        if row["filter"] == chosen_filter
    ]
    metrics |= choice_loss(rows)
    if f"{name}_stderr" not in metrics and 0 <= (mean := float(metrics[name])) <= 1:
        values = [row.get(name) for row in rows]
        spread = mean * (1 - mean)  # of values that are 0 or 1, or that are not told
        if all(isinstance(value, (int, float)) for value in values):
            spread = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values))
        metrics[f"{name}_stderr"] = math.sqrt(spread / max(1, len(rows)))
    return metrics, rows


def _write_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    from lm_eval.utils import handle_non_serializable

    with path.open("w", encoding="utf-8") as file:
        for name, rows in samples.items():
            for row in sorted(rows, key=lambda r: r["doc_id"]):
                text = json.dumps({"task": name, **row}, default=handle_non_serializable, ensure_ascii=False)
                file.write(text + "\n")


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows so that every value keeps its type: read from JSON, the text 2024-05-01 becomes a date."""
    from datasets import Dataset

    names = dict.fromkeys(name for row in rows for name in row)
    Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}).to_parquet(path)
    return str(path.resolve())
