"""Read the record of a gradient store, store.json, without opening its arrays; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.files import json_digest, read_json

FORMAT = 2
PLAN, ROWS, STORE = "plan.json", "rows.json", "store.json"
# Of a record: what a store is read by.
NEEDED = {"rows", "dim", "storage", "shard_rows", "checkpoints", "directions", "quarantined", "sha256"}


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the content of store.json. Raise UserError for a store that is unfinished, damaged or of another
    format."""
    file = directory / STORE
    if not file.is_file():
        state = "is not a gradient store"
        if (directory / PLAN).is_file():
            state = "is not finished; run the same command again to go on"
        raise UserError(f"{directory} {state}: {STORE} is missing")
    about = read_json(file)
    if not isinstance(about, dict):
        raise UserError(f"{file} is damaged; collect the store again")
    if about.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {about.get('format')}, this version reads {FORMAT}; collect it again"
        )
    if missing := sorted(NEEDED - about.keys()):
        raise UserError(f"{file} is damaged, it lacks {', '.join(missing)}; collect the store again")
    return about


def content_key(about: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a store's record, which holds the checksum of every file; the same wherever
    the store lies."""
    return json_digest(about)


def check_same_space(pool: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Raise UserError unless the stores of pool and target hold the same checkpoints in the same space."""
    counts = [len(about["checkpoints"]) for about in (pool, target)]
    if counts[0] != counts[1]:
        raise UserError(
            f"the pool has {counts[0]} checkpoints and the target {counts[1]}; "
            "give one array of each per checkpoint"
        )
    if pool["dim"] != target["dim"]:
        raise UserError(
            f"the pool has {pool['dim']} columns and the target {target['dim']}; "
            "both must come from the same sketch"
        )
    if different := [key for key in ("sketch", "seed", "checkpoints") if pool[key] != target[key]]:
        raise UserError(
            f"pool and target gradients come from different trajectories or sketches "
            f"({', '.join(different)}); collect both with the same settings"
        )
