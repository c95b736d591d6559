"""Every YAML of every group builds, and experiments compose."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gtp_exp.worker import _experiment

CONF = Path(__file__).resolve().parent.parent / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def build(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    return config, _experiment(config)


def test_the_groups_are_those_of_the_design():
    assert GROUPS == sorted(
        "model dataset gradients selector budget train benchmark tracking launch experiment".split()
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_into_checked_objects(group, option):
    override = f"experiment={option}" if group == "experiment" else f"{group}={option}"
    config, experiment = build(override)
    if group != "experiment":
        target = config[group]["_target_"]
        built = getattr(experiment, group)
        assert f"{type(built).__module__}.{type(built).__qualname__}" == target
        assert set(config[group]) == {"_target_", *type(built).__dataclass_fields__}


@pytest.mark.parametrize(
    ("option", "share"), [("0.5pct", 0.005), ("1pct", 0.01), ("5pct", 0.05), ("10pct", 0.1), ("100pct", 1.0)]
)
def test_a_budgets_name_says_its_amount(option, share):
    assert build(f"budget={option}")[1].budget.amount == share
