"""Evaluate a model on one task: lm-eval's metrics, and the held-out loss of the test answers beside them."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gtp_exp.data.batching import length_sorted_batches, pad_collate
from gtp_exp.data.benchmark import HELD_OUT_LOSS, EvalTask
from gtp_exp.data.examples import TokenizedExample
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError, first_line
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.loss import row_nats

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
    """Return the metrics of one task, in every process; each takes part of the documents.

    Writes per-document results to `samples.jsonl` in `directory`. held_out: the answers of `task.held_out` as
    the model reads them, without rows that do not fit it. The result holds lm-eval's numbers ("acc",
    "exact_match", ..., with "<name>_stderr"), nats_per_token and nats_per_answer of the held-out answers, and
    "headline", the name of the metric that counts.
    """
    loss_only: dict[str, float | str] = {"headline": HELD_OUT_LOSS}
    only = task.metric == HELD_OUT_LOSS
    metrics = loss_only if only else _lm_eval(task, loaded, batch_size, directory, processes)
    if task.held_out:
        metrics |= held_out_loss(
            held_out, loaded, batch_size=batch_size, label=task.name, processes=processes
        )
    return metrics


def held_out_loss(
    rows: Sequence[TokenizedExample],
    loaded: LoadedModel,
    *,
    batch_size: int,
    label: str,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Return the negative log-likelihood of the completions, in nats per token and per answer.

    label: the task's name, for messages. Raises UserError without a row, and for a loss that is not finite.
    """
    if not rows:
        raise UserError(f"task '{label}': no test answer fits model.max_length={loaded.max_length}; raise it")
    device = next(loaded.model.parameters()).device
    nats = torch.zeros(len(rows), dtype=torch.float64)
    with torch.inference_mode():
        batches = length_sorted_batches([row.n_tokens for row in rows], batch_size)
        own = batches[processes.rank :: processes.size]
        for batch in tqdm(own, desc=f"{label}: held-out loss", unit="batch"):
            inputs = pad_collate([rows[i] for i in batch], loaded.tokenizer.pad_token_id)
            nats[torch.tensor(batch)] = row_nats(loaded.model, {k: v.to(device) for k, v in inputs.items()})
    nats = processes.all_reduce(nats)  # a row is in the batch of one process, and zero elsewhere
    if not torch.isfinite(nats).all():
        raise UserError(f"task '{label}': the held-out loss is not finite; the tuned model has diverged")
    n_tokens = sum(row.n_completion_tokens for row in rows)
    error = float(nats.std() / math.sqrt(len(nats))) if len(nats) > 1 else 0.0
    return {
        "nats_per_token": float(nats.sum()) / n_tokens,
        "nats_per_answer": float(nats.mean()),
        "nats_per_answer_stderr": error,
    }


def _lm_eval(
    task: EvalTask, loaded: LoadedModel, batch_size: int, directory: Path, processes: Processes
) -> dict[str, float | str]:
    """Return lm-eval's metrics of a task, in every process; write its samples to the directory."""
    from lm_eval import evaluator

    # What it would tell of code and machine it finds by starting git, pip and others: seconds per task.
    evaluator.get_git_commit_hash = lambda: None
    evaluator.add_env_info = lambda storage: None
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    wrapper: Any = huggingface.HFLM  # its decorator hides the signature
    lm = wrapper(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=batch_size,
        max_length=loaded.max_length,
    )
    if processes.size > 1:
        _divide(lm, processes)
    state = torch.get_rng_state()
    try:
        # lm-eval wants absolute data paths, which must not end up in a cache that others may copy.
        with tempfile.TemporaryDirectory() as scratch:
            _render(task, Path(scratch))
            # Indexing lm-eval's 13,000 bundled tasks takes 8 s: only when one is asked for.
            manager = TaskManager(include_path=scratch, include_defaults=task.docs is None)
            output: Any = evaluator.simple_evaluate(
                model=lm,
                tasks=[task.name],
                task_manager=manager,
                apply_chat_template=task.chat,
                log_samples=True,
                bootstrap_iters=0,
                random_seed=SEED,
                numpy_random_seed=SEED,
                torch_random_seed=SEED,
                fewshot_random_seed=SEED,
            )
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"task '{task.name}' cannot get its data ({first_line(error)}); "
            "download the data set and set benchmark.dataset_path to its folder, or go online"
        ) from error
    finally:
        torch.set_rng_state(state)  # simple_evaluate reseeds the global generators
    if not processes.main:  # lm-eval brings everything to the main process
        return processes.broadcast(None)
    _write_samples(output["samples"], directory / "samples.jsonl")
    return processes.broadcast(_headline(task, output))


def _divide(lm: Any, processes: Processes) -> None:
    """Let lm-eval divide the documents among the processes. By itself it does so only for models that it has
    launched, and by local rank."""
    from accelerate import Accelerator

    accelerator = Accelerator()
    lm.accelerator, lm._device = accelerator, accelerator.device
    lm._rank, lm._world_size = processes.rank, processes.size


def _render(task: EvalTask, folder: Path) -> None:
    """Write the task as lm-eval reads it (JSON is YAML); a bundled task without overrides needs no file."""
    config: dict[str, Any] = dict(task.config)
    if task.docs is not None:
        data = {"test": _write_jsonl(folder / "test.jsonl", task.docs)}
        config = {"task": task.name, "dataset_path": "json", "test_split": "test", **config}
        if task.fewshot:
            data["train"] = _write_jsonl(folder / "train.jsonl", task.fewshot)
            config["fewshot_split"] = "train"
        # Its copy of the rows goes where they are: in the user's cache each run would leave another.
        config["dataset_kwargs"] = {"data_files": data, "cache_dir": str(folder / "datasets")}
    if str(config.get("include", "")).startswith("lm_eval/"):  # a bundled task's file
        import lm_eval

        config["include"] = str(Path(lm_eval.__file__).parent.parent / config["include"])
    if config:
        (folder / "task.yaml").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def _headline(task: EvalTask, output: Mapping[str, Any]) -> dict[str, float | str]:
    """Return the metrics of the task's filter, and the name of the headline one.

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
    if f"{name}_stderr" not in metrics and 0 <= float(metrics[name]) <= 1:
        # lm-eval lists a document once per filter
        rows = [row for samples in output["samples"].values() for row in samples]
        n = sum(row["filter"] == chosen_filter for row in rows) or 1
        metrics[f"{name}_stderr"] = math.sqrt(float(metrics[name]) * (1 - float(metrics[name])) / n)
    return metrics


def _write_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    from lm_eval.utils import handle_non_serializable

    with path.open("w", encoding="utf-8") as file:
        for name, rows in samples.items():
            for row in sorted(rows, key=lambda r: r["doc_id"]):
                text = json.dumps({"task": name, **row}, default=handle_non_serializable, ensure_ascii=False)
                file.write(text + "\n")


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path.resolve())
