"""Any multiple-choice JSONL: read as written, or refused with file and line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gtp_benchmarks.choice_task import ChoiceMetric
from gtp_benchmarks.jsonl_choice import JsonlChoice
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError

DATA = Path(os.environ.get("GTP_EXP_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def validation_row(i: int, **more):
    messages = [
        {"role": "user", "content": f"Is {i} even?"},
        {"role": "assistant", "content": "yes no".split()[i % 2]},
    ]
    return {"id": f"v{i}", "messages": messages, **more}


def test_row(i: int, **more):
    return {"id": f"t{i}", "query": f"Is {i} even?", "choices": ["yes", "no"], "gold": i % 2, **more}


test_row.__test__ = False  # type: ignore[attr-defined]  # a row, not a test


def write(path: Path, rows) -> str:
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return str(path)


@pytest.fixture
def benchmark(tmp_path):
    return JsonlChoice(
        name="parity",
        validation=write(tmp_path / "validation.jsonl", [validation_row(i) for i in range(6)]),
        test=write(tmp_path / "test.jsonl", [test_row(i) for i in range(10)]),
        target_rows=None,
        test_rows=None,
        num_fewshot=0,
        chat=True,
        metric=ChoiceMetric.ACC,
    )


def test_rows_come_as_written(benchmark):
    assert [(e.id, e.prompt, e.completion, e.subtask) for e in benchmark.target()][:2] == [
        ("v0", "Is 0 even?", "yes", "parity"),
        ("v1", "Is 1 even?", "no", "parity"),
    ]
    (task,) = benchmark.tasks()
    assert (task.name, task.metric, task.chat) == ("parity", "acc,none", True)
    assert [doc["query"] for doc in task.docs] == [f"Is {i} even?" for i in range(10)]
    assert [e.completion for e in task.held_out] == ["yes", "no"] * 5


def test_ids_are_optional_and_target_rows_come_in_any_form(benchmark, tmp_path):
    row = {"instruction": "Is it even?", "input": "4", "output": "yes", "subtask": "four"}
    tests = [{k: v for k, v in test_row(i).items() if k != "id"} for i in range(3)]
    loose = replace(
        benchmark, validation=write(tmp_path / "v.jsonl", [row]), test=write(tmp_path / "t.jsonl", tests)
    )
    (example,) = loose.target()
    assert (example.id, example.prompt, example.completion, example.subtask) == (
        *("v-000001", "Is it even?\n\n4", "yes", "four"),
    )
    assert [d["id"] for d in loose.tasks()[0].docs] == ["t-000001", "t-000002", "t-000003"]


def test_limits_keep_the_first_rows(benchmark):
    small = replace(benchmark, target_rows=2, test_rows=3)
    assert [e.id for e in small.target()] == ["v0", "v1"]
    assert [d["id"] for d in small.tasks()[0].docs] == ["t0", "t1", "t2"]


def test_subtasks_are_limited_and_tested_one_by_one(benchmark, tmp_path):
    split = replace(
        benchmark,
        validation=write(tmp_path / "v.jsonl", [validation_row(i, subtask="ab"[i // 3]) for i in range(6)]),
        test=write(tmp_path / "t.jsonl", [test_row(i, subtask="ab"[i // 5]) for i in range(10)]),
        target_rows=2,
        test_rows=4,
    )
    assert [(e.id, e.subtask) for e in split.target()] == [("v0", "a"), ("v1", "a"), ("v3", "b"), ("v4", "b")]
    assert {t.name: [d["id"] for d in t.docs] for t in split.tasks()} == {
        "parity_a": ["t0", "t1", "t2", "t3"],
        "parity_b": ["t5", "t6", "t7", "t8"],
    }


def test_few_shot_rows_are_the_first_target_rows(benchmark):
    (task,) = replace(benchmark, num_fewshot=2, chat=False).tasks()
    assert [(s["query"], s["choices"][s["gold"]]) for s in task.fewshot] == [
        ("Is 0 even?", "yes"),
        ("Is 1 even?", "no"),
    ]
    assert task.config["num_fewshot"] == 2 and not task.chat
    with pytest.raises(UserError, match="num_fewshot=7"):
        replace(benchmark, num_fewshot=7).tasks()


def test_a_choice_given_twice_counts_at_its_first_place(benchmark, tmp_path):
    """Among equal scores lm-eval takes the first, so a gold index on the second could never be right."""
    row = {"id": "t", "query": "Which?", "choices": ["a", "b", "a"], "gold": 2}
    (task,) = replace(benchmark, test=write(tmp_path / "twice.jsonl", [row])).tasks()
    assert task.docs[0]["gold"] == 0 and task.held_out[0].completion == "a"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"bad\.jsonl:2 is not JSON"),
        ("[1]", r"bad\.jsonl:2 must hold one JSON object"),
        (
            {"id": "x", "question": "?", "choices": ["a", "b"], "gold": 0},
            r":2 has no column 'query'.*question",
        ),
        (test_row(1, gold=2), r":2: 'gold' must be an index .*0 to 1.*found 2"),
        (test_row(1, gold=-1), r":2: 'gold'"),
        (test_row(1, gold="1"), r":2: 'gold'"),
        (test_row(1, gold=True), r":2: 'gold'"),
        (test_row(1, choices=["yes"], gold=0), r":2: 'choices'"),
        (test_row(1, choices="yes", gold=0), r":2: 'choices'"),
        (test_row(1, choices=["yes", ""], gold=0), r":2: 'choices\[1\]' must not be empty"),
        (test_row(1, choices=["yes", 2], gold=0), r":2: 'choices\[1\]' must be text"),
        (test_row(1, choices=["\ud800", "no"], gold=0), r":2: 'choices\[0\]' holds half a surrogate"),
        (test_row(1, query="a \ud800"), r":2: 'query' holds half a surrogate"),
        (test_row(1, id="\udfff"), r":2: 'id' holds half a surrogate"),
        (test_row(1, query=" "), r":2: 'query'"),
        (test_row(1, subtask=3), r":2: 'subtask'"),
        (test_row(1, id="t0"), r"'t0' occurs twice: .*bad\.jsonl:1 and .*bad\.jsonl:2"),
    ],
)
def test_a_bad_test_row_is_refused_with_its_line(benchmark, tmp_path, row, message):
    bad = replace(benchmark, test=write(tmp_path / "bad.jsonl", [test_row(0), row]))
    with pytest.raises(UserError, match=message):
        bad.tasks()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"bad\.jsonl:2 is not JSON"),
        (
            {"id": "x", "prompt": "?", "completion": "!"},
            r":2 has no 'messages', which other rows .*prompt, completion",
        ),
        ({"messages": []}, r":2 has no 'id', which other rows"),
        (validation_row(1, subtask=" "), r"the row 'v1' of benchmark.validation has an empty 'subtask'"),
        ({"id": "x", "messages": [{"role": "robot", "content": "?"}]}, r":2: message 1 has the role 'robot'"),
        (
            {
                "id": "x",
                "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": " "}],
            },
            "empty completion",
        ),
        ({"id": "x", "messages": [{"role": "system", "content": "?"}]}, "no assistant turn"),
        (validation_row(0), r"'v0' occurs twice: .*bad\.jsonl:1 and .*bad\.jsonl:2"),
    ],
)
def test_a_bad_validation_row_is_refused(benchmark, tmp_path, row, message):
    bad = replace(benchmark, validation=write(tmp_path / "bad.jsonl", [validation_row(0), row]))
    with pytest.raises(UserError, match=message):
        bad.target()


def test_an_id_or_a_subtask_that_is_null_is_a_missing_one(benchmark, tmp_path):
    row = {"query": "?", "choices": ["a", "b"], "gold": 1}
    rows = [{**row, "id": None, "subtask": None}, {**row, "id": None, "subtask": "s"}, row]
    whole, part = replace(benchmark, test=write(tmp_path / "nulls.jsonl", rows)).tasks()
    assert [doc["id"] for doc in whole.docs] == ["nulls-000001", "nulls-000003"]
    assert (whole.name, part.name, part.docs[0]["id"]) == ("parity", "parity_s", "nulls-000002")


@pytest.mark.parametrize("key", ["validation", "test"])
def test_a_missing_or_empty_file_is_refused_with_its_key(benchmark, tmp_path, key):
    def read(b):
        return b.target() if key == "validation" else b.tasks()

    with pytest.raises(UserError, match=r"no such file.*nowhere\.jsonl"):
        read(replace(benchmark, **{key: str(tmp_path / "nowhere.jsonl")}))
    with pytest.raises(UserError, match=r"empty\.jsonl.* holds no rows"):
        read(replace(benchmark, **{key: write(tmp_path / "empty.jsonl", [""])}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": ""}, "benchmark.name"),
        ({"target_rows": 0}, "target_rows=0"),
        ({"test_rows": -1}, "test_rows=-1"),
        ({"num_fewshot": -1}, "num_fewshot=-1"),
    ],
)
def test_impossible_settings_are_refused(benchmark, change, named):
    with pytest.raises(UserError, match=named):
        replace(benchmark, **change)


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("chat", [True, False])
def test_a_real_model_runs_through_it(benchmark, tiny, tmp_path, chat, num_fewshot):
    from gtp_exp.evaluation.tasks import evaluate

    (task,) = replace(benchmark, test_rows=4, chat=chat, num_fewshot=num_fewshot).tasks()
    held_out = tokenize(task.held_out, tiny.tokenizer, max_length=tiny.config.max_length).examples
    metrics = evaluate(task, tiny.load(), held_out=held_out, batch_size=8, directory=tmp_path)
    assert metrics["headline"] == "acc" and metrics["nats_per_token"] > 0
    prompts = [
        json.loads(line)["arguments"][0][0] for line in (tmp_path / "samples.jsonl").read_text().splitlines()
    ]
    assert all(f"Is {i} even?" in prompt for i, prompt in enumerate(prompts))
    assert all(prompt.count("even?") == 1 + num_fewshot for prompt in prompts)


@pytest.mark.skipif(not (DATA / "targets").is_dir(), reason="the optional data is not here")
@pytest.mark.parametrize(
    ("name", "target", "test"), [("creak", 32, 300), ("ecqa", 32, 300), ("social_i_qa", 24, 76)]
)
def test_published_sets_are_read(benchmark, name, target, test):
    folder = DATA / "targets" / name
    real = replace(benchmark, validation=str(folder / "validation.jsonl"), test=str(folder / "test.jsonl"))
    assert len(real.target()) == target
    assert [len(task.docs) for task in real.tasks()] == [test]
