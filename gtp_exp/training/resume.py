"""Find the checkpoint from which an interrupted fine-tune goes on, and remove those of no more use."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from gtp_exp.files import MANIFEST, checked_manifest, seal_folder

log = logging.getLogger(__name__)

SCRATCH = "trainer"  # folder of the checkpoints from which an interrupted fine-tune goes on


def forget_epochs(directory: Path) -> None:
    """Remove what an interrupted fine-tune would go on from: once its result is saved, not before."""
    shutil.rmtree(directory / SCRATCH, ignore_errors=True)


def seal_newest(scratch: Path, step: int) -> None:
    """Mark the checkpoint of this step as whole, by a manifest of its checksums, and remove all others."""
    newest = scratch / f"checkpoint-{step}"
    seal_folder(newest)
    for other in scratch.glob("checkpoint-*"):
        if other != newest:
            shutil.rmtree(other)


def drop_unfinished(scratch: Path) -> None:
    """Remove the checkpoints whose manifest was not written: the run was stopped while it wrote them."""
    for checkpoint in scratch.glob("checkpoint-*"):
        if not (checkpoint / MANIFEST).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def resumable(scratch: Path) -> str | None:
    """Return the newest whole checkpoint of an interrupted run, if any; warn of damaged ones."""
    checkpoints = scratch.glob("checkpoint-*")
    for checkpoint in sorted(checkpoints, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if not (checkpoint / MANIFEST).is_file():
            continue  # the run was stopped while this one was being written
        _, damage = checked_manifest(checkpoint)
        if not damage:
            return str(checkpoint)
        log.warning("%s: damaged checkpoint (%s); going on from an earlier one, if any", checkpoint, damage)
    return None
