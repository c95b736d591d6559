"""From a config node to a checked object: `build` is the only place where YAML meets code.

A node names its class in `_target_` and holds every value; the dataclass holds the types and no defaults.
A wrong type, an unknown key and a missing key are `UserError`s that name the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gtp_exp.errors import UserError, first_line


def build(node: Mapping[str, Any], key: str) -> Any:
    """The frozen dataclass that `node["_target_"]` names, filled and type-checked.

    node: plain mapping, interpolations resolved. key: where the node stands, for messages.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"config '{key}' names no class: it needs a _target_, as every YAML of that group has"
        )
    cls = _locate(node["_target_"], key)
    check_finite(node, key)
    _check_resolved(node, key)
    return _construct(cls, {k: v for k, v in node.items() if k != "_target_"}, key)


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, value) of all in a config node that is neither a mapping nor a list."""
    if isinstance(node, Mapping):
        inner = node.items()
    elif isinstance(node, (list, tuple)):
        inner = enumerate(node)
    else:
        yield path, node
        return
    for name, value in inner:
        yield from leaves(value, (*path, name))


def check_finite(node: Any, key: str = "") -> None:
    """Refuses NaN and infinity anywhere in a config node: no file of a run could hold them."""
    for path, value in leaves(node):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{_dotted(key, path)}={value} is not a finite number; give one")


def _check_resolved(node: Any, key: str) -> None:
    """Refuses text that OmegaConf would take for an interpolation: Hydra has resolved the real ones."""
    for path, value in leaves(node):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"config '{_dotted(key, path)}': '{value}' is an unresolved interpolation; write its value"
            )


def _dotted(key: str, path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in (key, *path) if part != "")


def describe(value: Any) -> Any:
    """A dataclass as JSON values, class name included: the part of a cache key that an object stands for."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": _class_name(type(value)), **fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    return value


def _class_name(cls: type) -> str:
    """Name a class in a cache key.

    One of ours may move to another file without being another class. One of a user's own is told by its name
    and the hash of its source file, so that an edit is never answered from the cache.
    """
    if cls.__module__.partition(".")[0] in ("gtp_exp", "gtp_baselines", "gtp_benchmarks"):
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__} {_source_hash(cls)}".rstrip()


def _source_hash(cls: type) -> str:
    """Return the SHA-256 (hex) of the file that defines a class; empty where there is none."""
    try:
        source = inspect.getsourcefile(cls)
        return "" if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""


def _locate(target: Any, key: str) -> type:
    module_name, _, name = str(target).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"config '{key}._target_': cannot import '{target}' ({error})") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"config '{key}._target_': '{target}' is not a dataclass")
    return cls


def _construct(cls: type, values: Mapping[str, Any], key: str) -> Any:
    """Nested dataclasses are built first; OmegaConf then checks the plain values against their types."""
    hints = {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}
    nested, plain = {}, {}
    for name, value in values.items():
        part = _dataclass_in(hints.get(name))
        if name in hints and isinstance(value, Mapping) and "_target_" in value:
            nested[name] = build(value, f"{key}.{name}")  # one of several classes, and it says which
        elif name in hints and _is_protocol(hints[name]):
            raise UserError(
                f"config '{key}.{name}': {value!r} names no class; choose an option of its group with "
                f"{key}/{name}=OPTION"
            )
        elif part is not None and isinstance(value, Mapping):
            nested[name] = _construct(part, value, f"{key}.{name}")
        elif part is not None and isinstance(value, list) and typing.get_origin(hints[name]) is list:
            keys = [f"{key}.{name}[{i}]" for i in range(len(value))]
            nested[name] = [
                _construct(part, _mapping(v, part, k), k) for v, k in zip(value, keys, strict=True)
            ]
        elif part is not None and value is None and type(None) in typing.get_args(hints[name]):
            nested[name] = None
        elif part is not None:
            _mapping(value, part, f"{key}.{name}")
        else:
            if typing.get_origin(hints.get(name)) is dict and isinstance(value, Mapping):
                for k, v in value.items():  # OmegaConf lets lists and mappings pass for scalars here
                    if isinstance(v, (list, Mapping)):
                        raise UserError(f"config '{key}.{name}.{k}': {v!r} is not a single value")
            plain[name] = _enum_names(hints[name], value, f"{key}.{name}") if name in hints else value
    # A class of the plain fields alone, under the same name: a frozen one would come out of merge read-only.
    absent = [name for name, hint in hints.items() if _is_protocol(hint) and name not in nested]
    if absent:
        raise UserError(f"config '{key}' lacks {', '.join(absent)}: {cls.__name__} needs every key")
    fields = [(name, hint) for name, hint in hints.items() if name not in nested]
    schema = dataclasses.make_dataclass(cls.__name__, fields)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
    except OmegaConfBaseException as error:
        where = f"{key}.{error.full_key}" if error.full_key else key
        reason = first_line(error)
        raise UserError(f"config '{where}': {reason}; known keys: {', '.join(hints)}") from None
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"config '{key}' lacks {', '.join(missing)}: {cls.__name__} needs every key")
    return cls(**OmegaConf.to_container(merged), **nested)  # type: ignore[arg-type]


def _mapping(value: Any, cls: type, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        keys = ", ".join(f.name for f in dataclasses.fields(cls))
        raise UserError(f"config '{key}': {value!r} cannot stand for the keys {keys}")
    return value


def _is_protocol(hint: Any) -> bool:
    return bool(getattr(hint, "_is_protocol", False))


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of a field typed D, Optional[D] or list[D]."""
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    candidate = inner[0] if len(inner) == 1 else hint
    return candidate if isinstance(candidate, type) and dataclasses.is_dataclass(candidate) else None


def _enum_names(hint: Any, value: Any, key: str) -> Any:
    """YAML writes an enum by its value (`bf16`); OmegaConf wants the member's name."""
    inner = [a for a in typing.get_args(hint) if a is not type(None)]
    if value is None or len(inner) > 1:
        return value
    if typing.get_origin(hint) is list:
        return (
            [_enum_names(inner[0], v, f"{key}[{i}]") for i, v in enumerate(value)]
            if isinstance(value, list)
            else value
        )
    kind = inner[0] if inner else hint
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return value
    names = {str(member.value): member.name for member in kind}
    if str(value) not in names:
        raise UserError(f"config '{key}': '{value}' is not one of {', '.join(names)}")
    return names[str(value)]
