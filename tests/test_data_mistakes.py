"""A mistake in the data is told within two seconds, before torch and its like are imported."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLOW_LIBRARIES = ("torch", "transformers", "datasets", "lm_eval", "peft", "accelerate", "scipy", "wandb")
SECONDS = 2.0  # of this process's share of a core: other jobs of the machine do not count

pytestmark = pytest.mark.slow


def write(path: Path, rows) -> None:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def row(i: int, **more):
    return {"id": f"r{i}", "prompt": f"What is {i} plus 1?", "completion": str(i + 1), "quality": i, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files with a mistake each behind sound rows, and libraries that end whoever imports them."""
    folder = tmp_path_factory.mktemp("mistakes")
    sound = [row(i) for i in range(3000)]
    write(folder / "pool.jsonl", sound)
    write(folder / "mine.jsonl", [row(i) for i in range(5000, 5010)])
    write(folder / "broken.jsonl", [*sound, '{"prompt": 1,\n'])
    write(folder / "twice.jsonl", [*sound, row(7)])
    write(folder / "unscored.jsonl", [*sound, row(3000, quality=None)])
    write(folder / "no_answer.jsonl", [row(1), row(2, completion="")])
    write(folder / "choices.jsonl", [{"query": "?", "choices": ["a", "b"], "gold": 2}])
    (folder / "short.csv").write_text("prompt,completion\np,c\np\n")
    (folder / "ids.txt").write_text("r1\nr2\nx9\n")
    (folder / "ids_twice.txt").write_text("r1\nr2\nr1\n")
    write(folder / "weights.jsonl", [{"id": "r1", "weight": -1}])
    (folder / "empty.txt").write_text("\n")
    for name in SLOW_LIBRARIES:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return folder


def given(name: str) -> list[str]:
    return ["selector=given", f"selector.file={name}", "budget=all"]


MISTAKES = {
    "a missing file": (["dataset.files=[missing.jsonl]"], "no such file: missing.jsonl"),
    "a missing copy": (["dataset=hub", "dataset.path=gone"], "dataset.path=gone does not"),
    "a broken copy": (["dataset=hub", "dataset.path=broken.jsonl"], "broken.jsonl:3001 is n"),
    "a broken line": (["dataset.files=[broken.jsonl]"], "broken.jsonl:3001 is not JSON"),
    "an id twice": (["dataset.files=[twice.jsonl]"], "'r7' occurs twice: twice.jsonl:8 and twice.jsonl:3001"),
    "a short row": (["dataset.files=[short.csv]"], "short.csv row 2 (it ends in line 3) has 1 cells"),
    "a missing score": (
        ["dataset.files=[unscored.jsonl]", "dataset.scores=[quality]"],
        "unscored.jsonl:3001: the row 'r3000' has no number for the score 'quality'",
    ),
    "a score that is no column": (["dataset.scores=[worth]"], "pool.jsonl:1: the row 'r0' has no number"),
    "a broken target": (["benchmark.target=broken.jsonl"], "broken.jsonl:3001 is not JSON"),
    "a target without an answer": (["benchmark.target=no_answer.jsonl"], "1 with empty completion"),
    "a choice that is none": (
        ["until=evaluation", "benchmark.test=mine.jsonl", "tests=[{jsonl_choice:{test:choices.jsonl}}]"],
        "choices.jsonl:1: 'gold' must be an index into the 2 choices",
    ),
    "an id that is not in the pool": (given("ids.txt"), "1 of the 3 ids of selector.file=ids.txt"),
    "an id listed twice": (given("ids_twice.txt"), "listed twice: ids_twice.txt:1 and ids_twice.txt:3"),
    "a negative weight": (given("weights.jsonl"), "weights.jsonl:1: the weight of 'r1' is -1"),
    "an empty list": (given("empty.txt"), "empty.txt lists no row"),
    "a list that is not there": (given("none.txt"), "no such file: none.txt"),
    "a list without a file": (["selector=given", "budget=all"], "give one of them, selector.file=FILE"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_is_told_soon_and_before_the_long_imports(folder, mistake):
    overrides, told = MISTAKES[mistake]
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "baselines", ROOT / "benchmarks")))
    line = ["dataset=jsonl", "dataset.files=[pool.jsonl]", "benchmark=jsonl", "benchmark.target=mine.jsonl"]
    line = ["until=selection", "model=tiny", "tracking=none", *line, *overrides]
    if "dataset=hub" in line:
        line = [part for part in line if part not in ("dataset=jsonl", "dataset.files=[pool.jsonl]")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "gtp_exp", *line],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "was imported" not in done.stderr
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < SECONDS
