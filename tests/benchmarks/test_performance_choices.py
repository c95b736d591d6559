"""The benchmark of multiple-choice tests runs end to end and reports what it measured."""

from __future__ import annotations

import json

from gtp_benchmarks.performance import choices


def test_it_runs_and_reports(tmp_path, capsys):
    choices.main(["--model", "tiny", "--rows", "4", "--rounds", "1", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "choices.json").read_text())
    values = {figure["what"]: figure["value"] for figure in report["figures"]}
    ours, theirs = (
        values[f"tokens {who} / tokens of prompts and answers without repetition"]
        for who in ("ours", "lm-eval")
    )
    assert 1 <= ours < theirs
    assert values["largest difference of a log-likelihood, nats"] < 1e-4
    assert "| ours / lm-eval's own way |" in capsys.readouterr().out
