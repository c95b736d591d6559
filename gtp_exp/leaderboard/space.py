"""Write the page as a static Hugging Face Space: a folder to push as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gtp_exp.errors import UserError
from gtp_exp.files import write_whole

CARD = """\
---
title: {title}
emoji: 📊
sdk: static
app_file: index.html
pinned: false
---

Selectors of training data, compared by what models learn from their choices, with intervals over seeds
and test rows. `index.html` is the page, `leaderboard.json` holds every number. Made with gtp-exp.
"""


def write_space(folder: Path, title: str, files: Mapping[str, str]) -> None:
    """Write README.md, the page and its numbers into a new or empty folder, or over an earlier Space.

    files: the leaderboard's files by name. Raises UserError for a folder that holds anything else.
    """
    wanted = {"README.md": CARD.format(title=json.dumps(title, ensure_ascii=False)), **files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ours = wanted if _is_space(folder) else ()
        others = sorted({path.name for path in folder.iterdir()} - {*ours, ".git", ".gitattributes"})
        if others:
            raise UserError(
                f"--space {folder} holds {', '.join(others[:3])}, which is no part of a static Space; "
                "give a new or empty folder"
            )
        for name, content in wanted.items():
            write_whole(folder / name, [content])
    except OSError as error:
        raise UserError(f"cannot write to --space {folder}: {error.strerror}") from error


def _is_space(folder: Path) -> bool:
    """Say whether the README of a folder calls it a static Space."""
    readme = folder / "README.md"
    return readme.is_file() and "\nsdk: static\n" in readme.read_text(encoding="utf-8", errors="replace")
