"""Explain errors of a disk that is full, read-only or failing, whichever library raised them, and what to
do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ACCESS = {errno.EROFS, errno.EACCES, errno.EPERM}
_FAILING = {errno.EIO, errno.ESTALE}
# safetensors puts the system's error number into its text; torch.save says only that a write was cut short.
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"PytorchStreamWriter failed writing|unexpected pos \d+ vs")
_LEAST_FREE = 1 << 20  # bytes: a disk with less counts as full


def storage_fault(error: BaseException, outputs: Path) -> str:
    """Return a message for an error that a disk caused, with the folder and the remedy.

    outputs: the folder to name where the error itself names none. Returns "" for any other error.
    """
    for cause in _chain(error):
        number = _number(cause)
        if number in _FULL:
            return _full(outputs, os.strerror(number))
        if cause is not error:
            continue
        where = getattr(error, "filename", None) or outputs
        if number in _NO_ACCESS:
            return f"no access to {where} ({os.strerror(number)}); change its permissions, or set outputs=DIR"
        if number in _FAILING:
            return (
                f"the disk or network folder of {where} fails ({os.strerror(number)}); when it is back, run "
                "the same command again: it goes on from what is finished"
            )
    return ""


def check_room(folder: Path, needed: int) -> None:
    """Raise OSError unless `needed` bytes can be written into the folder. The probe file is removed."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        for _ in range(0, needed, 4096):
            probe.write(bytes(4096))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and, one after the other, those that caused it."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """Return the operating system's error number that an exception carries or quotes, or None."""
    if isinstance(error, OSError):
        return error.errno
    if match := _ERROR_NUMBER.search(str(error)):
        return int(match.group(1))
    return errno.ENOSPC if _SHORT_WRITE.search(str(error)) else None


def _full(outputs: Path, reason: str) -> str:
    """Return the message for a full disk: that of the temporary folder or that of the outputs."""
    temporary = Path(tempfile.gettempdir())
    if _free(temporary) < _LEAST_FREE <= _free(outputs):
        where, remedy = f"temporary folder '{temporary}'", "set TMPDIR=DIR"
    else:
        where, remedy = f"outputs folder '{outputs}'", "set outputs=DIR"
    return (
        f"cannot write more to the {where} ({reason}); free space there, or {remedy}, and run the same "
        "command again: it goes on from what is finished"
    )


def _free(folder: Path) -> int:
    """Return the free bytes of the disk that holds the folder, which need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
