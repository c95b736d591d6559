"""Remove entries of the cache that no run uses, and none that a job holds."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from filelock import FileLock, Timeout

from gtp_exp.housekeeping.entries import PRUNED, Entry, Form
from gtp_exp.housekeeping.uses import Uses

JUST_NOW_S = 60.0  # a job that has found an entry tells so in its event log, but a moment later


@dataclass(frozen=True)
class Wanted:
    """Says which entries may go: of those that are whole, none that a run uses."""

    stages: Sequence[str] = ()  # empty: all
    older_than_s: float = 0.0  # not used for so long
    unfinished: bool = False  # what interrupted jobs would go on from, too


@dataclass
class Removal:
    """Counts what was removed, and what a job holds."""

    removed: list[Entry] = field(default_factory=list)
    held: list[Entry] = field(default_factory=list)


def unused(entries: Sequence[Entry], uses: Uses, wanted: Wanted, now: float) -> list[Entry]:
    """Return the entries that may be removed. now: seconds since 1970."""
    return [
        entry
        for entry in entries
        if (not wanted.stages or entry.stage in wanted.stages)
        and now - entry.last_used >= wanted.older_than_s
        and (entry.form is not Form.UNFINISHED or wanted.unfinished)
        and (entry.form is not Form.WHOLE or not uses.of(entry))
    ]


def remove(entries: Sequence[Entry]) -> Removal:
    """Remove entries, each under its lock; what a job holds, or has found within the last minute, stays.

    An entry is renamed before its files go, so that none is ever found half removed. The locks stay: a job
    may wait for one.
    """
    done = Removal()
    for entry in entries:
        lock = FileLock(str(entry.lock))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            done.held.append(entry)
            continue
        try:
            if not entry.path.is_dir():
                continue  # somebody else has removed it
            if _just_used(entry):
                done.held.append(entry)
                continue
            going = entry.path
            if entry.form is not Form.HALF_REMOVED:
                going = entry.path.with_name(entry.key + PRUNED)
                shutil.rmtree(going, ignore_errors=True)
                os.replace(entry.path, going)
            shutil.rmtree(going)
            done.removed.append(entry)
        finally:
            lock.release()
    return done


def _just_used(entry: Entry) -> bool:
    """Say whether a job may have found an entry, or gone on with one, since the uses were looked up."""
    used = entry.path.stat().st_mtime
    return entry.form is Form.WHOLE and (used > entry.last_used or time.time() - used < JUST_NOW_S)
