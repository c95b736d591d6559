"""A whole study on the tiny model goes on after a kill, and its tests reach nothing but their own column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy
from test_experiment import ROOT
from toy import TOY

from gtp_benchmarks.validity import __main__ as command
from gtp_benchmarks.validity.measure import validation_task
from gtp_benchmarks.validity.study import prepare_study
from gtp_benchmarks.validity.targets import answers_covered, target_like
from gtp_exp.estimate.jobs import compose_jobs
from gtp_exp.stages import training
from gtp_exp.stages.gradients import read_store
from gtp_exp.worker import assemble

JOB = [*TOY, "model.precision=fp32", "launch.threads=1", "budget=rows", "budget.amount=6"]
COUNT = 6


def study_of(outputs, *overrides):
    arguments = ["--config-dir", str(ROOT / "tests" / "conf"), *JOB, f"outputs={outputs}", *overrides]
    (job,) = compose_jobs(arguments, str(ROOT / "conf"))
    return prepare_study(assemble(job["config"]))


def results(folder: Path):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(outputs):
    """The labels of all that was trained: a study is interrupted in its third subset, then run again."""
    labels: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        finetune = training.finetune

        def counted(*arguments, label, **more):
            if labels.count("fine-tune") == 3 and "killed" not in labels:
                labels.append("killed")
                raise KeyboardInterrupt
            labels.append(label)
            return finetune(*arguments, label=label, **more)

        patch.setattr(training, "finetune", counted)
        folder = outputs / "validity"
        with pytest.raises(KeyboardInterrupt):
            command.run_study(study_of(outputs), COUNT, 0, folder)
        assert len(results(folder)) == 3 and len((folder / "subsets.json").read_text()) > 1000
        command.run_study(study_of(outputs), COUNT, 0, folder)
    return labels


def test_a_killed_study_goes_on_and_trains_nothing_twice(trained, outputs):
    assert trained == ["warm-up", *["fine-tune"] * 3, "killed", *["fine-tune"] * (COUNT - 3)]
    lines = results(outputs / "validity")
    assert [line["number"] for line in lines] == list(range(COUNT))
    assert len({line["finetune"] for line in lines}) == COUNT
    assert all(len(set(line["ids"])) == 6 for line in lines)


def test_the_report_holds_every_objective_and_every_loss(trained, outputs):
    report = json.loads((outputs / "validity" / "report.json").read_text())
    objectives = [row for row in report["rows"] if "objective" in row]
    # 3 directions x 3 choices of checkpoints x 3 weights of the end of turn x 13 formulas
    assert report["subsets"] == COUNT and len(objectives) == 2 * 3 * 3 * 3 * 9
    assert {row["name"] for row in report["rows"] if "objective" not in row} == {
        "mean bm25",
        "mean length of answers",
        "share of target-like rows",
        "answers of the target covered",
    }
    losses = {f"{part} {name}" for part in ("validation", "test") for name in ("nats_per_token", "content")}
    assert set(report["rows"][0]["spearman"]) == losses
    assert "6 of 6 subsets of 6 rows" in (outputs / "validity" / "report.md").read_text()


def test_weights_of_the_end_of_turn_differ_and_directions_too(trained, outputs):
    values = json.loads((outputs / "validity" / "subsets.json").read_text())["objectives"]
    start = "cosine: unit {}, checkpoints all, end of turn {}"
    kinds = [("sgd", "1"), ("sgd", "0"), ("sgd", "balanced"), ("adam", "1"), ("less", "1")]
    columns = [tuple(values[start.format(*kind)]) for kind in kinds]
    assert len(set(columns)) == len(kinds)
    assert all(-1 <= value <= 1 for column in columns for value in column)


def test_other_test_rows_change_the_tests_column_alone(trained, outputs, monkeypatch):
    first = results(outputs / "validity")

    def other_tasks(self):
        numbers = range(600, 604)
        docs = tuple(
            {"question": f"What is {i} plus 2?", "choices": [f"{i}", f"{i + 2}"], "gold": 1} for i in numbers
        )
        held_out = tuple(toy.conversation(i, f"What is {i} plus 2?", f"{i + 2}") for i in numbers)
        return (toy.EvalTask("other_sums", "acc,none", toy.CHOICE, docs, held_out=held_out),)

    monkeypatch.setattr(toy.ToyBenchmark, "tasks", other_tasks)
    monkeypatch.setattr(training, "finetune", None)
    command.run_study(study_of(outputs), COUNT, 0, outputs / "other")
    told, other = (
        json.loads((outputs / name / "subsets.json").read_text()) for name in ("validity", "other")
    )
    assert told["objectives"] == other["objectives"] and told["subsets"] == other["subsets"]
    again = results(outputs / "other")
    assert [line["validation"] for line in again] == [line["validation"] for line in first]
    assert all(a["test"] != b["test"] for a, b in zip(again, first, strict=True))


def test_objectives_see_no_row_that_the_validation_measures(trained, outputs):
    study = study_of(outputs)
    held_back = {row.id for row in study.inputs.validation.examples}
    whole = toy.ToyBenchmark(6, 8, False).target()
    assert held_back and study.inputs.tasks == ()
    for stores in study.stores.values():
        assert set(read_store(stores.target).ids) == {row.id for row in whole} - held_back
    task = validation_task(study).task
    assert {doc["id"] for doc in task.docs} == held_back
    assert task.docs[0]["choices"] == sorted(row.completion for row in whole)


def test_rows_like_the_target_are_told_by_answers_and_hidden_labels(trained, outputs):
    study = study_of(outputs)
    skills = [study.inputs.pool.hidden[row.id]["skill"] for row in study.inputs.candidates.examples]
    assert target_like(study.inputs).tolist() == [skill == "sum" for skill in skills]  # subtask `sum`
    assert answers_covered(study.inputs, range(len(skills))) == 0  # sums below 50 against those above 200


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--subsets", "0"], "--subsets must be 1 or more"),
        (["budget.unit=tokens", "budget.amount=100"], "subsets have a number of rows"),
        (["benchmark.in_domain=true"], "the benchmark has no target rows"),
        (["launch.num_processes=2"], "launch.num_processes must be 1"),
        (["gradients.directions=[less]", "selector=random"], "gradients.directions lacks sgd"),
    ],
)
def test_what_cannot_be_studied_is_refused_with_the_remedy(arguments, message, outputs, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    search = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
    assert command.main([search, *JOB, f"outputs={outputs}", *arguments]) == 2
    assert message in capsys.readouterr().err
