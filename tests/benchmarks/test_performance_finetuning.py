"""What the fine-tuning script compares: both kinds of steps find the same. Nothing is asserted about time."""

from __future__ import annotations

import json

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
    assert "times the tokens when padded" in capsys.readouterr().out


def test_impossible_numbers_are_refused():
    with pytest.raises(SystemExit):
        main(["--steps", "0"])
