"""An ablation of GTP differs from GTP in what it is named after alone, and chooses other rows or weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from baseline_problems import problem

from gtp_exp.config import build

CONF = Path(__file__).resolve().parents[2] / "conf" / "selector"
CHANGED = {
    "gtp_pca": ["subspace"],
    "gtp_uniform_weights": ["weighting"],
    "gtp_near_copies": ["near_copy_cosine"],
    "gtp_all_copies": ["collapse_copies", "near_copy_cosine"],
    "gtp_single_checkpoint": ["checkpoints"],
    "gtp_omp": ["solver"],
}


def settings(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def test_every_preset_is_listed():
    assert {path.stem for path in CONF.glob("gtp_*.yaml")} == set(CHANGED)


@pytest.mark.parametrize(("name", "keys"), CHANGED.items())
def test_a_preset_changes_these_settings_of_gtp(name, keys):
    ours, base = settings(name), settings("gtp")
    assert set(ours) == set(base)
    assert [k for k in base if ours[k] != base[k]] == keys


@pytest.mark.parametrize("name", CHANGED)
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
        chosen[one] = build({**settings(one), **plain}, "selector").select(given)
    same_rows = torch.equal(chosen[name].indices, chosen["gtp"].indices)
    assert not (same_rows and torch.allclose(chosen[name].weights, chosen["gtp"].weights))
