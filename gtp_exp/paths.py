"""Read paths as people write them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from gtp_exp.errors import UserError


def at_home(path: str | PathLike[str]) -> Path:
    """Return a path with the folder that `~` or `~NAME` at its beginning stands for.

    Raises UserError for the name of no user of this machine, as in `~data/x` where `~/data/x` is meant.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path} begins with the home of a user that is not there; is ~/ meant?") from None
