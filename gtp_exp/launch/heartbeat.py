"""Show that a job is alive: the worker counts its progress into a file, and its parent watches the count.

Every step of a progress bar counts, those of other libraries included, and so do the begin of a stage and the
check of a file. The parent uses its own monotonic clock and the count alone, so that a clock that jumps
cannot make a job look dead.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

NAME = "heartbeat"
_EVERY_S = 1.0  # seconds; writing at every step would be slow on a network file system


@dataclass
class ProgressCounter:
    """Counts signs of progress into a file; without a path it does nothing."""

    path: Optional[Path] = None
    count: int = 0
    written: float = 0.0

    def beat(self) -> None:
        """Count one sign of progress, and write the count unless it was written within the last second."""
        now = time.monotonic()
        if self.path is None or (self.count and now - self.written < _EVERY_S):
            return
        self.count, self.written = self.count + 1, now
        with contextlib.suppress(OSError):  # a full disk is reported by the code that writes results
            self.path.write_text(str(self.count))


_counter = ProgressCounter()
beat = _counter.beat


def start(directory: Path) -> None:
    """Count this process's progress into a file in `directory` from now on, steps of every tqdm bar
    included."""
    from tqdm.std import tqdm

    _counter.path = directory / NAME
    update = tqdm.update

    def update_and_beat(bar: Any, n: float | None = 1) -> Any:
        beat()
        return update(bar, n)

    # The progress bars of other libraries are subclasses, so this changes them, too.
    tqdm.update = update_and_beat  # type: ignore[method-assign]
    beat()


@dataclass
class JobWatch:
    """Watches one job from its parent process. A limit of None never stops the job."""

    directory: Path
    time_limit_s: float | None
    stall_limit_s: float | None
    began: float = field(default_factory=time.monotonic)
    seen: str = ""
    changed: float = field(default_factory=time.monotonic)

    def exceeded(self) -> str | None:
        """Return the reason why the job must be stopped now, or None."""
        now = time.monotonic()
        if self.time_limit_s is not None and now - self.began > self.time_limit_s:
            return f"stopped after {self.time_limit_s / 60:g} minutes (launch.time_limit_minutes)"
        if self.stall_limit_s is None:
            return None
        with contextlib.suppress(OSError):
            if (count := (self.directory / NAME).read_text()) != self.seen:
                self.seen, self.changed = count, now
        if now - self.changed > self.stall_limit_s:
            minutes = self.stall_limit_s / 60
            return f"stopped after {minutes:g} minutes without progress (launch.stall_limit_minutes)"
        return None
