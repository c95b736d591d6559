"""Keep a run's folder to one job at a time: of two that run at once each would replace the other's files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gtp_exp.errors import UserError
from gtp_exp.launch.faults import storage_fault

LOCK = "job.lock"  # in the run's folder, while a job runs there
PATIENCE_S = 5.0  # the lock of a job that was killed just now may still be there


@contextlib.contextmanager
def claimed(directory: Path, key: str) -> Iterator[None]:
    """Hold a run's folder, which is there, as long as a job runs in it. key: of the option that names another
    folder.

    Raises UserError where another job that runs holds it, and for a folder that may not be written.
    """
    lock = FileLock(str(directory / LOCK))
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        raise UserError(
            f"'{directory}' is the folder of a job that is running, whose files this one would replace; wait "
            f"for its end, or give {key}=DIR, a folder of its own"
        ) from None
    except OSError as error:
        raise UserError(storage_fault(error, directory) or str(error)) from error
    try:
        yield
    finally:
        (directory / LOCK).unlink(missing_ok=True)
        lock.release()
