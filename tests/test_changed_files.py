"""Files that a job reads, each edited in its turn: what depends on it is computed anew, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_changes import ALL
from test_experiment import computed, run

UNTUNED = "evaluation of the untuned model"
TARGET = {"gradients: target", "selection", "finetune", "evaluation"}
TESTS = {"evaluation", UNTUNED}


def chat(i: int, answer: str) -> dict:
    turns = [{"role": "user", "content": f"What is {i} plus 2?"}, {"role": "assistant", "content": answer}]
    return {"id": f"row-{i}", "messages": turns, "topic": "sums"}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_row(name: str, number: int, **change: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        rows[number] |= change
        write_lines(folder / name, rows)

    return edit


def edit_json(name: str, **change: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return edit


def put(name: str, text: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "model" / name).parent.mkdir(exist_ok=True)
        (folder / "model" / name).write_text(text)

    return edit


def reverse_pool(folder: Path) -> None:
    lines = (folder / "pool.jsonl").read_text().splitlines(keepends=True)
    (folder / "pool.jsonl").write_text("".join(reversed(lines)))


def edit_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] += 0.5
    save_file(weights, path, metadata={"format": "pt"})


def merge_two_letters(folder: Path) -> None:
    """Let the tokenizer read "la" as one token, in place of a byte that no row holds."""
    path = folder / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["pl"] = vocabulary.pop("\u0141")
    tokenizer["model"]["merges"] = [["p", "l"]]
    path.write_text(json.dumps(tokenizer))


def edit_template(folder: Path) -> None:
    path = folder / "model" / "chat_template.jinja"
    path.write_text("A conversation:\n" + path.read_text())


CHANGES = {
    "a pool row's answer": (edit_row("pool.jsonl", 0, **chat(0, "two")), ALL - {UNTUNED}),
    "a pool row's id": (edit_row("pool.jsonl", 0, id="first"), ALL - {UNTUNED}),
    "the order of the pool": (reverse_pool, ALL - {UNTUNED}),
    "a label that only reports read": (edit_row("pool.jsonl", 0, topic="numbers"), set()),
    "a target row's answer": (edit_row("validation.jsonl", 0, **chat(500, "502!")), TARGET),
    "a target row's subtask": (edit_row("validation.jsonl", 0, subtask="other"), TARGET),
    "a test row's question": (edit_row("test.jsonl", 0, query="What is 1 plus 2?"), TESTS),
    "a test row's right answer": (edit_row("test.jsonl", 0, gold=1), TESTS),
    "a test row's choices": (edit_row("test.jsonl", 0, choices=["302", "4"]), TESTS),
    "the weights": (edit_weights, ALL),
    "the model's settings": (edit_json("config.json", rms_norm_eps=1e-3), ALL),
    "the settings of generation": (edit_json("generation_config.json", repetition_penalty=1.5), ALL),
    "the vocabulary": (merge_two_letters, ALL),
    "the tokenizer's settings": (edit_json("tokenizer_config.json", padding_side="left"), ALL),
    "the chat template": (edit_template, ALL),
    "merges beside the tokenizer": (put("merges.txt", "#version: 0.2\nW h\n"), ALL),
    "a vocabulary of SentencePiece": (put("tokenizer.model", "other"), ALL),
    "code beside the weights": (put("modeling_mine.py", "SCALE = 2\n"), ALL),
    "code in a folder": (put("code/layers.py", "SCALE = 2\n"), ALL),
    "a text for people": (put("README.md", "# Mine\n"), set()),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny):
    """The folder of a finished job."""
    folder = tmp_path_factory.mktemp("first")
    shutil.copytree(tiny.location, folder / "model")
    write_lines(folder / "pool.jsonl", [chat(i, f"{i + 2}") for i in range(30)])
    write_lines(folder / "validation.jsonl", [chat(i, f"{i + 2}") for i in range(500, 506)])
    tests = [
        {"id": f"t{i}", "query": f"What is {i} plus 2?", "choices": [f"{i + 2}", "3"]}
        for i in range(300, 306)
    ]
    write_lines(folder / "test.jsonl", [{**row, "gold": 0} for row in tests])
    assert computed(job(folder)) == ALL
    return folder


def job(folder: Path):
    return run(
        folder / "outputs",
        "selector=less",
        "model.source=hub",
        f"model.name_or_path={folder / 'model'}",
        "dataset=jsonl",
        f"dataset.files=[{folder / 'pool.jsonl'}]",
        "benchmark=jsonl_choice",
        f"benchmark.validation={folder / 'validation.jsonl'}",
        f"benchmark.test={folder / 'test.jsonl'}",
    )


@pytest.mark.parametrize("what", CHANGES)
def test_what_reads_an_edited_file_is_computed_anew_and_nothing_else(first, tmp_path, what):
    edit, expected = CHANGES[what]
    folder = tmp_path / "job"
    shutil.copytree(first, folder)
    edit(folder)
    assert computed(job(folder)) == expected


def test_rows_are_told_apart_by_what_another_tokenizer_makes_of_them(tiny, tiny_config, tmp_path, examples):
    from dataclasses import replace

    from gtp_exp.data.tokenization import RowRules
    from gtp_exp.inputs import prepare_rows
    from gtp_exp.model.loading import ModelSource, prepare

    shutil.copytree(tiny.location, tmp_path / "model")
    merge_two_letters(tmp_path)
    own = replace(tiny_config, source=ModelSource.HUB, name_or_path=str(tmp_path / "model"))
    other = prepare(own, tmp_path, tiny.device)
    key, again, others = (
        prepare_rows("pool", examples, each, RowRules()).key for each in (tiny, tiny, other)
    )
    assert key == again != others
