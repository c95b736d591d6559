"""Keep the results of stages: what a stage reads is its key, so equal work is done once.

    outputs/cache/<stage>/<key>/           a finished entry: the stage's files and manifest.json
    outputs/cache/<stage>/<key>.part/      work in progress, or what a killed run left, to be resumed
    outputs/cache/<stage>/<key>.lock       held by the one process that produces the entry

An entry is a `SealedFolder`: it appears by rename, so it is whole or absent, and its manifest holds the
checksum of every file; a damaged entry is deleted and made again, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gtp_exp.config import leaves
from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError, first_line
from gtp_exp.files import SealedFolder, read_sealed, write_sealed
from gtp_exp.launch.heartbeat import beat

log = logging.getLogger(__name__)
_LOOK_UP_S = 10.0  # while waiting for another run

_PLAIN = (str, int, float, type(None))  # what JSON holds beside lists and dictionaries; bool is an int
_SPENT = "spent.json"  # seconds that interrupted runs have put into a `.part`


@dataclass(frozen=True)
class StageResult:
    """Says where a stage's finished files lie, and what they cost."""

    directory: Path
    key: str
    seconds: float  # what the work cost, also when it was found done
    cached: bool


def stage_key(stage: str, version: int, reads: Mapping[str, Any]) -> str:
    """Return the key of a stage: SHA-256 over the canonical JSON of what it reads.

    Raises UserError for what JSON cannot hold, which a user's own class may say that it reads.
    """
    try:
        text = json.dumps(
            {"stage": stage, "version": version, "reads": reads}, sort_keys=True, ensure_ascii=False
        )
    except (TypeError, ValueError) as error:
        foreign = [(path, value) for path, value in leaves(reads) if not isinstance(value, _PLAIN)]
        told = "".join(f"; {'.'.join(map(str, path))} is {value!r:.60}" for path, value in foreign[:1])
        raise UserError(
            f"the {stage} cannot be kept in the cache, for what it reads is no JSON "
            f"({first_line(error)}{told}); let a class of your own return texts, numbers, "
            "None, and lists or dictionaries of these: str(path), value.item(), sorted(a_set)"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Cache:
    """Keeps the finished directories of stages under `root`, and produces those that are missing."""

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
        """Return the finished directory of a stage; `produce(directory)` fills it when there is none.

        `produce` gets the `.part` directory with whatever an interrupted run left there. With several
        processes the main one looks, locks and writes the manifest; `produce` runs there alone, or in all of
        them (`together`). label: the stage's name in messages.
        """
        label = label or stage
        entry = self.entry(stage, version, reads)
        key = entry.path.name
        if not self.processes.main:
            return self._follow(entry, produce if together else None)
        try:
            entry.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to outputs folder '{self.root}': {error.strerror}; set outputs=DIR"
            ) from error
        with _locked(entry.path.with_name(key + ".lock"), label):
            manifest = entry.manifest()
            if manifest is not None:
                seconds = float(manifest["seconds"])
                with contextlib.suppress(OSError):  # of another user, say
                    os.utime(entry.path)  # when it was last used, for gtp-exp-cache; no file is touched
                log.info("%s: reused %s (saved %.1f s)", label, key, seconds)
                self.processes.broadcast(seconds)
                return StageResult(entry.path, key, seconds, cached=True)
            beat()
            part = entry.begin(resume=True)
            self.processes.broadcast(None)
            seconds = self._produce(part, produce, together)
            entry.finish({"stage": stage, "version": version, "seconds": seconds, "reads": reads})
            log.info("%s: done in %.1f s", label, seconds)
            self.processes.broadcast(seconds)
            return StageResult(entry.path, key, seconds, cached=False)

    def entry(self, stage: str, version: int, reads: Mapping[str, Any]) -> SealedFolder:
        """Return the folder of a stage that reads this, whether it is there or not."""
        return SealedFolder(self.root / stage / stage_key(stage, version, reads))

    def _produce(self, part: Path, produce: Callable[[Path], None], together: bool) -> float:
        """Run the main process's part of the work; return the seconds it took, earlier attempts included."""
        spent = (read_sealed(part / _SPENT) or {"seconds": 0.0})["seconds"]
        start = time.monotonic()
        try:
            produce(part)
            if together:
                self.processes.barrier()
        except BaseException:
            with contextlib.suppress(OSError):
                write_sealed(part / _SPENT, {"seconds": spent + time.monotonic() - start})
            raise
        (part / _SPENT).unlink(missing_ok=True)
        return spent + time.monotonic() - start

    def _follow(self, entry: SealedFolder, produce: Callable[[Path], None] | None) -> StageResult:
        """Do what a process does that is not the main one. produce: its part of the work, if it has any."""
        seconds = self.processes.broadcast(None)
        cached = seconds is not None
        if not cached:
            if produce is not None:
                produce(entry.part)
                self.processes.barrier()
            seconds = self.processes.broadcast(None)
        return StageResult(entry.path, entry.path.name, seconds, cached)


@contextlib.contextmanager
def _locked(path: Path, label: str) -> Iterator[None]:
    """Hold the entry's lock; say so when it has to wait for another process."""
    lock, timeout = FileLock(str(path)), 0.5
    while True:
        try:
            lock.acquire(timeout=timeout)
            break
        except Timeout:
            if timeout < _LOOK_UP_S:
                log.warning("%s: another run is computing the same entry; waiting for it", label)
            timeout = _LOOK_UP_S
            beat()
    try:
        yield
    finally:
        lock.release()
