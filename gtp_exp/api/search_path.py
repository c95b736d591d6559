"""Have Hydra look for options in a folder of the user's, too."""

from __future__ import annotations

from pathlib import Path


def searched_as_well(folder: Path) -> str:
    """Return the override that adds a folder, whatever characters its name has."""
    quoted = f"file://{folder.resolve()}".replace("'", "\\'")
    return f"hydra.searchpath=['{quoted}']"
