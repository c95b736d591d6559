"""A file system of a test's own, in a namespace that goes away with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest


class SmallDisk:
    """`path` is what a command that was started by `inside` calls it, `seen` what the test calls it."""

    def __init__(self, path: Path, mount: str) -> None:
        path.mkdir(exist_ok=True)
        script = f"{mount} && echo ready && exec sleep 600"
        try:
            self.holder = subprocess.Popen(
                ["unshare", "-rm", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError:
            pytest.skip("there is no unshare here")
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            self.holder.wait()
            pytest.skip("nothing may be mounted here")
        self.path, self.seen = path, Path(f"/proc/{self.holder.pid}/root{path}")

    def inside(self, command: Sequence[str], folder: Path) -> list[str]:
        enter = ["nsenter", "-t", str(self.holder.pid), "-U", "-m", "--preserve-credentials"]
        return [*enter, "env", "-C", str(folder), *command]

    def fill(self, leave: int) -> None:
        """Leaves so many bytes free."""
        self.empty()
        with (self.seen / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.seen).free - leave)

    def empty(self) -> None:
        (self.seen / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


@contextlib.contextmanager
def small_disk(path: Path, kib: int) -> Iterator[SmallDisk]:
    disk = SmallDisk(path, f"mount -t tmpfs -o size={kib}k tmpfs {path}")
    try:
        yield disk
    finally:
        disk.close()


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(path, f"mount --bind {path} {path} && mount -o remount,bind,ro {path}")
    try:
        yield disk
    finally:
        disk.close()
