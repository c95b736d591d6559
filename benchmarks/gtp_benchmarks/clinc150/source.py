"""Read CLINC150 from the hub, or from a copy of the data_full.json that its authors publish."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import Any, NamedTuple

from gtp_benchmarks.clinc150.intents import DOMAIN_OF, INTENTS, OUT_OF_SCOPE
from gtp_exp.data.reading import shown
from gtp_exp.data.tables import without_folders
from gtp_exp.errors import UserError, first_line
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)

HUB_ID = "clinc/clinc_oos"
FILE = "https://raw.githubusercontent.com/clinc/oos-eval/master/data/data_full.json"


class Split(Enum):
    """Names a split as the hub does; the published file says `val` for validation."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Version(Enum):
    """Names the hub's configurations, which differ in the training split."""

    PLUS = "plus"  # 100 rows of every intent, those of data_full.json
    SMALL = "small"  # 50
    IMBALANCED = "imbalanced"  # 25, 50, 75 or 100


class Request(NamedTuple):
    """Holds what a person has said, and which of the 150 intents it has."""

    text: str
    intent: str

    @property
    def domain(self) -> str:
        """Return which of the ten domains the intent belongs to."""
        return DOMAIN_OF[self.intent]


def check_domains(domains: Sequence[str], key: str) -> None:
    """Raise UserError unless these are different domains, at least one. key: their name in the
    configuration."""
    unknown = [name for name in domains if name not in INTENTS]
    if not domains or unknown or len(set(domains)) < len(domains):
        raise UserError(f"{key}={list(domains)} must name different domains out of {', '.join(INTENTS)}")


def read_split(split: Split, version: Version, path: str | None, key: str) -> list[Request]:
    """Return the requests of a split that have one of the 150 intents, sorted by intent and text, each
    once.

    path: of a local copy; None reads the hub. key: the path's name in the configuration. Raises UserError
    where the data cannot be read.
    """
    if path is None:
        rows, where = _from_hub(split, version, key), f"{HUB_ID}[{split.value}]"
    else:
        rows, where = _from_file(path, split, key), f"{key}={path}"
    known = [(text, intent) for text, intent in rows if intent != OUT_OF_SCOPE]
    if strange := sorted({intent for _, intent in known} - set(DOMAIN_OF)):
        raise UserError(f"{where} holds the intent '{strange[0]}', which is none of CLINC150's; get it again")
    return sorted({Request(text, intent) for text, intent in known}, key=lambda row: (row.intent, row.text))


def _from_file(path: str, split: Split, key: str) -> list[tuple[str, str]]:
    file = at_home(path)
    if not file.is_file():
        log.info("looked for %s", file.absolute())
        raise UserError(
            f"{key}={path} is not a file; it must be a copy of {FILE}, relative to the working directory"
        )
    name = {Split.VALIDATION: "val"}.get(split, split.value)
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))[name]
        pairs = [(text, intent) for text, intent in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{key}={shown(file)} cannot be read: {type(error).__name__}: "
            f"{without_folders(first_line(error))}. It must hold a list '{name}' of "
            f"[text, intent], as {FILE} does"
        ) from error
    for i, pair in enumerate(pairs, 1):
        if not all(isinstance(part, str) and part.strip() for part in pair):
            raise UserError(f"{key}={shown(file)}: row {i} of '{name}' must be two texts, found {pair!r}")
    return pairs


@cache
def _from_hub(split: Split, version: Version, key: str) -> list[tuple[str, str]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data: Any = load_dataset(HUB_ID, name=version.value, split=split.value)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise UserError(
            f"{HUB_ID} cannot be read from the hub: {without_folders(first_line(error))}. Without network, "
            f"download {FILE} elsewhere and set {key}=data_full.json"
        ) from error
    names = data.features["intent"].names
    return [(row["text"], names[row["intent"]]) for row in data]
