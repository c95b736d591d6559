"""Stage directories: what a stage reads is its key, so equal work is done once.

    outputs/cache/<stage>/<key>/           a finished entry: the stage's files and manifest.json
    outputs/cache/<stage>/<key>.part/      work in progress, or what a killed run left, to be resumed
    outputs/cache/<stage>/<key>.lock       held by the one process that produces the entry

An entry appears by rename, so it is whole or absent. Its manifest holds the checksum of every file, and its
own: a damaged entry is deleted and made again, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.files import checksums, first_damage, read_sealed, write_sealed
from gtp_exp.launch.heartbeat import beat

log = logging.getLogger(__name__)
_LOOK_UP_S = 10.0  # while waiting for another run

MANIFEST = "manifest.json"
_SPENT = "spent.json"  # seconds that interrupted runs have put into a `.part`


@dataclass(frozen=True)
class StageResult:
    directory: Path
    key: str
    seconds: float  # what the work cost, also when it was found done
    cached: bool


def stage_key(stage: str, version: int, reads: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of what the stage reads."""
    text = json.dumps(
        {"stage": stage, "version": version, "reads": reads}, sort_keys=True, ensure_ascii=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Cache:
    root: Path
    processes: Processes = ALONE

    def stage(
        self,
        stage: str,
        version: int,
        reads: Mapping[str, Any],
        produce: Callable[[Path], None],
        label: str = "",
        together: bool = False,
    ) -> StageResult:
        """The finished directory of a stage; `produce(directory)` fills it when there is none.

        `produce` gets the `.part` directory with whatever an interrupted run left there. With several
        processes the main one looks, locks and writes the manifest; `produce` runs there alone, or in all of
        them (`together`).
        """
        everyone = self.processes
        label = label or stage  # for messages
        key = stage_key(stage, version, reads)
        final = self.root / stage / key
        part = final.with_name(key + ".part")
        if not everyone.main:
            return self._follow(final, part, produce if together else None)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to outputs folder '{self.root}': {error.strerror}; set outputs=DIR"
            ) from error
        with _locked(final.with_name(key + ".lock"), label):
            found = sound(final)
            if found is not None:
                seconds = float(found["seconds"])
                log.info("%s: reused %s (saved %.1f s)", label, key, seconds)
                everyone.broadcast(seconds)
                return StageResult(final, key, seconds, cached=True)
            beat()
            part.mkdir(exist_ok=True)
            _drop_unfinished(part)
            spent = (read_sealed(part / _SPENT) or {"seconds": 0.0})["seconds"]
            start = time.monotonic()
            everyone.broadcast(None)
            try:
                produce(part)
                if together:
                    everyone.barrier()
            except BaseException:
                with contextlib.suppress(OSError):
                    write_sealed(part / _SPENT, {"seconds": spent + time.monotonic() - start})
                raise
            (part / _SPENT).unlink(missing_ok=True)
            seconds = spent + time.monotonic() - start
            files = checksums(part)
            manifest = {
                "stage": stage,
                "version": version,
                "seconds": seconds,
                "reads": reads,
                "files": files,
            }
            write_sealed(part / MANIFEST, manifest)
            os.replace(part, final)
            log.info("%s: done in %.1f s", label, seconds)
            everyone.broadcast(seconds)
            return StageResult(final, key, seconds, cached=False)

    def _follow(self, final: Path, part: Path, produce: Callable[[Path], None] | None) -> StageResult:
        """What a process does that is not the main one. produce: its part of the work, if it has any."""
        seconds = self.processes.broadcast(None)
        cached = seconds is not None
        if not cached:
            if produce is not None:
                produce(part)
                self.processes.barrier()
            seconds = self.processes.broadcast(None)
        return StageResult(final, final.name, seconds, cached)


class _locked:
    """Holds the entry's lock; says so when it has to wait for another process."""

    def __init__(self, path: Path, stage: str) -> None:
        self.lock, self.stage = FileLock(str(path)), stage

    def __enter__(self) -> None:
        timeout = 0.5
        while True:
            try:
                self.lock.acquire(timeout=timeout)
                return
            except Timeout:
                if timeout < _LOOK_UP_S:
                    log.warning("%s: another run is computing the same entry; waiting for it", self.stage)
                timeout = _LOOK_UP_S
                beat()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def sound(entry: Path) -> Mapping[str, Any] | None:
    """The manifest of a whole entry; None when it is absent, or damaged (then it is deleted)."""
    if not entry.exists():
        return None
    manifest = read_sealed(entry / MANIFEST)
    damage = f"{MANIFEST} is missing or damaged"
    if manifest is not None:
        damage = first_damage(entry, manifest["files"])
    if not damage:
        return manifest
    log.warning("%s: damaged cache entry (%s); making it again", entry, damage)
    shutil.rmtree(entry)
    return None


def _drop_unfinished(part: Path) -> None:
    """Files that were being written when a run was stopped; nobody goes on with those."""
    for file in (part / MANIFEST, *part.rglob("*.part")):
        file.unlink(missing_ok=True)
