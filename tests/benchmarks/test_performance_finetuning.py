"""What the fine-tuning script compares: both kinds of steps find the same. Nothing is asserted about time."""

from __future__ import annotations

import json
import re

import pytest

from gtp_benchmarks.performance.finetuning import main


@pytest.mark.parametrize("source", ["built in", "a file"])
def test_both_kinds_of_steps_find_the_same(tmp_path, source, capsys):
    options = ["--kinds", "uneven"] if source == "a file" else []
    if source == "a file":
        rows = [
            {
                "messages": [
                    {"role": "user", "content": "What?" * (1 + i)},
                    {"role": "assistant", "content": "That."},
                ]
            }
            for i in range(16)
        ]
        lines = [json.dumps({"id": str(i), **row}) for i, row in enumerate(rows)]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        options += ["--rows", str(tmp_path / "rows.jsonl")]
    where = ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    few = ["--model", "tiny", "--steps", "1", "--repeats", "1", "--threads", "1", "--precisions", "fp32"]
    assert main([*few, *where, *options]) == 0
    report = json.loads((tmp_path / "out" / "finetuning.json").read_text())
    figures = {figure["what"]: figure for figure in report["figures"]}
    exact = [figure for what, figure in figures.items() if "largest relative difference" in what]
    assert exact and all(figure["value"] <= figure["bar"] for figure in exact)
    assert any("uneven rows" in what for what in figures)
    assert any("like rows" in what for what in figures) == (source == "built in")
    printed = capsys.readouterr().out
    assert "times the tokens when padded" in printed
    (told,) = re.findall(r"uneven rows, fp32, seconds of one step, padded and packed: (.*)", printed)
    parts = [tuple(map(float, pair)) for pair in re.findall(r"([0-9.]+) and ([0-9.]+)", told)]
    for side in (0, 1):  # every operator belongs to one part
        assert sum(part[side] for part in parts[:-1]) == pytest.approx(parts[-1][side], abs=0.04)


def test_impossible_numbers_are_refused():
    with pytest.raises(SystemExit):
        main(["--steps", "0"])
