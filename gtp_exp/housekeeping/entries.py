"""List the entries of the stage cache, with their size and age."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from gtp_exp.files import MANIFEST, PART, read_json

STAGES = (
    "models",
    "warmup",
    "gradients",
    "pass",
    "selection",
    "objectives",  # of the subsets that gtp_benchmarks.validity draws
    "finetune",
    "evaluation",
    "validation",
)
PRUNED = ".pruned"  # ends the name of an entry that is being removed


class Form(Enum):
    """Says what a folder of the cache is."""

    WHOLE = "whole"
    UNFINISHED = "unfinished"  # what an interrupted job goes on from
    HALF_REMOVED = "half removed"  # what an interrupted removal has left


@dataclass(frozen=True)
class Entry:
    """Holds one folder of the cache: a stage's finished files, or work in progress."""

    stage: str
    key: str
    path: Path
    form: Form
    bytes: int
    bytes_only_here: int  # without files that are linked from elsewhere, such as a run's weights
    last_used: float  # when it was made or last reused, in seconds since 1970

    @property
    def lock(self) -> Path:
        """Return the lock that a job holds while it looks at the entry or makes it."""
        return self.path.with_name(self.key + ".lock")

    def reads(self) -> dict[str, Any]:
        """Return what the stage read, as the entry's manifest tells it; empty where it tells nothing."""
        found = (read_json(self.path / MANIFEST) or {}).get("reads")
        return found if isinstance(found, dict) else {}


def list_entries(cache: Path) -> list[Entry]:
    """Return every entry of the cache, by stage in the pipeline's order, oldest first."""
    entries = [
        entry
        for stage in STAGES
        if (cache / stage).is_dir()
        for folder in (cache / stage).iterdir()
        if folder.is_dir() and (entry := _entry(stage, folder))
    ]
    return sorted(entries, key=lambda entry: (STAGES.index(entry.stage), entry.last_used, entry.key))


def _entry(stage: str, folder: Path) -> Entry | None:
    """Return what a folder holds; None for one that a job has moved in the meantime."""
    form, key = Form.WHOLE, folder.name
    for ending, what in ((PART, Form.UNFINISHED), (PRUNED, Form.HALF_REMOVED)):
        if folder.name.endswith(ending):
            form, key = what, folder.name.removesuffix(ending)
    files = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                files.append((path, path.stat()))
        except OSError:  # a job has moved it in the meantime
            continue
    used = [] if form is Form.WHOLE else [stat.st_mtime for _, stat in files]
    try:
        touched = folder.stat().st_mtime
    except FileNotFoundError:
        return None
    return Entry(
        stage,
        key,
        folder,
        form,
        bytes=sum(stat.st_size for _, stat in files),
        bytes_only_here=sum(stat.st_size for _, stat in files if stat.st_nlink == 1),
        last_used=max([touched, *used]),
    )
