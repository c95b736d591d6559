"""`build`: YAML values become a checked frozen dataclass, or an error that names the key."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field

import pytest

from gtp_exp.config import build, describe
from gtp_exp.errors import UserError
from gtp_exp.model.loading import ModelConfig
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
        (
            {"_target_": "no_such_module.X"},
            r"No module named 'no_such_module'\); is its folder on PYTHONPATH\?",
        ),
        ({"_target_": "gtp_exp.no_such_module.X"}, r"is its folder on PYTHONPATH\?"),
        ({"_target_": "Budget"}, "; give the file's name, too: MODULE.CLASS"),
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
    with pytest.raises(UserError, match="lacks amount; give budget.amount=VALUE"):
        build({k: v for k, v in BUDGET.items() if k != "amount"}, "budget")


def test_a_missing_key_takes_the_default_of_its_class():
    node = {key: value for key, value in MODEL.items() if key not in ("precision", "max_length")}
    assert build(node, "model").max_length == ModelConfig().max_length


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": "64"},
        {"max_length": True},
        {"max_length": 64.0},
        {"trust_remote_code": 1},
        {"trust_remote_code": "true"},
        {"name_or_path": 5},
        {"lora": {**MODEL["lora"], "dropout": "0.1"}},
        {"lora": {**MODEL["lora"], "target_modules": [1]}},
        {"lora": [4]},
    ],
)
def test_nothing_is_converted_but_a_whole_number_to_a_float(change):
    assert build({**MODEL, "lora": {**MODEL["lora"], "dropout": 0}}, "model").lora.dropout == 0.0
    with pytest.raises(UserError, match=f"model.{next(iter(change))}.* should be "):
        build({**MODEL, **change}, "model")


def test_an_unknown_key_is_told_those_that_are_known():
    with pytest.raises(UserError, match="budget.amuont is unknown; known keys: unit, amount"):
        build({**BUDGET, "amuont": 1}, "budget")


@dataclass(frozen=True)
class Base:
    size: int = 1


@dataclass(frozen=True)
class Derived(Base):
    more: int = 2


@dataclass(frozen=True)
class Holder:
    base: Base
    several: list[Base] = field(default_factory=list)


def test_a_nested_node_that_names_a_class_is_built_by_it_where_the_class_fits():
    derived = {"_target_": f"{__name__}.Derived", "more": 3}
    holder = {"_target_": f"{__name__}.Holder", "base": derived, "several": [derived, {"size": 4}]}
    assert build(holder, "x") == Holder(Derived(more=3), [Derived(more=3), Base(4)])
    with pytest.raises(UserError, match="x.base should be a Base, not Budget"):
        build({**holder, "base": BUDGET}, "x")
    with pytest.raises(UserError, match="x.base.mroe is unknown"):
        build({**holder, "base": {**derived, "mroe": 1}}, "x")
    with pytest.raises(UserError, match="x.base._target_: cannot import"):
        build({**holder, "base": {"_target_": "no_such_module.X"}}, "x")


@pytest.mark.parametrize("value", ["cosamp", None, {"steps": 3}])
def test_a_solver_that_names_no_class_is_refused(value):
    with pytest.raises(UserError, match="'selector.solver'.* names no class"):
        build({"_target_": "gtp_exp.selection.gtp.GTP", "solver": value}, "selector")


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


OWN = """from dataclasses import dataclass
{imports}

@dataclass(frozen=True)
class Own{base}:
    n: int = 1
"""


@pytest.mark.parametrize(
    ("imports", "base"),
    [
        ("", ""),
        ("from helper_of_mine import shift", ""),
        ("import helper_of_mine", ""),
        ("from step_of_mine import step", ""),
        ("from helper_of_mine import Base", "(Base)"),
    ],
)
def test_a_users_class_is_told_by_its_source_and_by_what_that_imports(tmp_path, monkeypatch, imports, base):
    names = ("own_of_mine", "helper_of_mine", "step_of_mine", "unread_of_mine")
    files = {name: tmp_path / f"{name}.py" for name in names}
    files["own_of_mine"].write_text(OWN.format(imports=imports, base=base))
    files["helper_of_mine"].write_text("def shift(x):\n    return x + 1\n\nclass Base:\n    pass\n")
    files["step_of_mine"].write_text("from helper_of_mine import shift\n\ndef step(x):\n    return shift(x)")
    files["unread_of_mine"].write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def key() -> object:
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return describe(importlib.import_module("own_of_mine").Own())

    first = key()
    for name, path in files.items():
        before = path.read_text()
        path.write_text(before + "\n# edited\n")
        read = name == "own_of_mine" or f"{name} " in f"{imports} " or (name == "helper_of_mine" and imports)
        assert (key() != first) == bool(read), name
        path.write_text(before)
    assert key() == first
    for name in names:
        sys.modules.pop(name, None)
