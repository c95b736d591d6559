"""`build`: YAML values become a checked frozen dataclass, or an error that names the key."""

from __future__ import annotations

import pytest

from gtp_exp.config import build, describe
from gtp_exp.errors import UserError
from gtp_exp.selection.base import Budget, Unit

BUDGET = {"_target_": "gtp_exp.selection.base.Budget", "unit": "fraction", "amount": 0.05}
MODEL = {
    "_target_": "gtp_exp.model.loading.ModelConfig",
    "source": "tiny",
    "name_or_path": "x",
    "revision": None,
    "precision": "fp32",
    "max_length": 64,
    "trust_remote_code": False,
    "system_prompt": None,
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj"], "last_layers": None},
}


def test_builds_the_named_class_with_checked_types():
    budget = build(BUDGET, "budget")
    assert budget == Budget(Unit.FRACTION, 0.05)


def test_nested_dataclasses_and_null_are_built():
    assert build(MODEL, "model").lora.target_modules == ["q_proj"]
    assert build({**MODEL, "lora": None}, "model").lora is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"amount": "abc"}, "budget.amount"),
        ({"amuont": 0.1}, "budget.amuont"),
        ({"unit": "percent"}, "budget.unit"),
        ({"amount": -1}, "budget.amount"),
        ({"_target_": "gtp_exp.selection.base.Bugdet"}, "Bugdet"),
        ({"_target_": "os.path.join"}, "os.path.join"),
        ({"_target_": "no_such_module.X"}, "no_such_module"),
    ],
)
def test_a_wrong_value_is_named(change, named):
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        build({**BUDGET, **change}, "budget")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_no_file_can_hold_is_refused_wherever_it_stands(value):
    for node, named in (
        ({**BUDGET, "amount": value}, "budget.amount"),
        ({**MODEL, "lora": {**MODEL["lora"], "dropout": value}}, "budget.lora.dropout"),
        ({**MODEL, "lora": {**MODEL["lora"], "target_modules": ["q_proj", value]}}, "target_modules.1"),
    ):
        with pytest.raises(UserError, match=f"{named}={value} is not a finite number"):
            build(node, "budget")


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match="lacks amount"):
        build({k: v for k, v in BUDGET.items() if k != "amount"}, "budget")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 4}, "rank"),
        ({"r": "four"}, "model.lora.r"),
        ({"target_modules": "q_proj"}, "target_modules"),
    ],
)
def test_a_wrong_value_inside_a_nested_part_is_named(change, named):
    with pytest.raises(UserError, match=named):
        build({**MODEL, "lora": {**MODEL["lora"], **change}}, "model")


def test_describe_tells_objects_apart_by_class_and_value():
    a, b = Budget(Unit.ROWS, 5), Budget(Unit.TOKENS, 5)
    assert describe(a) != describe(b)
    assert describe(a) == {"class": "Budget", "unit": "rows", "amount": 5}
