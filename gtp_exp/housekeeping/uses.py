"""Find out which runs use an entry of the cache: records and event logs name the keys of a run's stages."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.files import find_files, json_digest
from gtp_exp.housekeeping.entries import Entry
from gtp_exp.records.record import METRICS_NAME, RECORD_NAME, RunRecord, State, read_newer_record

BUILT_IN = {"tiny": "tiny", "smollm2": "smollm2-135m-instruct"}  # folder in models/, by model.source


@dataclass(frozen=True)
class Uses:
    """Holds which runs use which keys."""

    runs: tuple[str, ...]
    by_key: Mapping[str, tuple[str, ...]]
    unreadable: tuple[str, ...]  # why, of each record that could not be read

    def of(self, entry: Entry) -> tuple[str, ...]:
        """Return the runs that use an entry."""
        return self.by_key.get(entry.key, ())


def find_uses(folders: Sequence[Path], entries: Sequence[Entry]) -> Uses:
    """Return what the runs below the folders use. entries: all of the cache.

    Raise UserError for a folder that is not there.
    """
    by_key: dict[str, list[str]] = defaultdict(list)
    runs, unreadable, running = [], [], False
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--runs {folder} is no folder; give folders of runs, such as outputs/runs")
        for file in find_files(folder, RECORD_NAME):
            name = file.parent.relative_to(folder).as_posix()
            try:
                record, _ = read_newer_record(file)
            except UserError as error:
                unreadable.append(str(error))
                continue
            runs.append(name)
            running |= record.state is State.RUNNING
            for key in dict.fromkeys([*_recorded(record), *_logged(file.parent / METRICS_NAME)]):
                by_key[key].append(name)
    users = {key: tuple(names) for key, names in by_key.items()}
    return Uses(tuple(runs), users | dict(_uses_of_passes(entries, users, running)), tuple(unreadable))


def _uses_of_passes(
    entries: Sequence[Entry], users: Mapping[str, tuple[str, ...]], running: bool
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the key of every pass of a model over the pool, and the runs that use it.

    A pass is read by selections: the runs of those that the same model has made use it. While a job runs,
    every pass counts as used. users: the runs that use the other entries, by key.
    """
    by_model: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.stage == "selection" and entry.key in users:
            by_model[_model(entry)] += users[entry.key]
    for entry in entries:
        if entry.stage == "pass":
            yield entry.key, ("a running job",) if running else tuple(dict.fromkeys(by_model[_model(entry)]))


def _model(entry: Entry) -> str:
    """Return the hash of the model that an entry was made by."""
    return json_digest(entry.reads().get("model"))


def _recorded(record: RunRecord) -> Iterator[str]:
    """Yield the keys of a record's stages, of the stores that it was given from a cache, and the folders of
    its built-in models."""
    for cost in record.stages.values():
        yield from cost.key.split()
    given: Any = record.config.get("gradients")
    for part in ("pool", "target"):
        path = Path(str(given.get(part))) if isinstance(given, Mapping) else Path()
        yield from (folder.name for folder in (path, *path.parents) if folder.parent.name == "gradients")
    for group in ("model", "selection_model"):
        node: Any = record.config.get(group)
        if isinstance(node, Mapping) and node.get("source") in BUILT_IN:
            yield BUILT_IN[node["source"]]


def _logged(events: Path) -> Iterator[str]:
    """Yield the keys that a job has come to; one that is running, or was interrupted, has no others."""
    try:
        lines = events.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # cut short as the job was killed
            continue
        if isinstance(event, dict) and event.get("kind") == "stage" and isinstance(event.get("key"), str):
            yield event["key"]
