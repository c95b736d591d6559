"""The row for the DATE-LM leaderboard: exactly its keys, the right means, and nothing half done."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from leaderboard_runs import record, save

from gtp_exp.errors import UserError
from gtp_exp.leaderboard.command import main
from gtp_exp.leaderboard.date_lm import MethodType, Submission, row, write
from gtp_exp.leaderboard.records import Run
from gtp_exp.records.record import PoolSummary, RowCounts

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
KEYS = [
    *("Rank", "Method", "Attribution Method Type", "Model", "Model Size", "Paper/Code/Contact Link"),
    *("MMLU", "GSM8K", "BBH"),
]
BENCHMARKS = {
    "mmlu_date_lm": ("mmlu", 57, 0, "acc"),
    "gsm8k_date_lm": ("gsm8k_cot", 1, 8, "exact_match"),
    "bbh_date_lm": ("bbh_cot_fewshot", 27, 3, "exact_match"),
}
IDS = tuple(f"row-{i}" for i in range(10_000))
GTP = Submission("gtp", "GTP", None, "https://example.org", None)


def one(benchmark, seed=0, selector="gtp", score=0.5):
    """A complete run of one benchmark, all of whose tasks have the same score."""
    names, tasks, shots, metric = BENCHMARKS[benchmark]
    node = {"names": [names], "num_fewshot": shots, "test_rows": None, "chat": True}
    model = {"name_or_path": "meta-llama/Llama-3.1-8B", "lora": {"r": 128}}
    made = record(
        selector, seed, benchmark=benchmark, budget="10k_rows", config={"benchmark": node, "model": model}
    )
    assert made.selection
    return replace(
        made,
        selection=replace(made.selection, n_selected=10_000, indices_ids=IDS, weights=(1.0,) * 10_000),
        pool=PoolSummary(rows=200_010, candidates=199_990, excluded={}, cut=0, content="c0"),
        metrics={f"{names}_{i}": {metric: score, "headline": metric} for i in range(tasks)},
        rows={f"{names}_{i}": RowCounts(used=100, left_out={}, cut=0, content="c1") for i in range(tasks)},
    )


def complete(seeds=(0, 1), selector="gtp"):
    return [one(benchmark, seed, selector) for benchmark in BENCHMARKS for seed in seeds]


def as_runs(records):
    return [Run(f"sweep/{i}", Path(f"/nowhere/{i}"), r) for i, r in enumerate(records)]


def changed(records, index, **changes):
    return [replace(r, **changes) if i == index else r for i, r in enumerate(records)]


def with_config(records, index, group, **values):
    config = {**records[index].config, group: {**records[index].config[group], **values}}
    return changed(records, index, config=config)


def test_a_row_has_the_leaderboards_keys_and_no_other():
    found = row(as_runs(complete()), GTP)
    assert list(found) == KEYS
    assert found == {
        "Rank": 0,
        "Method": "GTP",
        "Attribution Method Type": "Gradient",
        "Model": "Llama-3.1-8B",
        "Model Size": "8B",
        "Paper/Code/Contact Link": "https://example.org",
        **dict.fromkeys(("MMLU", "GSM8K", "BBH"), 50.0),
    }


def test_metrics_are_per_cent_and_means_over_seeds():
    records = [one(b, seed, score=0.4 + 0.1 * seed) for b in BENCHMARKS for seed in (0, 1, 2)]
    found = row(as_runs(records), GTP)
    assert (found["MMLU"], found["GSM8K"], found["BBH"]) == (50.0, 50.0, 50.0)


def test_mmlu_is_a_mean_over_test_rows_and_bbh_one_over_tasks():
    """The first task is twice as long as all others together, and all right; the others are all wrong."""
    records = complete(seeds=(0,))
    for i in (0, 2):
        first, *others = records[i].metrics
        metric = str(records[i].metrics[first]["headline"])
        scores = {task: {metric: float(task == first), "headline": metric} for task in (first, *others)}
        long = RowCounts(used=200 * len(others) - 7, left_out={"empty": 7}, cut=0, content="c1")
        records = changed(records, i, metrics=scores, rows={**records[i].rows, first: long})
    found = row(as_runs(records), GTP)
    assert found["MMLU"] == pytest.approx(66.67) and found["BBH"] == pytest.approx(100 / 27, abs=0.01)


def test_the_submission_is_what_the_leaderboard_merges(tmp_path):
    """Its merge script drops three keys of metadata.json and puts the rank in front."""
    files = write(as_runs(complete()), GTP, tmp_path, NOW)
    metadata, entry = (json.loads(path.read_text()) for path in files)
    assert files[0] == tmp_path / "20260102-030405-GTP-GTP" / "metadata.json"
    assert metadata["Metadata Path"] == "submissions/20260102-030405-GTP-GTP/metadata.json"
    assert metadata["Leaderboard"] == "Fine-Tuning" and metadata["Date of Submission"] == "20260102-030405"
    merged = {"Rank": 0} | {
        key: value
        for key, value in metadata.items()
        if key not in ("Metadata Path", "Leaderboard", "Date of Submission")
    }
    assert merged == entry and list(merged) == KEYS


def test_other_selectors_are_left_out_of_the_row():
    found = row(as_runs(complete() + [one("mmlu_date_lm", s, "less", 0.9) for s in (0, 1)]), GTP)
    assert found["MMLU"] == 50.0


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        (complete()[2:], "MMLU: no complete run of it"),
        (complete()[:4], "BBH: no complete run of it"),
        (complete()[:-1], "BBH: no complete run of seed 1"),
        (complete() + complete()[:1], "MMLU: several runs of seed 0"),
        (with_config(complete(), 0, "benchmark", num_fewshot=5), "MMLU with 5 examples"),
        (
            with_config(complete(), 2, "benchmark", num_fewshot=5),
            "GSM8K with 5 examples in the prompt, not 8$",
        ),
        (with_config(complete(), 0, "benchmark", test_rows=50), "on 50 test rows per task"),
        (with_config(complete(), 0, "benchmark", chat=False), "runs differ in benchmark.chat: false, true"),
        (with_config(complete(), 3, "train", epochs=9), "runs differ in train.epochs: 3, 9"),
        (
            changed(complete(), 4, metrics={"bbh_0": {"exact_match": 0.5, "headline": "exact_match"}}),
            "1 of 27",
        ),
        (
            changed(complete(), 2, metrics={"gsm8k_0": {"acc": 0.5, "headline": "acc"}}),
            "GSM8K lacks exact_match for gsm8k_0",
        ),
        (changed(complete(), 1, pool=PoolSummary(1000, 1000, {}, 0, "c0")), "a pool of 1,000 candidates"),
        (changed(complete(), 0, selection=record().selection), "3 rows chosen, not 10,000"),
        (changed(complete(), 0, rows={}), "MMLU lacks the number of test rows of mmlu_0"),
        ([one(b, score=0.0 if "gsm" in b else 0.5) for b in BENCHMARKS], "GSM8K is 0"),
        (complete(selector="less"), "no complete run of the selector gtp; there are: less"),
    ],
)
def test_an_incomplete_row_is_refused_with_what_is_missing(runs, named, tmp_path):
    with pytest.raises(UserError, match=named.replace("(", r"\(")):
        write(as_runs(runs), GTP, tmp_path / "out", NOW)
    assert not (tmp_path / "out").exists()


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(UserError) as error:
        row(as_runs(with_config(complete(), 0, "benchmark", num_fewshot=5)[:4]), GTP)
    assert "MMLU with 5" in str(error.value) and "BBH: no complete run" in str(error.value)


def test_a_selector_without_gradients_must_name_its_type():
    records = [replace(r, stages={}) for r in complete(selector="bm25")]
    asked = replace(GTP, selector="bm25")
    with pytest.raises(UserError, match="--date-lm-type, one of Gradient, Similarity, Representation-Based"):
        row(as_runs(records), asked)
    found = row(as_runs(records), replace(asked, method_type=MethodType.LEXICAL))
    assert found["Attribution Method Type"] == "Lexical"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("meta-llama/Llama-3.1-8B", "8B"), ("meta-llama/Llama-2-7b-hf", "7B")),
        *(("HuggingFaceTB/SmolLM2-135M-Instruct", "135M"), ("Qwen/Qwen2.5-0.5B", "0.5B")),
        ("tiny-random-llama", None),
    ],
)
def test_the_size_is_read_off_the_models_name(name, size):
    records = complete()
    for i in range(len(records)):
        records = with_config(records, i, "model", name_or_path=name)
    if size is None:
        with pytest.raises(UserError, match="--date-lm-size"):
            row(as_runs(records), GTP)
    else:
        assert row(as_runs(records), GTP)["Model Size"] == size


def test_the_command_writes_the_row_and_says_where(tmp_path, capsys):
    for i, made in enumerate(complete()):
        save(made, tmp_path / "runs", str(i))
    arguments = [str(tmp_path / "runs"), "--date-lm", str(tmp_path / "out")]
    assert main(arguments) == 2  # without a link
    assert "--date-lm-link" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*arguments, "--date-lm-link", "me@example.org", "--date-lm-method", "Pursuit"]) == 0
    printed = capsys.readouterr().out
    (path,) = (tmp_path / "out").glob("*/metadata.json")
    assert str(path) in printed and '"Method": "Pursuit"' in printed
    assert json.loads(path.read_text())["Paper/Code/Contact Link"] == "me@example.org"


def test_the_command_knows_the_leaderboards_types(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--date-lm", "x", "--date-lm-type", "Magic"])
    assert "Gradient, Similarity, Representation-Based, Modeling, Baseline, Lexical, Other" in (
        capsys.readouterr().err
    )
