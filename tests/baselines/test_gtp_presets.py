"""An ablation of GTP chooses other rows or weights than GTP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from baseline_problems import problem
from problems import shipped

from gtp_exp.config import build

CONF = Path(__file__).resolve().parents[2] / "conf" / "selector"
PRESETS = {
    "gtp_pca",
    "gtp_uniform_weights",
    "gtp_near_copies",
    "gtp_all_copies",
    "gtp_single_checkpoint",
    "gtp_omp",
    "gtp_paper",
}


def test_every_preset_is_listed():
    assert {path.stem for path in CONF.glob("gtp_*.yaml")} == PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_setting_matters(name):
    given = problem(n=200, rows=40, dim=64)
    # The second half nearly repeats the first, half of which repeats exactly.
    for directions in given.pool_gradients.matrices:
        for rows in directions.values():
            rows[100:] = rows[:100] + 0.01
            rows[50:100] = rows[:50]
    plain = {
        "subspace_dim": 16,
        "regularisation": "fixed",
        "ridge": 0.03,
    }  # with a large ridge solvers agree
    chosen = {}
    for one in (name, "gtp"):
        chosen[one] = build({**shipped(one), **plain}, "selector").select(given)
    same_rows = torch.equal(chosen[name].indices, chosen["gtp"].indices)
    assert not (same_rows and torch.allclose(chosen[name].weights, chosen["gtp"].weights))
