"""Read a local folder through `datasets`, and get the rows that are in it now.

`datasets` keeps what it has once read under the folder's last name and its card, whatever the path and the
files are: of two folders `mydata` with the same card the second is answered with the rows of the first, and
an edited file with its old rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gtp_exp.files import folder_digest

_NOT_DATA = {".git", ".cache"}  # what git and `hf download` keep of their own at the top of a folder


def content_digest(folder: Path) -> str:
    """Return the SHA-256 (hex) of a data set folder's files, their names included."""
    return folder_digest(folder, lambda path: str(path) not in _NOT_DATA)


@contextlib.contextmanager
def cache_of_content(content: str) -> Iterator[None]:
    """Let every `load_dataset` within the block keep its copies under this content, apart from all others.

    content: the `content_digest` of the folder that is read. The library's own setting is changed, because
    lm-eval calls the library itself.
    """
    from datasets import config

    usual = config.HF_DATASETS_CACHE
    config.HF_DATASETS_CACHE = Path(usual) / "local" / content[:32]
    try:
        yield
    finally:
        config.HF_DATASETS_CACHE = usual
