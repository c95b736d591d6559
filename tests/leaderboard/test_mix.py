"""The plot of a label's values: sizes stand in their order, in shades of one colour."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from leaderboard_runs import record, save

from gtp_exp.leaderboard import diagnostics
from gtp_exp.leaderboard.command import main
from gtp_exp.leaderboard.comparability import group
from gtp_exp.leaderboard.records import load
from gtp_exp.leaderboard.scoring import score

LENGTHS = {"128-255": 0.5, "1-31": 0.1, "2048-4095": 0.05, "32-63": 0.2, "64-127": 0.15}


def block(tmp_path, mix, pool):
    save(record(label_mix={"length in tokens": mix}, pool_mix={"length in tokens": pool}), tmp_path)
    (table,) = group(load([tmp_path]).complete, beside=()).tables
    return score(table, metric="nats_per_token", baseline="random").blocks[0]


def test_sizes_stand_in_their_order(tmp_path):
    (mix,) = diagnostics.mixes(block(tmp_path, {"1-31": 0.9, "64-127": 0.1}, LENGTHS))
    assert mix.ordered and mix.values == ("1-31", "32-63", "64-127", "128-255", "2048-4095")
    assert mix.pool == LENGTHS and sum(mix.rows[0][1].values()) == pytest.approx(1)


def test_names_stand_by_their_share(tmp_path):
    pool = {"flan": 0.2, "cot": 0.5, "7b": 0.3}
    (mix,) = diagnostics.mixes(block(tmp_path, pool, pool))
    assert not mix.ordered and mix.values == ("cot", "7b", "flan")


def test_versions_and_numbered_sections_are_sizes_too(tmp_path):
    pool = {"2.0.1": 0.5, "10..12": 0.2, "1.2.3": 0.3}
    (mix,) = diagnostics.mixes(block(tmp_path, pool, pool))
    assert mix.ordered and mix.values == ("1.2.3", "2.0.1", "10..12")


def test_many_sizes_keep_the_frequent_ones_and_still_sum_to_one(tmp_path):
    pool = {str(i): (i + 1) / 465 for i in range(30)}
    (mix,) = diagnostics.mixes(block(tmp_path, pool, pool))
    assert mix.values == (*(str(i) for i in range(18, 30)), "other")
    assert sum(mix.pool.values()) == pytest.approx(1)


def test_a_run_that_was_not_checked_for_leaked_rows_does_not_count_as_one_without_any(tmp_path):
    """Of two seeds of one selector a single one was checked, and none of another."""
    checked = {"selected": {"rows": 4, "same_prompt": 2, "shared_ngram": 0}}
    runs = [record("gtp", seed, label_mix={"odd": {"True": 0.5, "False": 0.5}}) for seed in (0, 1)]
    for run in (replace(runs[0], leakage=checked), runs[1], record("random")):
        save(run, tmp_path / "runs")
    (table,) = group(load([tmp_path / "runs"]).complete, beside=()).tables
    by_selector = {row.selector: diagnostics.facts(row).shares for row in table.rows}
    assert by_selector == {"gtp": {"odd": 0.5, "asked in the test": 0.5}, "random": {}}
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('style="--share:50.0%">50.0%</td>') == 2 and "--share:0.0%" not in page


def test_the_page_draws_sizes_darker_with_their_order(tmp_path):
    labels = {"length in tokens": LENGTHS, "source": {"cot": 0.5, "dolly": 0.3, "flan": 0.2}}
    save(record(label_mix=labels, pool_mix=labels), tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    shades = re.findall(r'class="ordered" style="--at:(\d+)%;width:([\d.]+)%" title="pool, ([\w-]+):', page)
    assert [value for _, _, value in shades] == ["1-31", "32-63", "64-127", "128-255", "2048-4095"]
    assert [int(at) for at, _, _ in shades] == sorted(int(at) for at, _, _ in shades)
    assert sum(float(width) for _, width, _ in shades) == pytest.approx(100)
    assert page.count('class="m0" style="width:50.00%"') == 2 and 'class="square m0" style=""' in page
