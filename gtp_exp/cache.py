"""Stage directories: what a stage reads is its key, so equal work is done once.

    outputs/cache/<stage>/<key>/           a finished entry: the stage's files and manifest.json
    outputs/cache/<stage>/<key>.part/      work in progress, or what a killed run left, to be resumed
    outputs/cache/<stage>/<key>.lock       held by the one process that produces the entry

An entry appears by rename, so it is whole or absent. Its manifest holds the checksum of every file: a damaged
entry is deleted and made again, with a warning.
"""

from __future__ import annotations

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

from gtp_exp.errors import UserError
from gtp_exp.heartbeat import beat
from gtp_exp.processes import ALONE, Processes

log = logging.getLogger(__name__)
_LOOK_UP_S = 10.0  # while waiting for another run


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
            seconds = _verified_seconds(final)
            if seconds is not None:
                log.info("%s: reused %s (saved %.1f s)", label, key, seconds)
                everyone.share(seconds)
                return StageResult(final, key, seconds, cached=True)
            beat()
            part.mkdir(exist_ok=True)
            spent = _read_json(part / "spent.json", {"seconds": 0.0})["seconds"]
            start = time.monotonic()
            everyone.share(None)
            try:
                produce(part)
                if together:
                    everyone.wait()
            finally:
                seconds = spent + time.monotonic() - start
                (part / "spent.json").write_text(json.dumps({"seconds": seconds}))
            (part / "spent.json").unlink()
            manifest = {
                "stage": stage,
                "version": version,
                "seconds": seconds,
                "reads": reads,
                "files": _checksums(part),
            }
            _write_synced(part / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
            os.replace(part, final)
            log.info("%s: done in %.1f s", label, seconds)
            everyone.share(seconds)
            return StageResult(final, key, seconds, cached=False)

    def _follow(self, final: Path, part: Path, produce: Callable[[Path], None] | None) -> StageResult:
        """What a process does that is not the main one. produce: its part of the work, if it has any."""
        seconds = self.processes.share(None)
        cached = seconds is not None
        if not cached:
            if produce is not None:
                produce(part)
                self.processes.wait()
            seconds = self.processes.share(None)
        return StageResult(final, final.name, seconds, cached)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )


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


def _verified_seconds(entry: Path) -> float | None:
    """The recorded cost of a sound entry; None when it is absent, or damaged (then it is deleted)."""
    if not entry.exists():
        return None
    manifest = _read_json(entry / "manifest.json", None)
    damage = "manifest.json is missing or unreadable" if not isinstance(manifest, dict) else ""
    if not damage:
        recorded = manifest["files"]
        for name, digest in recorded.items():
            path = entry / name
            if not path.is_file():
                damage = f"{name} is missing"
            elif sha256_file(path) != digest:
                damage = f"{name} does not match its checksum"
            if damage:
                break
    if not damage:
        return float(manifest["seconds"])
    log.warning("%s: damaged cache entry (%s); making it again", entry, damage)
    shutil.rmtree(entry)
    return None


def _checksums(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def _digest(file: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
