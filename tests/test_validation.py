"""`until=validation`: what is held back reaches nothing before it is measured, and no test is read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
import toy
from test_experiment import computed, run

import gtp_exp
from gtp_baselines.less import LESS
from gtp_exp.__main__ import value_for_sweeper
from gtp_exp.api.outcome import outcome
from gtp_exp.data.examples import ANSWER
from gtp_exp.data.validation import REASON, Validation, held_back_rows
from gtp_exp.errors import UserError
from gtp_exp.evaluation import tasks
from gtp_exp.gradients.store import GradientStore
from gtp_exp.leaderboard.metrics import headline_mean
from gtp_exp.model.device import choose_device
from gtp_exp.model.loading import ModelConfig, ModelSource, prepare
from gtp_exp.records.record import RunRecord, State
from gtp_exp.worker import assemble

TARGET = toy.ToyBenchmark(6, 8, False).target()
BACK = sorted(TARGET[i].id for i in held_back_rows(TARGET, Validation(), "target"))
JOB = ["selector=less", "model.precision=fp32"]  # in which batches change no sum
LEFT = sorted({row.id for row in TARGET} - set(BACK))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def seen():
    """The problems that the selector was given."""
    return []


@pytest.fixture(scope="module")
def first(outputs, seen):
    """The run of a benchmark whose tests cannot be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.ToyBenchmark, "tasks", _refuse)
        patch.setattr(tasks, "_lm_eval", _refuse)
        select = LESS.select
        patch.setattr(LESS, "select", lambda self, problem: seen.append(problem) or select(self, problem))
        return run(outputs, *JOB, "until=validation", directory=outputs / "first")


def _refuse(*_, **__):
    raise AssertionError("a test was read")


def test_held_back_rows_never_reach_the_selector(first, seen, outputs):
    (problem,) = seen
    assert sorted(row.id for row in problem.target) == LEFT and len(LEFT) == len(BACK) == 3
    assert sorted(row.id for row in problem.target_tokens) == LEFT
    key = first.stages["gradients: target"].key
    assert len(GradientStore.open(outputs / "cache" / "gradients" / key / "store").ids) == 3
    assert problem.target_gradients.n == 3


def test_nothing_is_tested(first):
    assert first.metrics == first.untuned == {}
    assert not [stage for stage in first.stages if stage.startswith("evaluation")]
    assert set(first.rows) == {"target", "validation"}
    assert first.rows["target"].used == first.rows["validation"].used == first.validation.rows == 3


def test_the_loss_is_that_of_a_plain_loop_over_the_held_back_rows(first, outputs):
    job = assemble(first.config)
    model = prepare(job.model, outputs / "cache", choose_device("cpu"))
    loaded = model.load_tuned(outputs / "cache" / "finetune" / first.stages["finetune"].key / "model")
    for found, network in ((first.validation.tuned, loaded), (first.validation.untuned, model.load())):
        nats, counts = [], []
        for row in (row for row in TARGET if row.id in BACK):
            (tokens,) = tokenize([row], model)
            ids = torch.tensor([tokens.input_ids])
            with torch.inference_mode():
                logs = network.model(input_ids=ids).logits[0].double().log_softmax(-1)
            at = [i for i, part in enumerate(tokens.parts) if part == ANSWER]
            nats.append(-sum(float(logs[i - 1, ids[0, i]]) for i in at))
            counts.append(len(at))
        mean = sum(nats) / sum(counts)
        spread = sum((a - mean * n) ** 2 for a, n in zip(nats, counts, strict=True))
        error = math.sqrt(spread * len(nats) / (len(nats) - 1)) / sum(counts)
        assert found.nats_per_token == pytest.approx(mean, rel=1e-4)
        assert found.nats_per_token_stderr == pytest.approx(error, rel=1e-2)


def tokenize(rows, model):
    from gtp_exp.data.tokenization import tokenize

    return tokenize(rows, model.tokenizer, max_length=model.config.max_length).examples


def test_the_same_run_again_computes_nothing(first, outputs):
    again = run(outputs, *JOB, "until=validation")
    assert computed(again) == set() and again.validation == first.validation


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=2", {"finetune", "validation"}),
        ("benchmark.test_rows=3", set()),
        ("validation.seed=1", {"gradients: target", "selection", "finetune", "validation"}),
    ],
)
def test_a_change_recomputes_what_depends_on_it(first, outputs, override, expected):
    found = computed(run(outputs, *JOB, "until=validation", override))
    assert found - {"validation of the untuned model"} == expected
    assert ("validation of the untuned model" in found) == override.startswith("validation")


def test_an_ordinary_run_shares_warm_up_and_pool_gradients_and_measures_no_validation(first, outputs):
    ordinary = run(outputs, *JOB)
    shared = {name for name in ordinary.stages if ordinary.stages[name].cached}
    assert shared == {"warmup", "gradients: pool"}
    assert ordinary.rows["target"].used == 6 and ordinary.validation is None
    told = ordinary.to_json()
    assert "validation" not in told and "validation" not in ordinary.rows
    assert RunRecord.from_json(told) == ordinary
    assert computed(run(outputs, *JOB, "validation.seed=3", "validation.share=0.2")) == set()


def test_in_domain_pool_rows_are_held_back(outputs):
    job = ["selector=random", "until=validation", "validation.share=0.2"]
    found = run(outputs, *job, "benchmark.in_domain=true")
    held = found.pool.excluded[REASON]
    assert 4 <= held <= 12 and found.pool.candidates + sum(found.pool.excluded.values()) == 41
    assert found.validation.rows + found.rows["validation"].left_out.get("empty completion", 0) == held
    tested = run(outputs, *job, "benchmark=pool_held_out", "benchmark.test_rows=8")
    assert tested.pool.excluded["held out for the test"] == 8 and tested.metrics == {}
    assert tested.leakage["pool"]["same_prompt"] == 0


def test_a_target_of_one_row_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="until=validation cannot divide the 1 rows of the target"):
        run(tmp_path, "selector=less", "until=validation", "benchmark.target_rows=1")


def test_the_record_keeps_the_loss_and_the_closing_line_tells_it(first, outputs):
    told = first.to_json()["validation"]
    assert told == {
        "rows": 3,
        "tuned": asdict(first.validation.tuned),
        "untuned": asdict(first.validation.untuned),
    }
    assert RunRecord.from_json(json.loads(json.dumps(first.to_json()))) == first
    line = outcome(first, outputs / "first")
    assert f"validation on 3 rows: nats per token {first.validation.tuned.nats_per_token:.3f} ±" in line
    assert f"untuned {first.validation.untuned.nats_per_token:.3f}" in line
    events = [json.loads(line) for line in (outputs / "first" / "metrics.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["kind"] == "validation"]
    assert event["nats_per_token"] == first.validation.tuned.nats_per_token


def test_a_sweeper_is_told_the_validation_loss_or_the_headline(first):
    assert value_for_sweeper(first) == first.validation.tuned.nats_per_token
    tested = replace(first, validation=None, metrics={"sums": {"acc": 0.5, "headline": "acc"}})
    assert value_for_sweeper(tested) == headline_mean(tested) == 0.5
    assert math.isnan(value_for_sweeper(replace(first, validation=None)))


def test_a_job_of_the_python_interface_is_validated(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", toy.__file__.rpartition("/")[0], prepend=":")
    prepare(ModelConfig(source=ModelSource.TINY), tmp_path / "outputs" / "cache", torch.device("cpu"))
    job = [*toy.TOY, "selector=random", "budget=10pct", "until=validation", f"outputs={tmp_path}/outputs"]
    conf = toy.__file__.rpartition("/")[0] + "/conf"
    record = gtp_exp.run([*job, f"hydra.run.dir={tmp_path}/outputs/runs/job"], config_dir=conf)
    assert record.state is State.COMPLETE and record.validation is not None and record.metrics == {}
    (row,) = gtp_exp.results(tmp_path / "outputs" / "runs")
    assert row["validation/nats_per_token"] == record.validation.tuned.nats_per_token
