"""Checksums of files, and JSON files that carry their own: damage is noticed where something is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gtp_exp.launch.heartbeat import beat

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # other errors may pass: no damage
_OWN = "checksum"  # the entry of a sealed file that holds the checksum of the others


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            beat()
    return digest.hexdigest()


def checksums(directory: Path) -> dict[str, str]:
    """Of every file below the directory, by its relative name."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def first_damage(directory: Path, recorded: Mapping[str, str]) -> str:
    """The first file that is not as recorded, and why; empty when every one is."""
    for name, expected in recorded.items():
        try:
            found = sha256_file(directory / name)
        except _ABSENT:
            return f"{name} is missing"
        if found != expected:
            return f"{name} does not match its checksum"
    return ""


def write_json(path: Path, value: object) -> None:
    write_whole(path, [json.dumps(value, indent=1) + "\n"])


def write_whole(path: Path, chunks: Iterable[str]) -> None:
    """In one step, and on the disk when this returns: a reader sees the old or the new file, each whole."""
    partial = path.with_name(path.name + ".part")  # beside it: os.replace is atomic within one file system
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    value = json.loads(json.dumps(value))  # as it will be read: keys are text
    write_json(path, {**value, _OWN: _digest(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None when it is absent, or is not what was written."""
    value = read_json(path)
    if not isinstance(value, dict) or value.pop(_OWN, None) != _digest(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """None when there is no file, or one that is not JSON. Raises OSError where it cannot be told."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (*_ABSENT, ValueError, RecursionError):
        return None


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
