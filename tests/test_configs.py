"""Every YAML of every group builds, and experiments compose."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from options import REQUIRED, WHOLE, names, option, whole

from gtp_exp.config import build as build_node
from gtp_exp.errors import UserError
from gtp_exp.worker import assemble

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
OPTIONS = [(group, name) for group in GROUPS for name in names(group)]


def build(*overrides):
    config = whole(*overrides)
    return config, assemble(config)


def test_the_groups_are_those_of_the_design():
    assert GROUPS == sorted(
        [*"model dataset gradients selector budget train benchmark tracking launch".split(), *WHOLE]
    )


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_into_checked_objects(group, name):
    override = f"+debug={name}" if group == "debug" else f"{group}={name}"
    given = REQUIRED.get((group, name), [])
    config, experiment = build(override, *given)
    if group not in WHOLE:
        built = getattr(experiment, group)
        assert type(built).__name__ == config[group]["_target_"].rpartition(".")[2]
        fields = {f.name for f in dataclasses.fields(built)}
        assert set(config[group]) == {"_target_", *fields}
        assert config[group] == option(group, name, *given)


@pytest.mark.parametrize(("group", "option"), sorted(REQUIRED))
def test_an_option_that_lacks_what_only_a_person_knows_says_so(group, option):
    with pytest.raises(UserError, match="target|test|files|file|pool|hub_id|names|name_or_path"):
        build(f"{group}={option}")


def test_a_key_outside_the_groups_is_named_as_it_is_given():
    with pytest.raises(UserError, match="^until should be one of"):
        build("until=select")


@pytest.mark.parametrize(
    ("option", "share"), [("0.5pct", 0.005), ("1pct", 0.01), ("5pct", 0.05), ("10pct", 0.1), ("100pct", 1.0)]
)
def test_a_budgets_name_says_its_amount(option, share):
    assert build(f"budget={option}")[1].budget.amount == share


CANONICAL = [
    ("model", "smollm2_135m"),
    ("dataset", "skills"),
    ("dataset", "jsonl"),
    ("dataset", "clinc150"),
    ("benchmark", "clinc150"),
    ("gradients", "lora_trajectory"),
    ("train", "lora"),
    ("launch", "auto"),
    ("tracking", "wandb"),
    ("benchmark", "skills_target"),
    ("benchmark", "pool_held_out"),
    ("benchmark", "jsonl"),
    *[("selector", name) for name in names("selector") if not name.startswith("gtp_")],
]


@pytest.mark.parametrize(("group", "name"), CANONICAL)
def test_a_class_has_the_values_of_its_option(group, name):
    given = {
        ("dataset", "jsonl"): {"files": ["pool.jsonl"]},
        ("selector", "given"): {"file": "ids.txt"},
        ("benchmark", "jsonl"): {"target": "mine.jsonl"},
    }.get((group, name), {})
    built = build_node({**option(group, name), **given}, group)
    if name == "perplexity_top":
        given = {"part": built.part}
    assert built == type(built)(**given)
