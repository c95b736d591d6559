"""Records of earlier layouts are read; every name in the table leads to a class that is there."""

from __future__ import annotations

import importlib
import json

import pytest
from hydra import compose, initialize_config_dir
from leaderboard_runs import record
from omegaconf import OmegaConf
from options import CONF

from gtp_exp.records.record import read_record, write_record
from gtp_exp.records.renamed import CLASSES, SOLVERS, present_name, with_present_names


def compose_option(override):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", [override]).selector)


@pytest.mark.parametrize("old", CLASSES)
def test_an_earlier_name_leads_to_a_class(old):
    module, _, name = present_name(old).rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_packages_and_nested_nodes_are_renamed_and_the_rest_is_left():
    node = {"selector": {"_target_": "baselines.less.LESS", "x": ["baselines.y"]}, "z": 1}
    assert with_present_names(node) == {
        "selector": {"_target_": "gtp_baselines.less.LESS", "x": ["baselines.y"]},
        "z": 1,
    }


def test_a_record_under_an_earlier_name_equals_one_under_the_present_name(tmp_path):
    written = json.loads(write_record(record("gtp", 0), tmp_path).read_text())
    written["config"]["model"] = {"_target_": "gtp_exp.models.ModelConfig"}
    (tmp_path / "results.json").write_text(json.dumps(written))
    assert read_record(tmp_path / "results.json").config["model"] == {
        "_target_": "gtp_exp.model.loading.ModelConfig"
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_gtp_with_flat_options_of_its_solver_is_gtp_with_that_solver(solver):
    flat = {"candidates": 2.0, "prune_stages": 4, "max_iterations": 30, "tolerance": 0.02, "steps": 50}
    present = compose_option(f"selector/solver={solver}")
    node = {**present, **flat, "solver": solver}
    assert with_present_names(node) == present
