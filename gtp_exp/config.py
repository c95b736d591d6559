"""From a config node to a checked object: `build` is the only place where YAML meets code.

A node names its class in `_target_`. The options of conf/ hold every value; a node of a user's own may leave
out what the class has a default for. A wrong type, an unknown key and a missing key are `UserError`s that
name the key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import math
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from gtp_exp.decode import decode_node
from gtp_exp.errors import UserError


def build(node: Mapping[str, Any], key: str) -> Any:
    """Return an object of the frozen dataclass that `node["_target_"]` names, filled and type-checked.

    node: plain mapping, interpolations resolved. key: where the node stands, for messages.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"config '{key}' names no class: it needs a _target_, as every YAML of that group has"
        )
    check_finite(node, key)
    _check_resolved(node, key)
    return decode_node(node, key)


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield (path, value) of all in a config node that is neither a mapping nor a list."""
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
    """Refuse NaN and infinity anywhere in a config node: no file of a run could hold them."""
    for path, value in leaves(node):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{_dotted(key, path)}={value} is not a finite number; give one")


def _check_resolved(node: Any, key: str) -> None:
    """Refuse text that OmegaConf would take for an interpolation: Hydra has resolved the real ones."""
    for path, value in leaves(node):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"config '{_dotted(key, path)}': '{value}' is an unresolved interpolation; write its value"
            )


def _dotted(key: str, path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in (key, *path) if part != "")


def without_folders(value: Any, beginnings: tuple[str, ...] = ("/", "~")) -> Any:
    """Return a value of a configuration in which every path that begins so is cut to its last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(item, beginnings) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item, beginnings) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(beginnings) else value


# In the metadata of a field: False where its value says no more than what an object reads otherwise.
IN_KEY = "in_key"


def describe(value: Any) -> Any:
    """Return a dataclass as JSON values, with its class's name: what an object adds to a cache key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = [f for f in dataclasses.fields(value) if f.metadata.get(IN_KEY, True)]
        fields = {f.name: describe(getattr(value, f.name)) for f in told}
        return {"class": _class_name(type(value)), **fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    return value


OURS = ("gtp_exp", "gtp_baselines", "gtp_benchmarks")


def _class_name(cls: type) -> str:
    """Name a class in a cache key.

    One of ours may move to another file without being another class. One of a user's own is told by its name
    and the hash of its source, so that an edit is never answered from the cache.
    """
    if cls.__module__.partition(".")[0] in OURS:
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__} {_source_hash(cls)}".rstrip()


@functools.cache  # of a class whose objects come by the thousand the files are read once
def _source_hash(cls: type) -> str:
    """Return the SHA-256 (hex) of the files that a user's class is made of: its own, those of its bases, and
    those that they import, as far as they are the user's; empty where there are none."""
    waiting = [base.__module__ for base in cls.__mro__]
    sources: dict[str, bytes] = {}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in seen or module is None:
            continue
        seen.add(name)
        file = getattr(module, "__file__", None)
        if file is None or not (name == cls.__module__ or _is_users(name, file)):
            continue
        with contextlib.suppress(OSError):
            sources[name] = Path(file).read_bytes()
            values = list(vars(module).values())
            waiting += [getattr(v, "__name__", "") if inspect.ismodule(v) else _home(v) for v in values]
    text = b"".join(name.encode() + b"\n" + source for name, source in sorted(sources.items()))
    return hashlib.sha256(text).hexdigest() if sources else ""


def _home(value: Any) -> str:
    """Return the name of the module that defines a class or function; "" for another value."""
    home = getattr(value, "__module__", None) if callable(value) else None
    return home if isinstance(home, str) else ""


def _is_users(name: str, file: str) -> bool:
    """Say whether a module is neither ours, nor Python's, nor of an installed package."""
    parents = Path(file).resolve().parents
    installed = {"site-packages", "dist-packages"}.intersection(parent.name for parent in parents)
    pythons = Path(sysconfig.get_paths()["stdlib"]).resolve() in parents
    return not (name.partition(".")[0] in OURS or installed or pythons)
