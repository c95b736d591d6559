"""A user's own target and test rows: read in every form, judged by loss, optional where nothing is tested."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import forked
import pytest

from gtp_benchmarks.jsonl import Jsonl, TextMetric
from gtp_exp.data.tokenization import tokenize
from gtp_exp.errors import UserError
from gtp_exp.evaluation.tasks import evaluate
from gtp_exp.records.record import read_record

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(i: int, **more):
    return {"prompt": f"Name fruit {i}.", "completion": f"Fruit {i} is a pear.", **more}


def messages(question: str, answer: str):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


FORMS = {
    "prompt_completion.jsonl": {"prompt": "Q?", "completion": "A."},
    "alpaca.json": {"instruction": "Q?", "input": "", "output": "A."},
    "messages.jsonl": messages("Q?", "A."),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_target_comes_in_every_form_of_the_pool(tmp_path, name):
    path = write(tmp_path / name, [FORMS[name]])
    (example,) = Jsonl(target=path).benchmark().target()
    assert (example.prompt, example.completion, example.subtask) == ("Q?", "A.", "jsonl")
    assert example.id == f"{Path(name).stem}-000001"


def test_a_target_comes_in_every_kind_of_file_and_from_a_pattern(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([pair(1)]), tmp_path / "one.parquet")
    with gzip.open(tmp_path / "two.jsonl.gz", "wt") as file:
        file.write(json.dumps(messages("Q?", "A.")))
    write(tmp_path / "three.jsonl", [pair(3, id=7)])
    found = Jsonl(target=f"{tmp_path}/*").benchmark().target()
    assert sorted(e.id for e in found) == ["7", "one-000001", "two-000001"]


def test_columns_and_subtasks_and_limits(tmp_path):
    rows = [{"q": f"Q{i}?", "a": f"A{i}.", "subtask": "xy"[i % 2]} for i in range(6)]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = replace(Jsonl(target=path).columns, prompt="q", completion="a")
    option = Jsonl(target=path, test=path, columns=columns, target_rows=1, test_rows=2, name="own")
    assert [(e.prompt, e.subtask) for e in option.benchmark().target()] == [("Q0?", "x"), ("Q1?", "y")]
    tasks = option.benchmark().tasks()
    assert {t.name: [e.completion for e in t.held_out] for t in tasks} == {
        "own_x": ["A0.", "A2."],
        "own_y": ["A1.", "A3."],
    }
    with pytest.raises(UserError, match=r"set benchmark\.format, and benchmark\.columns"):
        Jsonl(target=path).benchmark().target()


def test_a_row_without_an_answer_is_refused_by_its_file(tmp_path):
    path = write(tmp_path / "bad.jsonl", [pair(1), {"prompt": "Q?", "completion": " "}])
    with pytest.raises(UserError, match=r"bad\.jsonl \(benchmark\.target\).*1 with empty completion"):
        Jsonl(target=path).benchmark().target()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, r"benchmark\.target=FILE.*benchmark\.test=FILE"),
        ({"name": ""}, "benchmark.name"),
        ({"target_rows": 0}, "target_rows=0"),
        ({"test_rows": 0}, "test_rows=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Jsonl(**{"target": "mine.jsonl", **change})


def test_an_exact_match_is_of_the_written_answer_and_beside_it_stands_the_loss(tiny, tmp_path):
    rows = [pair(i, completion=f"Fruit {i}\nis a pear.") for i in range(3)]  # so that a line break ends none
    option = Jsonl(test=write(tmp_path / "t.jsonl", rows), metric=TextMetric.EXACT_MATCH, max_new_tokens=8)
    (task,) = option.benchmark().tasks()
    held_out = tokenize(task.held_out, tiny.tokenizer, max_length=tiny.config.max_length).examples
    found = evaluate(task, tiny.load(), held_out=held_out, batch_size=4, directory=tmp_path)
    assert found["headline"] == "exact_match" and found["nats_per_token"] > 0 and found["rows_tested"] == 3
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [s["target"] for s in samples] == [row["completion"] for row in rows]
    assert found["exact_match"] == sum(s["filtered_resps"][0] == s["target"] for s in samples) / 3


def test_blanks_around_a_written_answer_do_not_count_and_those_within_do(tmp_path):
    from lm_eval.filters.extraction import RegexFilter

    option = Jsonl(test=write(tmp_path / "t.jsonl", [pair(0)]), metric=TextMetric.EXACT_MATCH)
    (task,) = option.benchmark().tasks()
    (settings,) = [f for f in task.config["filter_list"][0]["filter"] if f["function"] == "regex"]
    read = RegexFilter(**{k: v for k, v in settings.items() if k != "function"})
    written = [[" a pear\n"], ["a  pear"], ["two\n lines. "], ["\n "]]
    assert list(read.apply(written, [{}] * 4)) == [["a pear"], ["a  pear"], ["two\n lines."], [""]]


def test_an_exact_match_asks_single_questions_only(tmp_path):
    turns = [{"role": r, "content": "x"} for r in ("user", "assistant", "user", "assistant")]
    path = write(tmp_path / "t.jsonl", [{"messages": turns}])
    with pytest.raises(UserError, match=r"'t-000001' is more than one question.*nats_per_token"):
        Jsonl(test=path, metric=TextMetric.EXACT_MATCH).benchmark().tasks()


@pytest.fixture
def folder(tmp_path):
    rows = [messages(f"What is {i} plus 1?", str(i + 1)) for i in range(24)]
    write(tmp_path / "pool.jsonl", rows)
    write(tmp_path / "mine.jsonl", [messages(f"What is {i} plus 3?", str(i + 3)) for i in range(30, 34)])
    write(tmp_path / "test.jsonl", [messages(f"What is {i} plus 5?", str(i + 5)) for i in range(40, 44)])
    return tmp_path


COMMAND = ["dataset=jsonl", "dataset.files=[pool.jsonl]", "benchmark=jsonl"]
SMALL = [
    "model=tiny",
    "tracking=none",
    "launch=cpu",
    "budget=rows",
    "budget.amount=4",
    "+debug=quick",
    "dataset.rows=null",
]


def job(folder, *overrides, run=forked.run):
    """Run a command line in a folder; return what it did."""
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "baselines", ROOT / "benchmarks")))
    line = [sys.executable, "-m", "gtp_exp", *COMMAND, *overrides]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return run(line, cwd=folder, env=environment)


@pytest.mark.slow
def test_the_shortest_command_chooses_and_the_others_measure(folder):
    done = job(folder, "benchmark.target=mine.jsonl", "until=selection", *SMALL)
    assert done.returncode == 0, done.stderr
    done = job(folder, "benchmark.target=mine.jsonl", "until=validation", *SMALL)
    assert done.returncode == 0, done.stderr
    done = job(folder, "benchmark.target=mine.jsonl", "benchmark.test=test.jsonl", *SMALL)
    assert done.returncode == 0, done.stderr
    chosen, validated, tested = [
        read_record(path) for path in sorted(folder.glob("outputs/runs/*/results.json"))
    ]
    assert chosen.selection and chosen.selection.n_selected == 4 and chosen.metrics == {}
    assert chosen.rows["target"].used == 4
    assert validated.validation and validated.validation.rows == 2 and validated.rows["target"].used == 2
    assert tested.metrics["jsonl"]["headline"] == "nats_per_token"
    assert tested.metrics["jsonl"]["nats_per_answer"] > 0 and tested.rows["jsonl"].used == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark.target=mine.jsonl", "until=evaluation"], "give benchmark.test=FILE, or end before"),
        (["benchmark.target=nowhere.jsonl", "until=selection"], "no such file: nowhere.jsonl"),
        (["benchmark.target=odd.jsonl", "until=selection"], "odd.jsonl:1 has the columns question"),
        (["benchmark.target=mine.jsonl", "dataset.files=[gone.jsonl]"], "no such file: gone.jsonl"),
        (
            [
                "benchmark.target=mine.jsonl",
                "benchmark.test=test.jsonl",
                "tests=[{jsonl_choice:{test:no.jsonl}}]",
            ],
            "no such file: no.jsonl",
        ),
        (["benchmark.test=test.jsonl"], "give benchmark.target=FILE"),
    ],
)
def test_what_is_wrong_with_the_files_shows_before_torch_is_imported(folder, overrides, message):
    write(folder / "odd.jsonl", [{"question": "?"}])
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    fresh = partial(subprocess.run, capture_output=True, text=True)
    done = job(folder, *overrides, "model=tiny", "tracking=none", "launch=cpu", run=fresh)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "torch was imported" not in done.stderr
