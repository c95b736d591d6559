"""docs/extending.md does what it says: its files are written and its commands run, as they stand."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path

import forked
import pytest
import torch

import gtp_exp

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.S))
COMMANDS = re.findall(r"```bash\n(.*?)\n```", TEXT, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("extending")
    for name, content in FILES.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(content)
    return where


def run(command, folder, *more):
    """Run a command line of the page, `gtp-exp` being this checkout's."""
    path = os.pathsep.join(["mine", *map(str, (ROOT, ROOT / "baselines", ROOT / "benchmarks"))])
    words = command.split()
    assert words[:2] == ["PYTHONPATH=mine", "gtp-exp"]
    line = [sys.executable, "-m", "gtp_exp", *words[2:], *more]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return forked.run(line, folder, environment)


def newest(folder):
    (record,) = folder.glob("outputs/runs/*/results.json")
    value = json.loads(record.read_text())
    record.rename(record.with_name("seen.json"))
    return value


def test_the_page_shows_one_of_each():
    assert len(COMMANDS) == 2
    assert {Path(name).parent.name for name in FILES} == {"mine", "selector", "dataset", "benchmark", "model"}
    assert all(len(content.splitlines()) <= 20 for content in FILES.values())


def test_a_selector_of_ones_own_chooses_and_an_edit_is_not_answered_from_the_cache(folder):
    done = run(COMMANDS[0], folder)
    assert done.returncode == 0, done.stderr
    first = newest(folder)
    assert first["names"]["selector"] == "shortest" and first["selection"]["n_selected"] == 50
    assert run(COMMANDS[0], folder).returncode == 0
    assert newest(folder)["stages"]["selection"]["cached"]

    file = folder / "mine" / "shortest.py"
    file.write_text(file.read_text().replace("scores = -torch", "scores = torch"))
    assert run(COMMANDS[0], folder).returncode == 0
    edited = newest(folder)
    file.write_text(FILES["mine/shortest.py"])
    assert not edited["stages"]["selection"]["cached"]
    assert edited["selection"]["n_tokens"] > first["selection"]["n_tokens"]


def test_a_selector_of_ones_own_reads_gradients_of_a_job_and_in_domain(folder, monkeypatch):
    done = run(
        COMMANDS[0].replace("shortest", "aligned"), folder, "+debug=quick", "budget=rows", "budget.amount=3"
    )
    assert done.returncode == 0, done.stderr
    assert newest(folder)["selection"]["n_selected"] == 3
    monkeypatch.syspath_prepend(folder / "mine")
    aligned = importlib.import_module("aligned").Aligned()
    pool = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    for target, mean in ((pool[:4] + 1, pool[:4].mean(0) + 1), (None, pool.mean(0))):
        chosen = gtp_exp.select(pool, target, budget=5, selector=aligned)
        assert chosen.indices.tolist() == (pool @ mean).argsort(descending=True)[:5].tolist()


def test_a_wrong_attribute_of_the_problem_is_told_by_file_and_line_in_a_job(folder):
    file = folder / "mine" / "shortest.py"
    file.write_text(FILES["mine/shortest.py"].replace("problem.candidates", "problem.texts"))
    done = run(COMMANDS[0], folder)
    file.write_text(FILES["mine/shortest.py"])
    newest(folder)
    (line,) = [i for i, text in enumerate(FILES["mine/shortest.py"].splitlines(), 1) if "candidates" in text]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"asks SelectionProblem for 'texts' (mine/shortest.py, line {line}); what it has:" in done.stderr


def test_all_four_together_are_trained_and_tested(folder):
    done = run(COMMANDS[1], folder)
    assert done.returncode == 0, done.stderr
    record = newest(folder)
    assert record["metrics"]["sums"]["headline"] == "nats_per_token"
    assert record["pool"]["candidates"] == 60 and record["rows"]["target"]["used"] == 8
    assert record["config"]["model"]["lora"]["r"] == 2


def test_a_class_that_is_no_selector_is_told_what_to_inherit(folder):
    file = folder / "mine" / "plain.py"
    file.write_text(FILES["mine/shortest.py"].replace("Shortest(Selector)", "Plain"))
    (folder / "mine" / "conf" / "selector" / "plain.yaml").write_text("_target_: plain.Plain\n")
    done = run(COMMANDS[0].replace("selector=shortest", "selector=plain"), folder, "selector=plain")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Plain" in done.stderr and "at_least" in done.stderr or "inherit" in done.stderr
