"""Say at a job's end what it was worth, what it chose and left, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from gtp_exp.leaderboard.metrics import (
    LOSS,
    Metric,
    error_over_rows,
    headline_mean,
    headline_metric,
    metric_named,
)
from gtp_exp.records.record import SELECTED_NAME, RunRecord, SelectionSummary, ValidationSummary

FEW_TASKS = 3  # whose metrics have room in a line
FEW_LABELS, FEW_VALUES = 2, 4  # of the chosen rows, in a line
FEW_STAGES = 4
_FACTS = ("absent", "present")  # values of labels that are told apart no further
_LENGTH = "length in tokens"


def outcome(record: RunRecord, directory: Path) -> str:
    """Return one line on a complete job, one of many: what was chosen, where it lies, and the loss on
    validation rows or the metric of each task if those are few."""
    selection, pool = record.selection, record.pool
    if selection is None or pool is None:
        return ""
    file = shown(directory) / SELECTED_NAME
    told = [f"chose {selection.n_selected:,} of {pool.candidates:,} rows: {file}"]
    tested = _tested(record)
    if len(tested) <= FEW_TASKS:
        told += [f"{task}: {_headline(values)}" for task, (values, _) in tested.items()]
    if record.validation is not None:
        told.append(validation_outcome(record.validation))
    return "; ".join(told)


def closing(record: RunRecord, directory: Path) -> str:
    """Return at most eight lines on a complete job: what it is worth beside the untuned model, what was
    chosen, where that and the model lie, what it cost, and the next commands."""
    selection, pool = record.selection, record.pool
    if selection is None or pool is None:
        return ""
    run = shown(directory)
    chose = f"chose {selection.n_selected:,} of {pool.candidates:,} rows: {selection.n_tokens:,} tokens, "
    chose += f"{_count(selection.exact_duplicates, 'exact copy', 'exact copies')}, "
    chose += _count(selection.near_duplicates, "near copy", "near copies")
    if selection.repeats:
        chose += f", {_count(selection.repeats, 'copy', 'copies')} of another chosen row by hidden labels"
    if selection.target_labels:
        chose += f", {selection.labels_chosen} of {selection.target_labels} labels of the target"
    if selection.n_cut:
        chose += f", {selection.n_cut:,} cut to model.max_length"
    rows = f"rows: {run / SELECTED_NAME}, and {run / 'selected'} for load_dataset"
    lines = [*_worth(record), chose, *_labels(selection), rows]
    if "finetune" in record.stages:
        lines.append(f"model: {run / 'model'}")
    return "\n".join([*lines, _cost(record), _next(record, run)])


def validation_outcome(validation: ValidationSummary) -> str:
    """Return the loss on validation rows of the tuned and the untuned model in words."""
    metric = metric_named(LOSS)
    tuned, untuned = (
        metric.show(loss.nats_per_token)
        + (f" \u00b1 {metric.show(loss.nats_per_token_stderr)}" if validation.rows > 1 else "")
        for loss in (validation.tuned, validation.untuned)
    )
    return f"validation on {validation.rows:,} rows: {metric.label} {tuned}, untuned {untuned}"


def shown(directory: Path) -> Path:
    """Return a folder as a person here would name it: relative, where it lies below the current one."""
    return Path(os.path.relpath(directory)) if Path.cwd() in directory.absolute().parents else directory


Values = Mapping[str, float | str]


def _tested(record: RunRecord) -> dict[str, tuple[Values, Values]]:
    """Return the metrics of the tuned and the untuned model by the name of the test."""
    tested = {task: (values, record.untuned.get(task, {})) for task, values in record.metrics.items()}
    for name, test in record.tests.items():
        for task, values in test.metrics.items():
            tested[f"{name}, {task}"] = values, test.untuned.get(task, {})
    return tested


def _headline(values: Values) -> str:
    metric = metric_named(str(values["headline"]))
    return f"{metric.label} {metric.show(float(values[metric.name]))}"


def _worth(record: RunRecord) -> Iterator[str]:
    """Yield a line with the headline metric of the tuned and the untuned model; none where nothing was
    measured."""
    tested = _tested(record)
    if record.validation is not None:
        yield validation_outcome(record.validation)
    elif tested and len(tested) <= FEW_TASKS:
        yield "; ".join(f"{task}: {_beside(*values)}" for task, values in tested.items())
    elif tested:
        yield _mean_worth(record, len(tested))


def _beside(values: Values, untuned: Values) -> str:
    metric = metric_named(str(values["headline"]))
    told = "not measured" if metric.name not in untuned else _with_error(metric, untuned)
    return f"{metric.label} {_with_error(metric, values)}, untuned {told}"


def _with_error(metric: Metric, values: Values) -> str:
    """Return a metric's value with its standard error over test rows, where that is known."""
    told, error = metric.show(float(values[metric.name])), error_over_rows(values, metric.name)
    return told if error is None else f"{told} \u00b1 {metric.show(error)}"


def _mean_worth(record: RunRecord, n: int) -> str:
    """Return the mean headline metric of the benchmark's tests in words. n: tests in all."""
    tuned, untuned = headline_mean(record), headline_mean(replace(record, metrics=record.untuned))
    further = f" ({n - len(record.metrics)} further tests in results.json)" if record.tests else ""
    if tuned is None:
        return f"{n} tests: results.json has their metrics"
    metric = headline_metric({str(values["headline"]) for values in record.metrics.values()})
    before = "not measured" if untuned is None else metric.show(untuned)
    name = f"mean {metric.label}" if metric.name != "headline" else metric.label
    return f"{len(record.metrics)} tests: {name} {metric.show(tuned)}, untuned {before}{further}"


def _labels(selection: SelectionSummary) -> Iterator[str]:
    """Yield a line with shares of the chosen rows and of the pool, by those labels in which the two differ
    most; none where the rows have no labels."""
    differences = {
        label: sum(abs(mix.get(v, 0) - pool.get(v, 0)) for v in {*mix, *pool})
        for label, mix in selection.label_mix.items()
        if (pool := selection.pool_mix.get(label, {})) and label != _LENGTH and not {*_FACTS} & {*mix, *pool}
    }
    told = []
    for label in sorted(differences, key=lambda label: -differences[label])[:FEW_LABELS]:
        mix, pool = selection.label_mix[label], selection.pool_mix[label]
        most = sorted(mix, key=lambda value: -mix[value])[:FEW_VALUES]
        names = {"None": "none"}
        shares = [f"{names.get(v, v)} {mix[v]:.0%} ({pool.get(v, 0):.0%})" for v in most]
        told.append(f"{label} {', '.join(shares)}" + (", ..." if len(mix) > len(most) else ""))
    if told:
        yield f"of these, and of the pool: {'; '.join(told)}"


def _cost(record: RunRecord) -> str:
    """Return the seconds of all stages, as if nothing had been found in the cache, and how many were."""
    seconds = {name: cost.seconds for name, cost in record.stages.items()}
    saved = sum(cost.seconds for cost in record.stages.values() if cost.cached)
    most = sorted(seconds, key=lambda name: -seconds[name])
    parts = [f"{name} {seconds[name]:.1f}" for name in most[:FEW_STAGES]]
    if rest := sum(seconds[name] for name in most[FEW_STAGES:]):
        parts.append(f"the others {rest:.1f}")
    found = f"; {saved:.1f} s of it were in the cache" if saved else ""
    return f"cost: {sum(seconds.values()):.1f} s ({', '.join(parts)}){found}"


def _next(record: RunRecord, directory: Path) -> str:
    """Return the command that a person in this place wants next."""
    run, above = shlex.quote(str(directory)), shlex.quote(str(directory.parent))
    benchmark = record.config.get("benchmark")
    untestable = isinstance(benchmark, Mapping) and benchmark.get("test", "") is None
    if record.validation is not None and not untestable:
        again = f"gtp-exp --config-dir {run} --config-name resolved"
        return f"next: {again} until=evaluation  # chooses by the whole target, and tests"
    if "finetune" not in record.stages:
        return f"next: gtp-exp-export {run} --format trl --out FOLDER  # or axolotl, llama_factory, openai"
    return f"next: gtp-exp-leaderboard {above}  # or gtp-exp-export {run} --merge OUT"


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
