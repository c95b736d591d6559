"""Finds run records below the given paths; what cannot be read is kept by name, never dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gtp_exp.errors import UserError
from gtp_exp.files import find_files
from gtp_exp.records.address import public_address
from gtp_exp.records.record import RECORD_NAME, RunRecord, State, read_newer_record


@dataclass(frozen=True, eq=False)  # two runs are two, whatever they hold, and a run can be a key
class Run:
    """Hold one run's record and where it was found."""

    name: str  # its folder as shown, such as sweep/3
    directory: Path
    record: RunRecord
    more: Mapping[str, Any] = field(default_factory=dict)  # what the record holds beyond what is known here
    test: str = ""  # the further test whose results the record shows in place of the benchmark's

    @property
    def tracked_at(self) -> str | None:
        """Return the address of the run's page in W&B, if the record, which anyone may have written, has
        one that can be a link."""
        return public_address(self.record.tracked_at)


@dataclass(frozen=True)
class Unreadable:
    """Name a record that could not be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """Hold all records below the given folders."""

    runs: tuple[Run, ...]
    unreadable: tuple[Unreadable, ...]
    copies: int  # records met twice, as when a copied folder overlaps the original

    @property
    def complete(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if is_complete(run.record))

    @property
    def incomplete(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if not is_complete(run.record))


def is_complete(record: RunRecord) -> bool:
    """Say whether a run has come to its end and has seen the whole target: one that held back rows for
    validation aimed at fewer, and tests nothing."""
    return record.state is State.COMPLETE and record.validation is None


def shortfall(record: RunRecord) -> str:
    """Return why a run is not complete: its error, or that it was measured on validation rows; else empty."""
    if record.validation is not None and not record.error:
        return "measured on rows held back for validation, not tested (until=validation)"
    return record.error or ""


def load(paths: Sequence[Path]) -> Loaded:
    """paths: run folders, folders of run folders at any depth, or results.json files.

    Raises UserError for a path that is not there, and when there is no record at all.
    """
    files: dict[Path, str] = {}  # resolved file -> shown name; a file given twice is read once
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give folders of runs, such as outputs/runs/<sweep>")
        record_files = [path] if path.is_file() else find_files(path, RECORD_NAME)
        for file in record_files:
            files.setdefault(file.resolve(), _shown(file.resolve().parent))
    if not files:
        shown = ", ".join(str(path) for path in paths)
        raise UserError(f"no {RECORD_NAME} below {shown}; run gtp-exp first, or give another folder")

    runs: list[Run] = []
    unreadable: list[Unreadable] = []
    copies = 0
    seen: dict[tuple[str, int, str], list[RunRecord]] = {}
    for file, name in files.items():
        try:
            record, more = read_newer_record(file)
        except UserError as error:
            unreadable.append(
                Unreadable(name=name, reason=str(error).replace(str(file.parent), "").lstrip("/"))
            )
            continue
        alike = seen.setdefault((record.started, record.seed, record.group), [])
        if record in alike:
            copies += 1
            continue
        alike.append(record)
        runs.append(Run(name=name, directory=file.parent, record=record, more=more))
    return Loaded(runs=tuple(runs), unreadable=tuple(unreadable), copies=copies)


def _shown(directory: Path) -> str:
    """The last two folders, sweep and job: enough to find it, and no one's home folder on a shared page."""
    return "/".join(directory.parts[-2:])
