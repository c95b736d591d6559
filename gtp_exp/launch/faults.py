"""A folder that takes or gives no more: how the libraries that use files tell of it, and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_FAILING = {errno.EIO, errno.ESTALE}
# safetensors tells the system's error number in its text, torch.save that a write fell short.
_TOLD = re.compile(r"\(os error (\d+)\)")
_SHORT = re.compile(r"PytorchStreamWriter failed writing|unexpected pos \d+ vs")
_ROOM = 1 << 20  # bytes: a disk with less counts as full


def storage_fault(error: BaseException, outputs: Path) -> str:
    """What to tell when a file could not be written or read, naming folder and remedy; empty for any other
    error."""
    for link in _chain(error):
        number = _number(link)
        if number in _FULL:
            return _full(outputs, os.strerror(number))
        if link is not error:
            continue
        where = getattr(error, "filename", None) or outputs
        if number in _CLOSED:
            return f"no access to {where} ({os.strerror(number)}); change its permissions, or set outputs=DIR"
        if number in _FAILING:
            return (
                f"the disk or network folder of {where} fails ({os.strerror(number)}); when it is back, run "
                "the same command again: it goes on from what is finished"
            )
    return ""


def check_room(folder: Path, needed: int) -> None:
    """Raises OSError unless a file of so many bytes can be written into the folder; leaves none."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        for _ in range(0, needed, 4096):
            probe.write(bytes(4096))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those behind it."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    if told := _TOLD.search(str(error)):
        return int(told.group(1))
    return errno.ENOSPC if _SHORT.search(str(error)) else None


def _full(outputs: Path, reason: str) -> str:
    temporary = Path(tempfile.gettempdir())
    if _free(temporary) < _ROOM <= _free(outputs):
        where, remedy = f"temporary folder '{temporary}'", "set TMPDIR=DIR"
    else:
        where, remedy = f"outputs folder '{outputs}'", "set outputs=DIR"
    return (
        f"cannot write more to the {where} ({reason}); free space there, or {remedy}, and run the same "
        "command again: it goes on from what is finished"
    )


def _free(folder: Path) -> int:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
