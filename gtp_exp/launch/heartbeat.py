"""Signs of life: the worker counts its progress into a file, and its parent watches the count.

Every step of a progress bar counts, in libraries too, and so do a stage that begins and a file that is
checked. The parent goes by its own monotonic clock and by the count alone, so no clock that jumps can make a
job look dead.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

NAME = "heartbeat"
_EVERY_S = 1.0  # a file on a network must not be written at every step


@dataclass
class _Heart:
    path: Optional[Path] = None
    count: int = 0
    written: float = 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if self.path is None or (self.count and now - self.written < _EVERY_S):
            return
        self.count, self.written = self.count + 1, now
        with contextlib.suppress(OSError):  # a full disk shows where results are written
            self.path.write_text(str(self.count))


_heart = _Heart()
beat = _heart.beat


def start(directory: Path) -> None:
    """From here on this process's progress shows in `directory`."""
    from tqdm.std import tqdm

    _heart.path = directory / NAME
    update = tqdm.update

    def update_and_beat(bar: Any, n: float | None = 1) -> Any:
        beat()
        return update(bar, n)

    # Of every bar of every library: theirs are subclasses.
    tqdm.update = update_and_beat  # type: ignore[method-assign]
    beat()


@dataclass
class Watch:
    """A parent's view of one job; a limit that is None is none."""

    directory: Path
    time_limit_s: float | None
    stall_limit_s: float | None
    began: float = field(default_factory=time.monotonic)
    seen: str = ""
    changed: float = field(default_factory=time.monotonic)

    def exceeded(self) -> str | None:
        """Why the job must be stopped now, or None."""
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
