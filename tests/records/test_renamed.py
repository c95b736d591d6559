"""Records of earlier layouts are read; every name in the table leads to a class that is there."""

from __future__ import annotations

import importlib
import json

import pytest
from leaderboard_runs import record

from gtp_exp.records.record import read_record, write_record
from gtp_exp.records.renamed import CLASSES, present_name, with_present_names


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
