"""Builds every job, so that a wrong value shows, and reads the data that is on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gtp_exp.config import build, describe
from gtp_exp.data.benchmark import SplitsPool
from gtp_exp.data.hashing import content_hash
from gtp_exp.data.tokenization import ensure_chat_template, tokenize
from gtp_exp.errors import UserError, first_line
from gtp_exp.estimate.plan import BenchmarkFacts, Facts, Job, PoolFacts, SelectorFacts, chooser, fingerprint
from gtp_exp.estimate.rates import Earlier
from gtp_exp.selection.base import Need
from gtp_exp.worker import assemble

ASSUMED_ROWS = 100_000  # of a pool whose size is known nowhere here
SAMPLED_ROWS = 400  # tokenised to learn the mean length


def gather(jobs: Sequence[Job], runs: Sequence[Earlier]) -> Facts:
    """Raises UserError for a job that cannot be built, with the key."""
    parts = _Parts()
    pools: dict[str, PoolFacts] = {}
    benchmarks: dict[str, BenchmarkFacts] = {}
    selectors: dict[str, SelectorFacts] = {}
    for job in jobs:
        parts.check(job)
        for read in [job, {**job, "model": chooser(job)}]:  # the data as each of the models reads it
            model = parts.of("model", read["model"])
            tokenizer = parts.tokenizer(model, Path(job["outputs"]) / "cache")
            key = fingerprint(job["dataset"], read["model"])
            if key not in pools:
                dataset = parts.of("dataset", job["dataset"])
                pools[key] = pool_facts(dataset, read, model.max_length, tokenizer, runs)
            for node in [job["benchmark"], *_akin(read, runs)]:
                key = fingerprint(node, read["model"])
                if key not in benchmarks:
                    benchmark = parts.of("benchmark", node)
                    benchmarks[key] = benchmark_facts(benchmark, node, read, model.max_length, tokenizer)
        kind = type(parts.of("selector", job["selector"]))
        selectors[job["selector"]["_target_"]] = SelectorFacts(
            gradients=Need.GRADIENTS in kind.needs,
            model=Need.MODEL in kind.needs,
            version=kind.version,
            ignores_budget=kind.ignores_budget,
        )
    return Facts(pools, benchmarks, selectors)


class _Parts:
    """The checked objects of the jobs, each built once."""

    def __init__(self) -> None:
        self.built: dict[str, Any] = {}
        self.tokenizers: dict[tuple[str | None, ...], Any] = {}

    def of(self, group: str, node: Any) -> Any:
        key = fingerprint(group, node)
        if key not in self.built:
            self.built[key] = build(node, group)
        return self.built[key]

    def tokenizer(self, model: Any, cache: Path) -> Any:
        """The model's tokenizer if it is on this machine; nothing is converted or downloaded for it."""
        made = {"tiny": "tiny", "smollm2": "smollm2-135m-instruct"}.get(model.source.value)
        place = str(cache / "models" / made) if made else model.name_or_path
        key = place, None if made else model.revision, model.system_prompt
        if key not in self.tokenizers:
            self.tokenizers[key] = _tokenizer(*key)
        return self.tokenizers[key]

    def check(self, job: Job) -> None:
        """The whole job, as the worker builds it: what one group alone cannot tell shows there."""
        assemble(job, lambda node, group: self.of(group, node))


def pool_facts(dataset: Any, job: Job, max_length: int, tokenizer: Any, runs: Sequence[Earlier]) -> PoolFacts:
    """Return what is known of a pool: counted where it is here, else told by its options or earlier runs."""
    node = job["dataset"]
    try:
        examples = dataset.load().examples
    except (UserError, OSError) as error:
        rows, rows_from = published_rows(node)
        rows_from += f", {_why(error)}"
    else:
        tokens, tokens_from = mean_tokens(examples, tokenizer, max_length)
        return PoolFacts(len(examples), "read", tokens, tokens_from, False)
    same = [r for r in runs if r.job.get("dataset") == node and r.job.get("model") == job["model"]]
    if not same:
        return PoolFacts(rows, rows_from, float(max_length), "at most, by model.max_length", True)
    # Of the chosen rows, those of a selector that looks at none are the least biased.
    run = min(same, key=lambda run: run.record.names.selector not in ("random", "full"))
    assert run.record.pool is not None
    return PoolFacts(run.record.pool.candidates, run.name, run.tokens_per_row, f"those of {run.name}", False)


def published_rows(node: Mapping[str, Any]) -> tuple[int, str]:
    """The size that the configuration states: of a subset, of the whole set, or of its sources; and where."""
    whole, place = node.get("expected_rows"), "dataset.expected_rows"
    if isinstance(sources := node.get("sources"), list):
        sizes = [source.get("rows") or source.get("expected_rows") for source in sources]
        whole, place = sum(sizes) if all(sizes) else None, "expected_rows of dataset.sources"
    rows = node.get("rows")
    if isinstance(rows, int):
        return (rows, "dataset.rows") if whole is None or rows <= whole else (whole, place)
    if isinstance(whole, int):
        return whole, place
    return ASSUMED_ROWS, f"unknown: {ASSUMED_ROWS:,} rows assumed"


def benchmark_facts(
    benchmark: Any, node: Mapping[str, Any], job: Job, max_length: int, tokenizer: Any
) -> BenchmarkFacts:
    """Return what is known of a benchmark's rows; counts are None where its data is not here."""
    own = fingerprint(node)
    if isinstance(benchmark, SplitsPool):
        rows = node["test_rows"]
        return BenchmarkFacts(True, rows, own, 0, 0.0, fingerprint(job["dataset"], node), 1, rows, "")
    try:
        target = benchmark.target()
        found = benchmark.tasks()
    except Exception as error:  # whatever a library raises without network
        return BenchmarkFacts(False, 0, own, None, None, own, None, None, _why(error))
    tasks_key = fingerprint(sorted(fingerprint(describe(task)) for task in found))
    sizes = [len(task.docs or task.held_out) for task in found]
    test_rows = sum(sizes) if all(sizes) else None
    if target is None:
        return BenchmarkFacts(True, 0, own, 0, 0.0, tasks_key, len(found), test_rows, "")
    tokens, _ = mean_tokens(target, tokenizer, max_length)
    return BenchmarkFacts(
        False, 0, content_hash(target), len(target), tokens, tasks_key, len(found), test_rows, ""
    )


def mean_tokens(examples: Sequence[Any], tokenizer: Any, max_length: int) -> tuple[float, str]:
    """Tokens of a row within max_length, a mean over evenly spaced rows, and how it is known."""
    step = max(1, len(examples) // SAMPLED_ROWS)
    sample = list(examples[::step])[:SAMPLED_ROWS]
    if tokenizer is None:
        sizes = [min(max_length, sum(len(m.content) for m in e.messages) / 4) for e in sample]
        return max(1.0, sum(sizes) / len(sizes)), "characters / 4, the tokenizer is not here"
    found = tokenize(sample, tokenizer, max_length=max_length).examples
    if not found:
        raise UserError("no row of the pool or the target has a completion")
    return sum(e.n_tokens for e in found) / len(found), f"tokenised {len(sample):,} of them"


def _akin(job: Job, runs: Sequence[Earlier]) -> list[Mapping[str, Any]]:
    """Benchmarks of the job's kind that earlier runs of its model were tested on."""
    mine = job["benchmark"]["_target_"]
    found = [r.job["benchmark"] for r in runs if r.job.get("model") == job["model"] and "benchmark" in r.job]
    return [node for node in found if node.get("_target_") == mine]


def _why(error: Exception) -> str:
    message = first_line(error)
    if any(word in message for word in ("Offline", "offline", "from the hub")):
        return "not on this machine"
    return message


def _tokenizer(place: str, revision: str | None, system_prompt: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    ensure_chat_template(tokenizer, system_prompt)
    return tokenizer
