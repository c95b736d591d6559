"""The checkpoints from which an interrupted fine-tune goes on: which are whole, which are to be removed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from gtp_exp.files import first_damage, read_sealed

log = logging.getLogger(__name__)

SCRATCH = "trainer"  # folder of the checkpoints from which an interrupted fine-tune goes on

RECEIPT = "receipt.json"  # a checkpoint's checksums; written last


def forget_epochs(directory: Path) -> None:
    """Removes what an interrupted fine-tune would go on from: once its result is saved, not before."""
    shutil.rmtree(directory / SCRATCH, ignore_errors=True)


def drop_unfinished(scratch: Path) -> None:
    for checkpoint in scratch.glob("checkpoint-*"):
        if not (checkpoint / RECEIPT).is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def resumable(scratch: Path) -> str | None:
    """The newest whole checkpoint of an interrupted run."""
    found = sorted(scratch.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for checkpoint in found:
        receipt = checkpoint / RECEIPT
        if not receipt.is_file():
            continue  # the run was stopped while this one was being written
        recorded = read_sealed(receipt)
        damage = f"{RECEIPT} is damaged" if recorded is None else first_damage(checkpoint, recorded)
        if not damage:
            return str(checkpoint)
        log.warning("%s: damaged checkpoint (%s); going on from an earlier one, if any", checkpoint, damage)
    return None
