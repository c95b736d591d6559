"""Bundled lm-eval suites on small local copies: targets from few-shot splits, tests from test splits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gtp_benchmarks.lm_eval_suite import LmEvalSuite
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError


def data_set(folder: Path, configs) -> str:
    """A folder in the form of a downloaded hub data set. configs: name -> split -> rows."""
    card = ["---", "configs:"]
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        (folder / config).mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")
            card += [f"  - split: {split}", f"    path: {config}/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return str(folder)


def mmlu_row(i: int, subject: str):
    return {"question": f"{subject} {i}?", "subject": subject, "choices": list("wxyz"), "answer": i % 4}


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory) -> LmEvalSuite:
    subjects = ("anatomy", "virology")
    splits = {"test": range(7), "validation": range(50, 52), "dev": range(20, 25)}
    rows = {s: {split: [mmlu_row(i, s) for i in ids] for split, ids in splits.items()} for s in subjects}
    return LmEvalSuite(
        names=[f"mmlu_{s}" for s in subjects],
        folder="mmlu/default",
        dataset_path=data_set(tmp_path_factory.mktemp("local_mmlu"), rows),
        target_rows=3,
        test_rows=None,
        num_fewshot=2,
        chat=False,
        metric="acc,none",
    )


def test_the_rows_are_those_of_the_named_folder_whatever_was_read_before(tmp_path):
    def questions(folder: Path, ids: range) -> list[str]:
        splits = {"test": ids, "validation": ids, "dev": range(20, 25)}
        rows = {split: [mmlu_row(i, "anatomy") for i in numbers] for split, numbers in splits.items()}
        copy = data_set(folder, {"anatomy": rows})
        suite = LmEvalSuite(["mmlu_anatomy"], "mmlu/default", copy, 2, None, 0, False, "acc,none")
        (task,) = suite.tasks()
        return [str(doc["question"]) for doc in task.docs or ()]

    assert questions(tmp_path / "old" / "mmlu", range(3)) == [f"anatomy {i}?" for i in range(3)]
    assert questions(tmp_path / "new" / "mmlu", range(4)) == [f"anatomy {i}?" for i in range(4)]
    shutil.rmtree(tmp_path / "old")  # edited in place
    assert questions(tmp_path / "old" / "mmlu", range(6, 8)) == ["anatomy 6?", "anatomy 7?"]


@pytest.fixture(scope="module")
def bbh(tmp_path_factory) -> LmEvalSuite:
    rows = [{"input": f"not ( {b} ) is", "target": str(not b)} for b in (True, False, True)]
    folder = data_set(tmp_path_factory.mktemp("local_bbh"), {"boolean_expressions": {"test": rows}})
    names = ["bbh_cot_fewshot_boolean_expressions"]
    return LmEvalSuite(names, "bbh/cot_fewshot", folder, 3, None, 3, False, "exact_match,get-answer")


def tydiqa_row(i: int, language: str):
    answers = {"text": [f"answer {i}", f"the answer {i}"], "answer_start": [0, 0]}
    return {
        "id": f"{language}-{i}",
        "title": "t",
        "context": f"c {i}",
        "question": f"q {i}",
        "answers": answers,
    }


@pytest.fixture(scope="module")
def tydiqa(tmp_path_factory) -> LmEvalSuite:
    def rows(numbers):
        return [tydiqa_row(i, language) for i in numbers for language in ("finnish", "english")]

    splits = {"train": rows(range(10, 14)), "validation": rows(range(4))}
    folder = data_set(tmp_path_factory.mktemp("local_tydiqa"), {"secondary_task": splits})
    return LmEvalSuite(["tydiqa_goldp_en"], "tydiqa", folder, 1, None, 1, False, "f1,none")


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory) -> LmEvalSuite:
    def rows(numbers):
        return [{"question": f"{i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in numbers]

    splits = {"train": rows(range(10, 18)), "test": rows(range(4))}
    folder = data_set(tmp_path_factory.mktemp("local_gsm8k"), {"main": splits})
    return LmEvalSuite(["gsm8k"], "gsm8k", folder, 8, None, 5, False, "exact_match,strict-match")


def test_mmlu_targets_are_the_first_development_rows_of_each_subject(mmlu):
    target = mmlu.target()
    assert [e.subtask for e in target] == ["mmlu_anatomy"] * 3 + ["mmlu_virology"] * 3
    assert target[0].prompt == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "anatomy 20?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert [e.completion for e in target[:3]] == ["A", "B", "C"]
    assert len({e.id for e in target}) == 6


def test_mmlu_tests_are_the_test_rows(mmlu):
    tasks = mmlu.tasks()
    assert [t.name for t in tasks] == mmlu.names
    for task in tasks:
        assert task.docs is not None and len(task.docs) == len(task.held_out) == 7
        assert [e.completion for e in task.held_out] == list("ABCDABC")
        assert [d["question"].split()[1] for d in task.fewshot] == ["20?", "21?"]
    tested = {e.prompt for task in tasks for e in task.held_out}
    assert not tested & {e.prompt for e in mmlu.target()}


def test_a_limit_keeps_the_first_test_rows_of_each_subtask(mmlu):
    assert [len(t.docs or ()) for t in replace(mmlu, test_rows=2).tasks()] == [2, 2]
    assert [len(t.docs or ()) for t in replace(mmlu, test_rows=99).tasks()] == [7, 7]


def test_bbh_targets_are_the_worked_examples_of_the_task(bbh):
    target = bbh.target()
    assert len(target) == 3
    assert all("So the answer is" in e.completion and e.prompt.endswith("step by step.\n") for e in target)
    (task,) = bbh.tasks()
    assert [e.completion for e in task.held_out] == ["False", "True", "False"]


def test_tydiqa_targets_and_tests_are_in_the_tasks_language(tydiqa):
    (example,) = tydiqa.target()
    assert (example.prompt, example.completion) == ("Context: c 10\n\nQuestion: q 10\n\nAnswer:", "answer 10")
    (task,) = tydiqa.tasks()
    assert task.docs is not None and [d["id"] for d in task.docs] == [f"english-{i}" for i in range(4)]


def test_gsm8k_targets_are_training_rows_with_their_reasoning(gsm8k):
    assert [e.completion for e in gsm8k.target()][0] == "10 + 1 = 11\n#### 11"
    assert [e.completion for e in gsm8k.tasks()[0].held_out][0] == "0 + 1 = 1\n#### 1"


@pytest.mark.parametrize("suite", ["mmlu", "bbh", "tydiqa", "gsm8k"])
def test_a_model_is_evaluated_with_the_bundled_prompts_and_metric(suite, request, tiny, tmp_path):
    from gtp_exp.evaluation.tasks import evaluate

    settings = replace(request.getfixturevalue(suite), test_rows=1)
    task = settings.tasks()[0]
    if suite != "mmlu":  # a random model does not stop by itself
        task = replace(
            task, config={**task.config, "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}}
        )
    held_out = tokenize(task.held_out, tiny.tokenizer, max_length=tiny.config.max_length).examples
    loaded = replace(tiny.load(), max_length=4096)  # a character is a token: three examples take 2,000
    metrics = evaluate(task, loaded, held_out=held_out, batch_size=4, directory=tmp_path)
    assert metrics["headline"] == settings.metric.split(",")[0]
    assert 0 <= metrics[metrics["headline"]] <= 1 and metrics["nats_per_token"] > 0
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    prompt = rows[0]["arguments"][0][0]
    for shot in settings.target()[: min(settings.num_fewshot, settings.target_rows)]:
        assert shot.completion in prompt
    assert task.held_out[0].prompt.split("\n")[-1] in prompt


def test_examples_that_do_not_fit_are_not_cut(gsm8k, tiny, tmp_path):
    from gtp_exp.evaluation.tasks import evaluate

    task = replace(gsm8k, test_rows=1).tasks()[0]
    with pytest.raises(UserError, match="no prompt fits model.max_length=256.*benchmark.num_fewshot"):
        held_out = tokenize(task.held_out, tiny.tokenizer, max_length=256).examples
        evaluate(task, tiny.load(), held_out=held_out, batch_size=4, directory=tmp_path)


def test_without_a_copy_offline_the_message_says_what_to_do(mmlu):
    with pytest.raises(UserError, match=r"cais/mmlu.*benchmark\.dataset_path=FOLDER"):
        replace(mmlu, dataset_path=None).target()


def test_a_copy_without_the_subject_is_refused(mmlu):
    with pytest.raises(UserError, match="astronomy"):
        replace(mmlu, names=["mmlu_astronomy"]).target()


def test_a_task_that_only_has_test_rows_gives_no_target(mmlu, tmp_path):
    """truthfulqa_mc1 has a validation split alone: its few-shot rows would be its test rows."""
    row = {
        "question": "?",
        "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]},
    }
    folder = data_set(tmp_path / "local_truthful", {"multiple_choice": {"validation": [row]}})
    suite = replace(mmlu, names=["truthfulqa_mc1"], folder="truthfulqa", dataset_path=folder, num_fewshot=0)
    assert len(suite.tasks()) == 1
    with pytest.raises(UserError, match="no selector may see"):
        suite.target()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"names": ["mmlu_nothing"]}, "mmlu_nothing"),
        ({"folder": "no/such"}, "benchmark.folder='no/such'"),
        ({"dataset_path": "no/such"}, "benchmark.dataset_path=no/such"),
        ({"target_rows": 6}, "benchmark.target_rows=6.*only 5"),
    ],
)
def test_what_is_not_there_is_refused_by_name(mmlu, change, named):
    with pytest.raises(UserError, match=named):
        replace(mmlu, **change).target()


def test_more_shots_than_there_are_is_refused(mmlu):
    with pytest.raises(UserError, match="benchmark.num_fewshot=6.*only 5"):
        replace(mmlu, num_fewshot=6).tasks()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"names": []}, "benchmark.names"),
        ({"target_rows": 0}, "benchmark.target_rows=0"),
        ({"test_rows": 0}, "benchmark.test_rows=0"),
        ({"num_fewshot": -1}, "benchmark.num_fewshot=-1"),
        ({"metric": "acc"}, "benchmark.metric='acc'"),
    ],
)
def test_impossible_settings_are_refused(mmlu, change, named):
    with pytest.raises(UserError, match=named):
        replace(mmlu, **change)
