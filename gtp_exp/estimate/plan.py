"""The distinct stages of some jobs, told apart as the stage cache tells them apart: by what they read.

The cache's keys need the data itself; these are written in terms of the configuration, so that a grid on a
pool that is not here can be planned too. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Job = Mapping[str, Any]  # resolved config: a node per group, and the keys outside any group

WARMUP, POOL, TARGET = "warmup", "gradients: pool", "gradients: target"  # as results.json names them
SELECTION, FINETUNE = "selection", "finetune"
EVALUATION, UNTUNED = "evaluation", "evaluation of the untuned model"
STAGES = (WARMUP, POOL, TARGET, SELECTION, FINETUNE, EVALUATION, UNTUNED)

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # of gradients.storage, bytes


@dataclass(frozen=True)
class PoolFacts:
    """Hold how large a pool is, and how that is known."""

    rows: int
    rows_from: str  # how the number is known
    tokens: float  # per row, prompt and completion
    tokens_from: str
    at_most: bool  # whether `tokens` is only a bound


@dataclass(frozen=True)
class BenchmarkFacts:
    """Counts are None where the benchmark's data is not on this machine."""

    in_domain: bool
    held_out: int  # rows it takes out of the pool
    target_key: str  # tells targets apart
    target_rows: int | None
    target_tokens: float | None  # per row
    tasks_key: str
    tasks: int | None
    test_rows: int | None
    unknown: str  # why the data cannot be read; empty where it can


@dataclass(frozen=True)
class SelectorFacts:
    """Hold what a selector reads, as its class says."""

    gradients: bool
    model: bool
    version: int
    ignores_budget: bool


@dataclass(frozen=True)
class Facts:
    """What is known of the parts of the jobs."""

    pools: Mapping[str, PoolFacts]  # by fingerprint of dataset and model
    benchmarks: Mapping[str, BenchmarkFacts]  # by fingerprint of benchmark and model
    selectors: Mapping[str, SelectorFacts]  # by class

    def pool(self, job: Job, model: Any = None) -> PoolFacts:
        """As the given model reads it; None: the model that is tuned."""
        return self.pools[fingerprint(job["dataset"], model or job["model"])]

    def benchmark(self, job: Job, model: Any = None) -> BenchmarkFacts:
        return self.benchmarks[fingerprint(job["benchmark"], model or job["model"])]

    def selector(self, job: Job) -> SelectorFacts:
        return self.selectors[job["selector"]["_target_"]]


@dataclass(frozen=True)
class Work:
    """One distinct stage."""

    stage: str
    key: str
    rows: int | None  # None: unknown
    passes: int  # of every row: epochs or checkpoints
    tokens: float | None  # over all passes
    at_most: bool  # whether `tokens` is only a bound
    nbytes: int  # of a gradient store
    units: float | None  # what its time is proportional to
    rates: tuple[str, ...]  # names of the rates that price it, the closest first
    parts: int = 1  # entries in the cache: an evaluation has one per task


@dataclass
class Planned:
    """Hold the distinct stages of some jobs, and the jobs that share each."""

    works: dict[str, Work] = field(default_factory=dict)
    jobs: dict[str, set[int]] = field(default_factory=dict)  # key -> the jobs that need it

    def of(self, stage: str) -> list[Work]:
        return [work for work in self.works.values() if work.stage == stage]


def chooser(job: Job) -> Any:
    """The node of the model that chooses."""
    return job.get("selection_model") or job["model"]


def fingerprint(*parts: Any) -> str:
    """Return a short hash of JSON values, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def plan(jobs: Sequence[Job], facts: Facts) -> Planned:
    """Each distinct stage once, with the jobs that share it."""
    planned = Planned()
    for i, job in enumerate(jobs):
        for work in stages(job, facts):
            planned.works.setdefault(work.key, work)
            planned.jobs.setdefault(work.key, set()).add(i)
    return planned


def stages(job: Job, facts: Facts) -> list[Work]:
    """The stages of one job, in order. Mirrors what each stage of `experiment.run` reads."""
    pool, benchmark, selector = facts.pool(job), facts.benchmark(job), facts.selector(job)
    model, choosing = job["model"], chooser(job)
    n = pool.rows - benchmark.held_out
    pool_key = fingerprint(job["dataset"], job["benchmark"] if benchmark.held_out else None)

    trajectory = _trajectory(job, facts, n, pool_key) if selector.gradients else []
    selection_key = fingerprint(
        SELECTION,
        job["selector"],
        selector.version,
        None if selector.ignores_budget else job["budget"],
        job["seed"],
        model,
        job.get("selection_model"),
        pool_key,
        None if benchmark.in_domain else benchmark.target_key,
        [work.key for work in trajectory if work.stage != WARMUP],
    )
    forward = n * facts.pool(job, choosing).tokens if selector.model else None
    rates = (fingerprint(SELECTION, job["selector"]["_target_"], choosing),)
    selection = Work(
        SELECTION, selection_key, n, int(selector.model), forward, pool.at_most, 0, float(n), rates
    )

    if job["until"] == SELECTION:
        return [*trajectory, selection]
    rows, tokens = chosen(job["budget"], n, pool.tokens, everything=selector.ignores_budget)
    tuned_key = fingerprint(FINETUNE, selection_key, model, job["train"], job["seed"])
    bound = pool.at_most and (selector.ignores_budget or job["budget"]["unit"] != "tokens")
    rates = rate_names(FINETUNE, model, job["train"])
    finetune = by_tokens(FINETUNE, tuned_key, rows, job["train"]["epochs"], tokens / rows, bound, rates)

    tests, parts = benchmark.test_rows, benchmark.tasks or 1
    units = None if tests is None else float(tests)
    rates = evaluation_rates(job, benchmark)
    evaluations = [
        Work(stage, key, tests, 1, None, False, 0, units, rates, parts)
        for stage, key in (
            (EVALUATION, fingerprint(EVALUATION, tuned_key, benchmark.tasks_key)),
            (UNTUNED, fingerprint(UNTUNED, model, benchmark.tasks_key)),
        )
    ]
    return [*trajectory, selection, finetune, *evaluations]


def _trajectory(job: Job, facts: Facts, n: int, pool_key: str) -> list[Work]:
    """The warm-up and the gradient stores."""
    model, gradients = chooser(job), job["gradients"]
    pool, benchmark = facts.pool(job, model), facts.benchmark(job, model)
    warmup, share = gradients["warmup"], gradients["warmup_share"]
    checkpoints, settings = warmup["epochs"], store_settings(gradients)
    key = fingerprint(WARMUP, model, pool_key, share, warmup, gradients["seed"])
    rates = rate_names(WARMUP, model, warmup)
    works = [by_tokens(WARMUP, key, warmup_rows(gradients, n), checkpoints, pool.tokens, pool.at_most, rates)]
    splits: list[tuple[str, str, int | None, float | None, bool]] = [
        (POOL, pool_key, n, pool.tokens, pool.at_most)
    ]
    if not benchmark.in_domain:
        splits.append((TARGET, benchmark.target_key, benchmark.target_rows, benchmark.target_tokens, False))
    for stage, rows_key, rows, tokens, at_most in splits:
        store = fingerprint(stage, key, rows_key, settings)
        # The pool's rate serves the target's few rows where nothing better is known.
        rates = (*rate_names(stage, model, settings), *rate_names(POOL, model, settings))
        nbytes = 0 if rows is None else store_bytes(rows, checkpoints, gradients)
        works.append(by_tokens(stage, store, rows, checkpoints, tokens, at_most, rates, nbytes))
    return works


def by_tokens(
    stage: str,
    key: str,
    rows: int | None,
    passes: int,
    tokens_per_row: float | None,
    at_most: bool,
    rates: tuple[str, ...],
    nbytes: int = 0,
) -> Work:
    """A stage whose time is proportional to the tokens that pass through the model."""
    tokens = None if rows is None or tokens_per_row is None else rows * passes * tokens_per_row
    return Work(stage, key, rows, passes, tokens, at_most, nbytes, tokens, rates)


def chosen(
    budget: Mapping[str, Any], n: int, tokens_per_row: float, *, everything: bool
) -> tuple[int, float]:
    """Rows and tokens that a budget takes of n candidates."""
    if everything:
        return n, n * tokens_per_row
    if budget["unit"] == "tokens":
        return min(n, max(1, round(budget["amount"] / tokens_per_row))), float(budget["amount"])
    rows = round(budget["amount"] * n) if budget["unit"] == "fraction" else int(budget["amount"])
    rows = max(1, min(n, rows))
    return rows, rows * tokens_per_row


def warmup_rows(gradients: Mapping[str, Any], n: int) -> int:
    """Return how many of n candidates the warm-up trains on."""
    return max(1, round(gradients["warmup_share"] * n))


def store_settings(gradients: Mapping[str, Any]) -> dict[str, Any]:
    """Those that change the stored numbers, beyond the warm-up's."""
    others = ("warmup", "warmup_share", "token_budget", "max_quarantined_share")
    return {k: v for k, v in gradients.items() if k not in others}


def store_bytes(rows: int, checkpoints: int, gradients: Mapping[str, Any]) -> int:
    """Sketch and norm (and scale) of every row, checkpoint and direction; 0 where the sketch keeps the
    model's own dimension, which the configuration does not tell."""
    if gradients["sketch"]["kind"] == "none":
        return 0
    row = gradients["sketch"]["dim"] * ITEMSIZE[gradients["storage"]] + 4
    row += 4 if gradients["storage"] == "int8" else 0
    return rows * checkpoints * len(gradients["directions"]) * row


def rate_names(stage: str, model: Any, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The rate of this model with these settings, and that of this model with any."""
    same = {k: v for k, v in settings.items() if k not in ("epochs", "seed")}
    return fingerprint(stage, model, same), fingerprint(stage, model)


def evaluation_rates(job: Job, benchmark: BenchmarkFacts) -> tuple[str, ...]:
    """The rate of these very tasks, and that of tasks of their kind."""
    kinds = (benchmark.tasks_key, job["benchmark"]["_target_"])
    return tuple(fingerprint(EVALUATION, kind, job["model"]) for kind in kinds)
