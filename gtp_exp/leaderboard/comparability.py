"""Which runs may stand in one table, and which may be averaged.

A table holds runs of one benchmark that differ only in selector, budget and seed. A row holds runs that
differ only in seed. A setting such as gradients.seed that varies with the seed one to one counts as the seed.
Where rows and weights lie is no difference: runs that have read the same are equal by the hashes of what they
read, however their paths are spelled. Nor is what was set to fit a machine's memory.
Runs on all rows that differ in their training alone stand as a reference in the table of the choices.
Anything else that differs makes another table (or another row, for a setting of the selector itself), and the
differing keys are named.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.files import json_digest
from gtp_exp.leaderboard.metrics import TESTED_ON
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.references import TRAINING, reference_label, references_of
from gtp_exp.leaderboard.variants import ABSENT, alike, is_under, variant_labels

# Where a run reports, how it was started and how far it went changes no number, but with dropout: see
# `settings_that_count`.
NO_EFFECT = (
    "tracking",
    "launch",
    "outputs",
    "hydra",
    "until",
    "validation",
    "eval_batch_size",
    "eval_backend",
    "tests",
)
# How much is held in memory at a time changes no number, in the selectors of this project.
FIT_MEMORY: tuple[str, ...] = ("gradients.token_budget", "gradients.shard_rows")
FIT_MEMORY_OF_OURS: tuple[str, ...] = ("selector.batch_size", "selector.chunk_rows", "selector.memory_gib")
PROCESSES = "launch.num_processes"
WITH_SEED = "(varies with seed)"
TRAJECTORY_SEED = "gradients.seed"  # of the warm-up, its gradients and their sketch
NAMED_GROUPS = ("dataset", "model", "gradients", "train")
TASK_NAME = "benchmark.name"  # of a benchmark of the user's own files
# The groups that say which rows are read.
DECIDE_DATA = ("dataset", "benchmark", TESTED_ON, "model", "selection_model")
# What a machine finds for a model's settings, beside what they say themselves.
FOUND_OF_MODEL = ("weights", "chat_template", "dtype", "code")
# By group: the settings that say no more than what is read, which the hashes of what was read tell better.
SAY_WHAT_IS_READ = {
    "model": ("source", "name_or_path", "revision", "precision", "trust_remote_code", "system_prompt"),
    "dataset": (
        *("_target_", "files", "path", "hub_id", "config", "split", "revision", "archive", "sources"),
        *("expected_rows", "format", "columns", "ids", "rows", "scores", "near_copies"),
    ),
    "gradients": ("pool", "target"),  # of `gradients=given`
    "benchmark": ("validation", "test", "dataset_path", "folder", "path", "file", "files", "answers"),
}
SAY_WHAT_IS_READ["selection_model"] = SAY_WHAT_IS_READ["model"]
SAY_WHAT_IS_READ[TESTED_ON] = SAY_WHAT_IS_READ["benchmark"]


@dataclass(frozen=True, eq=False)  # a row can be a key
class Row:
    """One line of a table: the same settings at one or more seeds."""

    selector: str
    variant: str  # settings that tell it from other rows of the selector; often empty
    budget: str
    beside: Mapping[str, str]  # settings of the grid that may differ within a table
    runs: tuple[Run, ...]  # one per seed, ascending

    @property
    def label(self) -> str:
        return f"{self.selector} [{self.variant}]" if self.variant else self.selector


@dataclass(frozen=True)
class Table:
    """Hold runs that can be compared: the same benchmark, data and training."""

    benchmark: str
    differing: Mapping[str, str]  # keys that tell it from the other tables of the benchmark, with its values
    named: frozenset[str]  # groups of such keys for which a name can stand
    rows: tuple[Row, ...]
    references: tuple[Row, ...] = ()  # on all rows, with another training than the table's

    @property
    def label(self) -> str:
        """The benchmark and what sets this table apart; the keys of a group with a name are left to it."""
        shown = {
            key: value
            for key, value in self.differing.items()
            if key in (*self.named, TASK_NAME) or key.split(".")[0] not in self.named
        }
        settings = ", ".join(f"{key}={value}" for key, value in shown.items())
        return f"{self.benchmark} ({settings})" if settings else self.benchmark

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for row in self.rows for run in row.runs)


@dataclass(frozen=True)
class Repeated:
    """The same settings and seed run twice; the later one counts."""

    left_out: Run
    kept: Run


@dataclass(frozen=True)
class Grouped:
    """Hold all comparable tables, and the runs that repeat another one."""

    tables: tuple[Table, ...]
    repeated: tuple[Repeated, ...]


def group(runs: Sequence[Run], *, beside: Sequence[str]) -> Grouped:
    """beside: configuration keys that may differ within a table; they make rows of their own."""
    settings, names = comparable_settings(runs)
    _check_beside(beside, {key for run in runs for key in (*flatten(run.record.config), *settings[run])})
    of_row = ("selector", "budget", *beside)
    tables: list[Table] = []
    repeated: list[Repeated] = []
    for benchmark in sorted({run.record.names.benchmark for run in runs}):
        members = [run for run in runs if run.record.names.benchmark == benchmark]
        # A record names the option of a group and its settings: the name reads better in a heading.
        shared = [
            {name: names[run][name] for name in NAMED_GROUPS if not is_under(name, beside)}
            | {k: v for k, v in settings[run].items() if not is_under(k, of_row)}
            for run in members
        ]
        own = dict(zip(members, shared, strict=True))
        references = references_of([comparable for _, comparable in alike(members, shared)], own)
        aside = {run for found in references.values() for reference in found for run in reference}
        members = [run for run in members if run not in aside]
        comparable_groups = alike(members, [own[run] for run in members])
        named = _named([differing for differing, _ in comparable_groups])
        for differing, comparable in comparable_groups:
            rows, again = _rows(comparable, settings, beside)
            beside_it, of_these = _reference_rows(references.get(comparable[0], ()), settings, beside)
            tables.append(Table(benchmark, differing, named, rows, beside_it))
            repeated.extend((*again, *of_these))
    # A reference stands beside several tables, and is told once.
    return Grouped(tables=tuple(tables), repeated=tuple(dict.fromkeys(repeated)))


def _check_beside(beside: Sequence[str], settings: Iterable[str]) -> None:
    """Raise UserError for a key that is neither a setting nor a group of them: it would change no table."""
    known = {key.rsplit(".", up)[0] for key in settings for up in range(key.count(".") + 1)}
    for key in beside:
        if known and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else "; give one such as train or train.epochs"
            raise UserError(f"--beside {key} is a setting of none of the runs{meant}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}; a list is one value, and 1.0 is 1."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(_whole(value))
    return flat


def _whole(value: Any) -> Any:
    """Return a value in which whole numbers are int and keys in order, however they were written."""
    if isinstance(value, Mapping):
        return {key: _whole(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _named(tables: Sequence[Mapping[str, str]]) -> frozenset[str]:
    """The groups among the differing keys for which a name can stand; the task's only if each has its own."""
    named = {name for differing in tables for name in NAMED_GROUPS if name in differing}
    tasks = {differing[TASK_NAME] for differing in tables if TASK_NAME in differing}
    return frozenset(named | {"benchmark"} if len(tasks) == len(tables) > 1 else named)


def _rows(
    runs: Sequence[Run], settings: Mapping[Run, Mapping[str, str]], beside: Sequence[str]
) -> tuple[tuple[Row, ...], list[Repeated]]:
    """One row per selector, its variant and budget, of runs that may share a table."""
    variants = variant_labels(
        runs, [run.record.names.selector for run in runs], settings, ("selector", *beside)
    )
    budgets = variant_labels(runs, [run.record.names.budget for run in runs], settings, ("budget",))
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        budget = run.record.names.budget + (f" [{budgets[run]}]" if budgets[run] else "")
        groups.setdefault((run.record.names.selector, variants[run], budget), []).append(run)

    rows: list[Row] = []
    repeated: list[Repeated] = []
    for (selector, variant, budget), members in sorted(groups.items(), key=lambda item: item[0]):
        ordered, again = _one_per_seed(members)
        repeated.extend(again)
        apart = {key: v for key, v in settings[ordered[0]].items() if is_under(key, beside)}
        rows.append(Row(selector=selector, variant=variant, budget=budget, beside=apart, runs=ordered))
    return tuple(rows), repeated


def _one_per_seed(runs: Iterable[Run]) -> tuple[tuple[Run, ...], list[Repeated]]:
    """Return the latest run of each seed, by seed, and what it repeats."""
    newest: dict[int, Run] = {}
    repeated: list[Repeated] = []
    for run in sorted(runs, key=lambda run: run.record.finished or run.record.started):
        if run.record.seed in newest:
            repeated.append(Repeated(left_out=newest[run.record.seed], kept=run))
        newest[run.record.seed] = run
    return tuple(newest[seed] for seed in sorted(newest)), repeated


def _reference_rows(
    references: Sequence[Sequence[Run]], settings: Mapping[Run, Mapping[str, str]], beside: Sequence[str]
) -> tuple[tuple[Row, ...], list[Repeated]]:
    """Return the rows of the references beside one table: one for all budgets, which change nothing there; of
    those of one length that were trained otherwise each says how. And the runs that repeat another one."""
    grouped = [_rows(reference, settings, beside) for reference in references]
    rows = [row for found, _ in grouped for row in found]
    labels = [reference_label(row.label, row.runs) for row in rows]
    trained = variant_labels([row.runs[0] for row in rows], labels, settings, TRAINING)
    joined: dict[tuple[str, str], Row] = {}
    for row, label in zip(rows, labels, strict=True):
        variant = ", ".join(filter(None, (row.variant, trained[row.runs[0]])))
        same = joined.get((label, variant))
        runs, _ = _one_per_seed((*(same.runs if same else ()), *row.runs))
        joined[label, variant] = replace(row, variant=variant, runs=runs)
    return tuple(joined.values()), [item for _, again in grouped for item in again]


def comparable_settings(runs: Sequence[Run]) -> tuple[dict[Run, dict[str, str]], dict[Run, dict[str, str]]]:
    """By run: flat configuration without the seed and without what has no effect on a number; and the names
    of its options.

    The same configuration can find something else elsewhere or later (other weights, another precision,
    edited files): with that. Runs that have read the same have the settings and names of the first of them.
    """
    settings = {
        run: settings_that_count(run.record.config, ("seed", *NO_EFFECT))
        | _found("model", run.record.model)
        | _found("selection_model", run.record.selection_model)
        for run in runs
    }
    names = {run: {name: getattr(run.record.names, name) for name in NAMED_GROUPS} for run in runs}
    for part in SAY_WHAT_IS_READ:
        _say_alike(part, runs, settings, names)
    for run, edited in _edited(runs, settings).items():
        settings[run] |= edited
    # A key such as gradients.seed that varies one to one with the run's seed is the seed under another name.
    # A fixed one is not, and stays.
    for key in {key for flat in settings.values() for key in flat if key.split(".")[-1] == "seed"}:
        holders = [run for run in runs if key in settings[run]]
        if _one_to_one(holders, key, settings):
            for run in holders:
                del settings[run][key]
            continue
        # Sweeps of both kinds: those where it varies go together, apart from those where it is fixed.
        sweeps: dict[str, list[Run]] = {}
        for run in holders:
            sweeps.setdefault(run.record.group, []).append(run)
        tied = [run for sweep in sweeps.values() if _one_to_one(sweep, key, settings) for run in sweep]
        if _one_to_one(tied, key, settings):
            for run in tied:
                settings[run][key] = WITH_SEED
    return settings, names


def settings_that_count(config: Mapping[str, Any], left_out: Iterable[str]) -> dict[str, str]:
    """Return a configuration, flat, without keys that are left out and without what makes a job fit the
    memory of a machine.

    With dropout each process draws masks of its own, for one forward pass at a time: there the number of
    processes and the sizes of passes count.
    """
    settings = flatten({key: value for key, value in config.items() if key not in left_out})
    fit, counted = set(FIT_MEMORY), dict[str, str]()
    if settings.get("selector._target_", "").startswith(("gtp_exp.", "gtp_baselines.")):
        fit |= set(FIT_MEMORY_OF_OURS)
    chooser = "selection_model" if "selection_model.lora.dropout" in settings else "model"
    for model, key in (("model", "train"), (chooser, "gradients.warmup")):
        if settings.get(f"{model}.lora.dropout", "0") in ("0", "0.0"):  # or, not yet checked, no number
            fit.add(f"{key}.micro_batch_size")
        else:
            counted = {PROCESSES: flatten({"launch": config.get("launch")}).get(PROCESSES, "1")}
    return {key: value for key, value in settings.items() if key not in fit} | counted


def _say_alike(
    part: str,
    runs: Sequence[Run],
    settings: Mapping[Run, dict[str, str]],
    names: Mapping[Run, dict[str, str]],
) -> None:
    """Give runs that have read the same for a group, with the same other settings in it, the words of the
    first of them for what is read."""
    spoken = [f"{part}.{key}" for key in SAY_WHAT_IS_READ[part]]
    alike: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.record.started, run.name)):
        hashes = _hashes(part, run)
        if hashes is not None:
            own = {k: v for k, v in settings[run].items() if is_under(k, [part]) and not is_under(k, spoken)}
            alike.setdefault(json.dumps([hashes, own], sort_keys=True), []).append(run)
    for first, *others in alike.values():
        words = {k: v for k, v in settings[first].items() if is_under(k, spoken)}
        for run in others:
            for key in [k for k in settings[run] if is_under(k, spoken)]:
                del settings[run][key]
            settings[run].update(words)
            if part in names[run]:
                names[run][part] = names[first][part]


def _hashes(part: str, run: Run) -> Any:
    """Return the hashes of what a run has read for a group; None where its record does not tell them all."""
    record = run.record
    if part == "dataset":
        return record.pool and record.pool.content
    if part in ("benchmark", TESTED_ON):  # whose rows of a task tell the task, too
        told = {name: rows.content for name, rows in record.rows.items()}
        return told if told and all(task in told for task in record.metrics) else None
    if part == "gradients":
        given = {f"{part}.{split}": record.stages.get(f"{part}: {split}") for split in ("pool", "target")}
        keys = {name: cost.key for name, cost in given.items() if cost is not None}
        return keys if "pool" in record.config.get(part, {}) and keys else None
    identity = record.model if part == "model" else record.selection_model
    return {k: identity.get(k) for k in FOUND_OF_MODEL} if identity and "weights" in identity else None


def _found(group: str, identity: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if identity is None else {f"{group}.found.{k}": str(identity.get(k)) for k in FOUND_OF_MODEL}


def _edited(runs: Sequence[Run], settings: Mapping[Run, Mapping[str, str]]) -> dict[Run, dict[str, str]]:
    """By run: hashes of what was read and is not the same in all runs of the same settings: rows, and what
    a choice was made from beside them."""
    contents = {
        run: {
            **({"pool": run.record.pool.content} if run.record.pool else {}),
            **{name: rows.content for name, rows in run.record.rows.items()},
        }
        for run in runs
    }
    edited = _told_apart("content of ", contents, settings, DECIDE_DATA)
    chosen_from = {
        run: {name: json_digest(value) for name, value in run.record.selection.read_beside_rows.items()}
        for run in runs
        if run.record.selection and run.record.selection.read_beside_rows  # older records do not tell
    }
    beside = _told_apart("selector.found.", chosen_from, settings, (*DECIDE_DATA, "selector"))
    return {run: edited[run] | beside.get(run, {}) for run in runs}


def _told_apart(
    word: str,
    contents: Mapping[Run, Mapping[str, str]],
    settings: Mapping[Run, Mapping[str, str]],
    groups: Sequence[str],
) -> dict[Run, dict[str, str]]:
    """By run: those of its hashes, by a word before their name, that are not the same in all runs of the same
    settings in some groups."""
    alike: dict[str, list[Run]] = {}
    for run in contents:
        said = {key: value for key, value in settings[run].items() if is_under(key, groups)}
        alike.setdefault(json.dumps(said, sort_keys=True), []).append(run)
    apart: dict[Run, dict[str, str]] = {}
    for members in alike.values():
        names = {name for run in members for name in contents[run]}
        several = [n for n in names if len({contents[run].get(n, ABSENT) for run in members}) > 1]
        for run in members:
            apart[run] = {f"{word}{n}": contents[run].get(n, ABSENT)[:12] for n in several}
    return apart


def _one_to_one(runs: Sequence[Run], key: str, settings: Mapping[Run, Mapping[str, str]]) -> bool:
    """Whether each seed has one value of the key and each value one seed, over two seeds or more."""
    pairs = {(run.record.seed, settings[run][key]) for run in runs}
    return len(pairs) > 1 and len({s for s, _ in pairs}) == len({v for _, v in pairs}) == len(pairs)
