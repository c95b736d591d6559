"""A finished run stays where it is when another job is led to its folder."""

from __future__ import annotations

import json

import pytest
from test_command_line import call

from gtp_exp.api.finished import check_finished_run, differences
from gtp_exp.errors import UserError

SELECTOR = {"_target_": "gtp_exp.selection.gtp.GTP", "ridge": 0.3, "memory_gib": 4}
RUN = {
    "seed": 0,
    "dataset": {"rows": 500},
    "selector": SELECTOR,
    "gradients": {"token_budget": 4096},
    "until": "evaluation",
    "validation": {"share": 0.5},
    "tests": {},
    "outputs": "outputs",
}


def told(change, earlier=None):
    return list(differences({**RUN, **(earlier or {})}, {**RUN, **(earlier or {}), **change}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": {"rows": 800}}, ["dataset.rows=500 there, 800 here"]),
        ({"seed": 1}, ["seed=0 there, 1 here"]),
        ({"until": "selection"}, ["until=evaluation there, selection here"]),
        ({"selector": {**SELECTOR, "ridge": 0.1}}, ["selector.ridge=0.3 there, 0.1 here"]),
        ({"selector": {"_target_": "gtp_baselines.random.Random"}}, ["selector._target_=gtp_exp"]),
    ],
)
def test_what_changes_a_result_is_told(change, words):
    found = told(change)
    assert found and all(any(line.startswith(word) for line in found) for word in words)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"outputs": "elsewhere", "tracking": {"mode": "online"}},
        {"gradients": {"token_budget": 512}, "selector": {**SELECTOR, "memory_gib": 1}},
        {"dataset": {"rows": 500.0}},
        {"validation": {"share": 0.2}},
        {"tests": {"mmlu": {"test_rows": 200}}},
        {"selector": {**SELECTOR, "folds": 3}},  # an option that came with a later version
    ],
)
def test_what_changes_none_is_not(change):
    assert not told(change)


def test_another_number_of_processes_changes_a_result_where_each_draws_masks_of_dropout():
    processes = {"launch": {"num_processes": 2}}
    assert not told(processes, {"model": {"lora": {"dropout": 0.0}}})
    masks = {"model": {"lora": {"dropout": 0.1}}}
    assert told(processes, masks) == ["launch.num_processes=1 there, 2 here"]


@pytest.mark.parametrize("dropout", [None, "high"])
def test_a_value_that_only_the_job_will_refuse_is_told_as_any_other(dropout):
    adapter = {"model": {"lora": {"dropout": 0.1}}}
    (line,) = told({"model": {"lora": {"dropout": dropout}}}, adapter)
    assert line.startswith("model.lora.dropout=0.1 there")


def test_a_run_may_go_further_but_not_elsewhere():
    assert not told({"until": "evaluation"}, {"until": "selection"})
    assert told({"until": "validation"}, {"until": "selection"})  # which chooses by fewer target rows
    assert told({"validation": {"share": 0.2}}, {"until": "validation"})
    assert told({"tests": {"mmlu": {"test_rows": 100}}}, {"tests": {"mmlu": {"test_rows": 200}}})
    assert told({"tests": {}}, {"tests": {"mmlu": {"test_rows": 200}}})


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_a_run_that_did_not_finish_is_replaced(tmp_path, state):
    (tmp_path / "results.json").write_text(json.dumps({"state": state, "config": RUN}))
    check_finished_run(tmp_path, {**RUN, "seed": 1}, "hydra.run.dir")


def test_a_setting_of_an_earlier_name_is_the_same(tmp_path):
    earlier = {**RUN, "dataset": {"_target_": "gtp_exp.data.jsonl.Jsonl"}}
    (tmp_path / "results.json").write_text(json.dumps({"state": "complete", "config": earlier}))
    later = {**RUN, "dataset": {"_target_": "gtp_exp.data.sources.jsonl.Jsonl"}}
    check_finished_run(tmp_path, later, "hydra.run.dir")
    with pytest.raises(UserError, match=r"seed=0 there, 1 here.*hydra\.run\.dir=DIR"):
        check_finished_run(tmp_path, {**later, "seed": 1}, "hydra.run.dir")


def test_of_many_settings_a_few_are_named_and_the_others_counted(tmp_path):
    earlier = {**RUN, "train": {"epochs": 1}, "budget": {"amount": 5}}
    (tmp_path / "results.json").write_text(json.dumps({"state": "complete", "config": earlier}))
    later = {**earlier, "train": {"epochs": 2}, "budget": {"amount": 9}, "dataset": {"rows": 800}, "seed": 1}
    named = "budget.amount=5 there, 9 here, dataset.rows=500 there, 800 here, seed=0 there, 1 here"
    with pytest.raises(UserError, match=rf"\({named} and 1 more\)"):
        check_finished_run(tmp_path, later, "hydra.run.dir")


def test_a_multirun_in_the_folder_of_another_replaces_no_finished_run(tmp_path):
    sweep = ["-m", "selector=random", "seed=0,1", "hydra.sweep.dir=outputs/runs/sweep", "until=selection"]

    def results():
        found = [path for path in tmp_path.glob("outputs/runs/sweep/*/*") if path.is_file()]
        assert {"results.json", "selected.jsonl", "resolved.yaml"} <= {path.name for path in found}
        return {path: path.read_text() for path in found}

    assert call(tmp_path, *sweep).returncode == 0
    first = results()
    done = call(tmp_path, *sweep, "dataset.rows=30")
    assert done.returncode == 1 and "2 job(s) failed" in done.stderr and "Traceback" not in done.stderr
    assert "holds a finished run of other settings (dataset.rows=40 there, 30 here)" in done.stderr
    assert "give hydra.sweep.dir=DIR" in done.stderr
    assert results() == first
    assert call(tmp_path, *sweep).returncode == 0  # the same again
    assert results() != first  # started later
