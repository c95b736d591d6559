"""The scaling benchmark: its formula finds known costs, and every part runs end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gtp_benchmarks.performance import cost_model
from gtp_benchmarks.performance.clustered import Clustered
from gtp_benchmarks.performance.cost_model import (
    MeasuredSelection,
    Point,
    Scenario,
    fit_memory,
    fit_time,
    project,
)
from gtp_benchmarks.performance.scale import FACTORS, PARTITIONS, around, main
from gtp_benchmarks.performance.selection import memory_features, problem
from gtp_exp.selection.atoms.matrix import BlockAtoms
from gtp_exp.selection.gtp import GTP, Regularisation

BASE = Point(20_000, 1024, 200, 2)
COSTS = (5e-9, 2e-8, 5e-10, 6e-8, 1e-5, 1e-8, 1e-9, 5e-10, 0.05)


def costing(point: Point) -> MeasuredSelection:
    """As if every term of the formula cost what COSTS says."""
    passes, rounds = 5 + point.wanted // 100, 1 + point.wanted // 256
    scan, sort, over, step, fetch, row, solve, refit, fixed = (
        cost * term for cost, term in zip(COSTS, cost_model.time_terms(point, passes, rounds), strict=True)
    )
    scan, over = scan + sort, over + step
    cpu = scan + over + fetch + row + solve + refit + fixed
    peak = 100 * point.n + 80 * point.round_rows * point.m + 5_000_000
    return MeasuredSelection(point, cpu, cpu, scan, over, fetch, refit, passes, rounds, peak, 0, 0)


@pytest.fixture(scope="module")
def known():
    return [costing(point) for points in around(BASE).values() for point in points]


def test_a_curve_changes_one_thing(known):
    curves = around(BASE)
    (short,) = curves.pop("short rows")
    assert short.n > 10 * BASE.n and short.m < BASE.m / 10
    for name, points in curves.items():
        assert len(points) == len(FACTORS[name]) and BASE in points
        assert all(replace(point, **{name: getattr(BASE, name)}) == BASE for point in points)


def test_known_costs_are_found(known):
    time, memory = fit_time(known), fit_memory(known)
    assert time.coefficients == pytest.approx(COSTS, rel=1e-6)
    assert max(map(abs, time.errors)) < 1e-6
    assert 4 * memory["per_row"] == pytest.approx(100) and 4 * memory["looked_at"] == pytest.approx(80)


def test_a_projection_adds_up(known):
    scenario = Scenario()
    p = project(scenario, fit_time(known), fit_memory(known), passes_per_round=4.0)
    assert p.passes == 1 + 4 * 196
    assert p.disk == 10e6 * 4 * 8192 * 2 and p.share == p.disk / 64
    point = scenario.point
    a_pass = (5e-10 * point.n * point.m + 6e-8 * point.checkpoints * point.n) / point.processes
    assert p.parts["passes"] == pytest.approx(p.passes * a_pass)
    assert p.gradients == pytest.approx(10e6 * 4 / 64 / scenario.examples_per_s)
    assert p.sent_per_pass * (p.passes - 1) < p.sent
    assert p.seconds_on_gpu < p.seconds == pytest.approx(sum(p.parts.values()))


def test_every_part_runs_and_reports(tmp_path, capsys):
    base = ["--rows", "2000", "--dim", "64", "--budget", "20", "--repeats", "1"]
    assert main([*base, "--scratch", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert len(written["points"]) == sum(len(factors) - 1 for factors in FACTORS.values()) + 2
    for one in written["points"]:
        assert (one["sent"] > 0) == (one["point"]["processes"] > 1) and one["passes"] > one["rounds"] > 0
    sent = next(f for f in written["figures"] if f["what"].startswith("numbers sent"))
    assert 0.5 < sent["value"] <= 1.1
    assert all(row["same"] and row["held"] for row in written["limits"])
    assert len(written["partitions"]) == len(PARTITIONS)
    assert "Projection, no measurement" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # the stores are gone


def test_iterations_are_counted_from_passes_and_rounds(monkeypatch):
    """As a selection in several rounds, of which only the first pays for the pass that they begin with."""
    passes, own = [], BlockAtoms.correlate_own
    monkeypatch.setattr(BlockAtoms, "correlate_own", lambda *args: passes.append(1) or own(*args))
    pool = Clustered(2_000, 128, seed=0)
    asked = problem(memory_features(pool.atoms()), [pool.target_rows()], 90)
    chosen = GTP(regularisation=Regularisation.FIXED, ridge=0.1, round_rows=30).select(asked)
    rounds = chosen.diagnostics["rounds"]
    assert len(rounds) > 1
    assert cost_model.iterations(len(passes), len(rounds)) == sum(one["iterations"] for one in rounds)
