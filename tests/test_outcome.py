"""What a job says at its end: one line where it is one of many, else at most eight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gtp_exp.api.outcome import closing, outcome
from gtp_exp.data.benchmark import Mean
from gtp_exp.records.record import (
    FurtherTest,
    Names,
    PoolSummary,
    RunRecord,
    SelectionSummary,
    StageCost,
    State,
    TokenLoss,
    ValidationSummary,
)

ACC = {"acc": 0.25, "nats_per_token": 1.5, "headline": "acc"}
BETTER = {"acc": 0.5, "nats_per_token": 1.0, "headline": "acc"}
CHOSEN = SelectionSummary(
    3, 1234, ("a", "b", "c"), (1.0, 1.0, 1.0), {}, {"length in tokens": {"1-31": 1.0}}, {}, 1, 0
)
LABELS = {
    "label_mix": {"skill": {"sum": 2 / 3, "greeting": 1 / 3}, "of": {"absent": 1.0}, "same": {"x": 1.0}},
    "pool_mix": {"skill": {"greeting": 0.9, "sum": 0.1}, "of": {"absent": 0.9}, "same": {"x": 1.0}},
}
NAMES = Names("gtp", "rows", "jsonl", "jsonl", "tiny", "lora_trajectory", "lora")
STAGES = {
    "warmup": StageCost("k1", 4.0, True),
    "selection": StageCost("k2", 1.0, False),
    "finetune": StageCost("k3", 5.04, False),
}
RECORD = RunRecord(
    State.COMPLETE,
    NAMES,
    0,
    "group",
    {"benchmark": {"mean": Mean.TASKS.value}},
    (),
    None,
    {},
    "2026-01-01T00:00:00+00:00",
    stages=STAGES,
    selection=CHOSEN,
    pool=PoolSummary(6000, 6000, {}, 0, "hash"),
    metrics={"sums": BETTER},
    untuned={"sums": ACC},
)
RUN = Path("outputs/runs/a")


def test_the_end_of_a_job_tells_its_worth_its_choice_its_place_its_cost_and_what_is_next():
    assert closing(replace(RECORD, selection=replace(CHOSEN, **LABELS)), RUN).splitlines() == [
        "sums: acc 50.0%, untuned 25.0%",
        "chose 3 of 6,000 rows: 1,234 tokens, 1 exact copy, 0 near copies",
        "of these, and of the pool: skill sum 67% (10%), greeting 33% (90%); same x 100% (100%)",
        "rows: outputs/runs/a/selected.jsonl, and outputs/runs/a/selected for load_dataset",
        "model: outputs/runs/a/model",
        "cost: 10.0 s (finetune 5.0, warmup 4.0, selection 1.0); 4.0 s of it were in the cache",
        "next: gtp-exp-leaderboard outputs/runs  # or gtp-exp-export outputs/runs/a --merge OUT",
    ]


def test_rows_without_labels_have_no_line_of_labels_and_those_of_the_target_are_counted():
    told = replace(RECORD, selection=replace(CHOSEN, target_labels=10, labels_chosen=4, n_cut=2))
    assert closing(told, RUN).splitlines()[1:3] == [
        "chose 3 of 6,000 rows: 1,234 tokens, 1 exact copy, 0 near copies, 4 of 10 labels of the target, "
        "2 cut to model.max_length",
        "rows: outputs/runs/a/selected.jsonl, and outputs/runs/a/selected for load_dataset",
    ]


def test_copies_by_hidden_labels_are_told_where_there_are_any():
    for repeats, told in ((None, ""), (0, ""), (1, ", 1 copy of another chosen row by hidden labels")):
        record = replace(RECORD, selection=replace(CHOSEN, repeats=repeats))
        line = "chose 3 of 6,000 rows: 1,234 tokens, 1 exact copy, 0 near copies" + told
        assert closing(record, RUN).splitlines()[1] == line


def test_a_test_of_one_row_has_no_error():
    """A record tells 0 there, as if the number were certain."""
    rows = {n: {**BETTER, "acc_stderr": 0.0, "rows_tested": float(n)} for n in (1, 2)}
    told = closing(replace(RECORD, metrics={f"of {n}": values for n, values in rows.items()}), RUN)
    assert told.startswith("of 1: acc 50.0%, untuned not measured; of 2: acc 50.0% ± 0.0%, untuned")


def test_of_many_tests_the_mean_is_told():
    metrics = {name: BETTER for name in "abc"} | {"d": {**BETTER, "acc": 0.9}}
    told = replace(RECORD, metrics=metrics, untuned=dict.fromkeys("abcd", ACC))
    assert closing(told, RUN).splitlines()[0] == "4 tests: mean acc 60.0%, untuned 25.0%"
    further = replace(told, tests={"mmlu": FurtherTest(metrics={"law": BETTER}, untuned={"law": ACC})})
    assert closing(further, RUN).splitlines()[0].endswith("untuned 25.0% (1 further tests in results.json)")
    few = replace(RECORD, tests=further.tests)
    assert closing(few, RUN).splitlines()[0] == (
        "sums: acc 50.0%, untuned 25.0%; mmlu, law: acc 50.0%, untuned 25.0%"
    )


def test_a_job_that_ends_earlier_tells_what_it_has_and_how_to_go_on():
    selected = replace(RECORD, metrics={}, untuned={}, stages={"selection": STAGES["selection"]})
    assert closing(selected, RUN).splitlines() == [
        "chose 3 of 6,000 rows: 1,234 tokens, 1 exact copy, 0 near copies",
        "rows: outputs/runs/a/selected.jsonl, and outputs/runs/a/selected for load_dataset",
        "cost: 1.0 s (selection 1.0)",
        "next: gtp-exp-export outputs/runs/a --format trl --out FOLDER  # or axolotl, llama_factory, openai",
    ]
    losses = ValidationSummary(8, TokenLoss(1.0, 0.1), TokenLoss(2.0, 0.2))
    validated = closing(replace(RECORD, metrics={}, untuned={}, validation=losses), RUN).splitlines()
    assert validated[0] == "validation on 8 rows: nats per token 1.000 ± 0.100, untuned 2.000 ± 0.200"
    assert "--config-dir outputs/runs/a --config-name resolved until=evaluation" in validated[-1]


@pytest.mark.parametrize("n", [1, 40])
def test_it_is_never_more_than_eight_lines(n):
    labels = {f"label {i}": {f"value {j}": 1 / n for j in range(n)} for i in range(n)}
    told = replace(
        RECORD,
        selection=replace(CHOSEN, label_mix=labels, pool_mix=labels),
        metrics={f"test {i}": BETTER for i in range(n)},
        untuned={f"test {i}": ACC for i in range(n)},
        tests={f"more {i}": FurtherTest(metrics={"x": BETTER}) for i in range(n)},
        stages={f"stage {i}": STAGES["warmup"] for i in range(n)},
    )
    assert len(closing(told, RUN).splitlines()) <= 8


def test_a_job_of_many_has_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untested = replace(RECORD, metrics={}, untuned={})
    file = "chose 3 of 6,000 rows: outputs/runs/a/selected.jsonl"
    assert outcome(untested, tmp_path / "outputs" / "runs" / "a") == outcome(untested, RUN) == file
    assert outcome(RECORD, RUN) == f"{file}; sums: acc 50.0%"
    assert outcome(replace(RECORD, metrics=dict.fromkeys("abcd", ACC)), RUN) == file
    elsewhere = f"chose 3 of 6,000 rows: {tmp_path.parent}/a/selected.jsonl"
    assert outcome(untested, tmp_path.parent / "a") == elsewhere
