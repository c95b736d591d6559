"""Synthetic run records for the leaderboard's tests: small, complete, and seeded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gtp_exp.records.record import (
    Names,
    PoolSummary,
    RowCounts,
    RunRecord,
    SelectedRow,
    SelectionSummary,
    StageCost,
    State,
    write_record,
    write_selected,
)

BUDGETS = {"1pct": 0.01, "5pct": 0.05, "10pct": 0.1}


def record(
    selector: str = "gtp",
    seed: int = 0,
    *,
    loss: float = 2.0,
    accuracy: float = 0.3,
    budget: str = "5pct",
    benchmark: str = "skills_target",
    chosen: Sequence[str] = ("row-1", "row-2", "row-3"),
    diagnostics: Mapping[str, Any] | None = None,
    label_mix: Mapping[str, Mapping[str, float]] | None = None,
    pool_mix: Mapping[str, Mapping[str, float]] | None = None,
    config: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> RunRecord:
    """A complete run with two tasks; `config` adds to or replaces top-level keys."""
    rng = random.Random(f"{selector}{seed}{budget}{benchmark}")
    jitter = 0.9 + 0.2 * rng.random()
    numbers = {"acc": accuracy, "acc_stderr": 0.026, "nats_per_token": loss, "nats_per_answer": 4 * loss}
    settings = {
        "model": {"hub_id": "tiny", "lora": {"r": 8}},
        "dataset": {"rows": 1000},
        "gradients": {"dim": 1024, "seed": 0},
        "train": {"lr": 1e-4, "epochs": 3},
        "selector": {"_target_": f"gtp_baselines.{selector}"},
        "budget": {"unit": "fraction", "amount": BUDGETS.get(budget, 0.05)},
        "benchmark": {"skills": ["sorting", "roman"]},
        "tracking": {"_target_": "none", "run": str(rng.random())},
        "outputs": "outputs",
        "seed": seed,
    }
    return RunRecord(
        state=State.COMPLETE,
        names=Names(
            **{
                "selector": selector,
                "budget": budget,
                "benchmark": benchmark,
                "dataset": "skills",
                "model": "smollm2_135m",
                "gradients": "lora",
                "train": "lora",
                **(names or {}),
            }
        ),
        seed=seed,
        group="sweep",
        config={**settings, **(config or {})},
        command=("python", "-m", "gtp_exp", f"selector={selector}", f"seed={seed}"),
        git_sha="0123456789abcdef",
        packages={"torch": "2.13.0", "lm_eval": "0.4.13"},
        started=f"2026-01-01T00:00:{seed % 60:02d}+00:00",
        finished="2026-01-01T01:00:00+00:00",
        stages={
            "warmup": StageCost("a", 20 * jitter, seed > 0),
            "gradients": StageCost("b", (5 if selector == "random" else 140) * jitter, seed > 0),
            "selection": StageCost("c", 3 * jitter, False),
            "finetune": StageCost("d", 90 * jitter, False),
            "evaluation": StageCost("e", 60 * jitter, False),
        },
        pool=PoolSummary(rows=1010, candidates=1000, excluded={"empty completion": 10}, cut=0, content="c0"),
        rows={"target": RowCounts(20, {}, 1, "c1"), "sorting": RowCounts(100, {"no completion": 2}, 0, "c2")},
        model={"weights": "0a1b", "dtype": "float32", "device": "cpu"},
        selection=SelectionSummary(
            n_selected=len(chosen),
            n_tokens=80 * len(chosen),
            indices_ids=tuple(chosen),
            weights=tuple(1.0 for _ in chosen),
            diagnostics=diagnostics or {},
            label_mix=label_mix or {},
            pool_mix=pool_mix or {},
            exact_duplicates=0,
            near_duplicates=1,
        ),
        metrics={
            "sorting": {**numbers, "headline": "acc"},
            "roman": {**numbers, "nats_per_token": loss + 0.2, "headline": "acc"},
        },
        untuned={
            task: {"acc": 0.25, "nats_per_token": 3.5, "nats_per_answer": 14.0, "headline": "acc"}
            for task in ("sorting", "roman")
        },
    )


def save(run: RunRecord, root: Path, name: str | None = None) -> Path:
    """results.json and selected.jsonl of one run; returns its folder."""
    names = run.names
    folder = root / (name or f"{names.selector}_{names.budget}_{names.benchmark}_seed{run.seed}")
    write_record(run, folder)
    if run.selection:
        write_selected(
            (
                selected(rank, example, run.selection.weights[rank - 1])
                for rank, example in enumerate(run.selection.indices_ids, 1)
            ),
            folder,
        )
    return folder


def selected(rank: int, example: str, weight: float = 1.0, text: str = "", **hidden: Any) -> SelectedRow:
    return SelectedRow(
        rank=rank,
        id=example,
        weight=weight,
        score=1 / rank,
        messages=(
            {"role": "user", "content": text or f"Sort the words of {example}: pear, apple, fig."},
            {"role": "assistant", "content": "apple, fig, pear"},
        ),
        hidden=hidden,
    )


def sweep(
    means: Mapping[str, float], seeds: int, *, spread: float, rng: random.Random, **common: Any
) -> list[RunRecord]:
    """selector -> mean loss; seeds scatter around it with the given standard deviation."""
    return [
        record(selector, seed, loss=rng.gauss(mean, spread), **common)
        for selector, mean in means.items()
        for seed in range(seeds)
    ]


def failed(run: RunRecord, error: str) -> RunRecord:
    return replace(run, state=State.FAILED, error=error, selection=None, metrics={}, untuned={}, stages={})
