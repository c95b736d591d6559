"""From plain values, as YAML and JSON hold them, to frozen dataclasses: checked to the leaves.

Configurations and records are read by this one decoder, and it checks the options of an object that is built
in Python (`check_fields`). Nothing is converted but what the formats cannot hold: an enum is written by its
value, a tuple as a list, and a whole number may stand for a float.
"""

from __future__ import annotations

import importlib
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from gtp_exp.errors import UserError

UNSET = "???"  # what OmegaConf writes for a value that only a person can give


def decode(kind: Any, value: Any, where: str, whole: bool = False) -> Any:
    """Return `value` as a `kind`, checked to the leaves.

    where: the dotted path of the value, for messages. whole: of a file that we wrote, which leaves no key out
    and names no class; else a missing key takes the class's default, and a mapping with `_target_` is built
    as the class that it names. An enum's member and an object of the class, as in Python, stay as they are.
    Raises UserError for another type, an unknown key, a missing key and a number that is not finite.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_one_of(args, value, where, whole)
    if origin in (dict, Mapping):
        _expect(isinstance(value, Mapping), where, "an object", value)
        return {key: decode(args[1], item, f"{where}.{key}", whole) for key, item in value.items()}
    if origin in (list, tuple):
        wanted = f"a list, as in [{value}]" if isinstance(value, str) and len(value) < 40 else "a list"
        _expect(isinstance(value, (list, tuple)), where, wanted, value)
        return origin(decode(args[0], item, f"{where}[{i}]", whole) for i, item in enumerate(value))
    if _is_object_of(kind, value):
        return value
    if issubclass(kind, Enum):
        choices = [member.value for member in kind]
        _expect(value in choices, where, f"one of {choices}", value)
        return kind(value)
    if kind is float:
        _expect(isinstance(value, Real) and not isinstance(value, bool), where, "a number", value)
        _expect(_is_finite(value), where, "a finite number", value)
        return float(value)
    if kind in (str, int, bool):
        fits = isinstance(value, Integral if kind is int else kind)  # numpy's integers are not of `int`
        _expect(fits and (kind is bool or not isinstance(value, bool)), where, kind.__name__, value)
        return kind(value)
    if isinstance(value, Mapping) and "_target_" in value and not whole:
        built = decode_node(value, where)
        _expect(_is_protocol(kind) or isinstance(built, kind), where, f"a {kind.__name__}", built)
        return built
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where, whole)
    raise UserError(
        f"'{where}' is {_shown(value)}, which names no class; choose an option of its group: "
        f"{where.replace('.', '/')}=OPTION"
    )


def decode_node(node: Mapping[str, Any], where: str) -> Any:
    """Return the object of the dataclass that `node["_target_"]` names, filled from the other keys."""
    cls = _locate(node["_target_"], where)
    return _decode_dataclass(cls, {k: v for k, v in node.items() if k != "_target_"}, where, whole=False)


def checked_fields(instance: Any, where: str) -> dict[str, Any]:
    """Return the fields of a dataclass's object, by name, as `decode` would have given them to it.

    So a word becomes the enum that it stands for. where: the path of the object, for messages. A field of a
    kind that YAML could not hold, a function for example, is returned as it is.
    """
    hints = get_type_hints(type(instance))
    values = {f.name: getattr(instance, f.name) for f in fields(instance) if f.init}
    return {
        name: decode(hints[name], value, f"{where}.{name}") if _is_decodable(hints[name]) else value
        for name, value in values.items()
    }


def check_fields(instance: Any, where: str) -> None:
    """Check an object of a frozen dataclass in its `__post_init__`, and put `checked_fields` in place."""
    for name, value in checked_fields(instance, where).items():
        object.__setattr__(instance, name, value)


def _is_decodable(kind: Any) -> bool:
    """Say whether `decode` knows a kind."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return all(option is type(None) or _is_decodable(option) for option in args)
    if origin in (dict, Mapping):
        return _is_decodable(args[1])
    if origin in (list, tuple):
        return _is_decodable(args[0]) and (origin is list or args[1:] == (...,))
    if not isinstance(kind, type):
        return kind is Any
    return issubclass(kind, (Enum, str, int, float)) or is_dataclass(kind) or _is_protocol(kind)


def _is_object_of(kind: type, value: Any) -> bool:
    """Say whether a value is a member of the enum, an object of the dataclass, or one with the protocol's
    methods."""
    if _is_protocol(kind):
        methods = [name for name in vars(kind) if not name.startswith("_")]
        return not isinstance(value, (type, Mapping)) and all(hasattr(value, name) for name in methods)
    return (issubclass(kind, Enum) or is_dataclass(kind)) and isinstance(value, kind)


def _locate(target: Any, where: str) -> type:
    module_name, _, name = str(target).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        remedy = ""
        if not module_name:
            remedy = "; give the file's name, too: MODULE.CLASS"
        elif isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            remedy = "; is its folder on PYTHONPATH?"
        raise UserError(f"{where}._target_: cannot import '{target}' ({error}){remedy}") from error
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise UserError(f"{where}._target_: '{target}' is not a dataclass")
    return cls


def _decode_one_of(options: tuple[Any, ...], value: Any, where: str, whole: bool) -> Any:
    if value is None and type(None) in options:
        return None
    *others, last = [option for option in options if option is not type(None)]
    for option in others:
        if isinstance(value, (int, float) if option is float else option) and not isinstance(value, bool):
            return decode(option, value, where, whole)
    return decode(last, value, where, whole)


def _decode_dataclass(cls: Any, value: Any, where: str, whole: bool) -> Any:
    known = {f.name: f for f in fields(cls)}
    _expect(isinstance(value, Mapping), where or "the file", f"an object of {', '.join(known)}", value)
    prefix = f"{where}." if where else ""
    if unknown := sorted(str(key) for key in set(value) - set(known)):
        why = getattr(cls, "refused", {}).get(unknown[0]) or f"known keys: {', '.join(known)}"
        raise UserError(f"{prefix}{unknown[0]} is unknown; {why}")
    given = {key: item for key, item in value.items() if not (isinstance(item, str) and item == UNSET)}
    needed = {name for name, f in known.items() if whole or (f.default is f.default_factory is MISSING)}
    if missing := sorted(needed - set(given)):
        remedy = "" if whole else f"; give {prefix}{missing[0]}=VALUE"
        raise UserError(f"{prefix}{missing[0]} is missing: {cls.__name__} lacks {', '.join(missing)}{remedy}")
    hints = get_type_hints(cls)
    return cls(**{name: decode(hints[name], given[name], prefix + name, whole) for name in sorted(given)})


def _is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _expect(fits: bool, where: str, wanted: str, value: Any) -> None:
    if not fits:
        raise UserError(f"{where} should be {wanted}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
