"""Load data sets of the Hugging Face hub, or local copies of them. No code of a data set is ever run."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from gtp_exp.data.examples import Pool
from gtp_exp.data.forms import ColumnNames, Format, Ids, ReadAs, Record, detect_layout
from gtp_exp.data.local_folder import cache_of_content, content_digest
from gtp_exp.data.reading import FirstSecond, read_rows, records_of, shown, stem
from gtp_exp.data.rows import check_rows, read_pool, subset
from gtp_exp.data.scores import with_scores
from gtp_exp.data.sources.base import DataSource
from gtp_exp.data.tables import without_folders
from gtp_exp.data.values import Place
from gtp_exp.errors import NotHere, UserError, first_line
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)

_BLOCK = 1024  # rows turned into Python objects at a time


@dataclass(frozen=True)
class Hub(DataSource):
    """Describes a pool from one split of a hub data set."""

    hub_id: str = ""  # owner/name
    config: Optional[str] = None
    split: str = "train"
    revision: Optional[str] = None
    path: Optional[str] = None
    expected_rows: Optional[int] = None
    format: Format = Format.AUTO
    columns: ColumnNames = field(default_factory=ColumnNames)
    rows: Optional[int] = None
    seed: int = 0  # of the random subset that `rows` asks for
    ids: Ids = Ids.COLUMN

    def __post_init__(self) -> None:
        if self.path is None:
            check_hub_id(self.hub_id)
        check_rows(self.rows, "dataset.rows")

    def check_files(self) -> Pool | None:
        """Look for a local copy, and read it for a second where it is one file."""
        if self.path is None:
            return None
        check_path(self.path)
        file = at_home(self.path)
        if not file.is_file():
            return None
        records = FirstSecond(self._records_of(file))
        seen: dict[str, Place] = {}
        pool = with_scores(read_pool(records, seen=seen, strict=self.strict, tell=False), self.scores, seen)
        return None if records.stopped else subset(pool, self.rows, random.Random(self.seed), shown(file))

    def load(self) -> Pool:
        """Read the split, or a uniform subset of its usable rows. Raises UserError where it cannot be
        read."""
        rng = random.Random(self.seed)
        seen: dict[str, Place] = {}
        file = None if self.path is None else at_home(self.path)
        if file is not None and file.is_file():
            records = self._records_of(file)
            pool = with_scores(read_pool(records, seen=seen, strict=self.strict), self.scores, seen)
            check_size(len(seen), self.expected_rows, shown(file))
            return subset(pool, self.rows, rng, shown(file))

        data = _dataset(self)
        where = f"{self.path or self.hub_id}[{self.split}]"
        check_size(len(data), self.expected_rows, where)
        # A random order that stops when enough rows are usable is a uniform subset of the usable rows, and
        # spares reading millions of rows for a few thousand.
        order = range(len(data)) if self.rows is None else rng.sample(range(len(data)), len(data))
        name = Path(self.path or self.hub_id).name
        form = detect_layout(data.column_names, where, self._asked(), stem=name)
        records = ((place, row, form) for place, row in _rows(data, order, where))
        pool = read_pool(records, seen=seen, limit=self.rows, strict=self.strict)
        pool = with_scores(pool, self.scores, seen)
        in_order = tuple(sorted(pool.examples, key=lambda e: seen[e.id].number))
        return subset(Pool(in_order, pool.hidden, pool.skipped), self.rows, rng, where)

    def _records_of(self, file: Path) -> Iterator[Record]:
        return records_of(read_rows(file), shown(file), self._asked(), stem=stem(file))

    def _asked(self) -> ReadAs:
        return ReadAs(self.format, self.columns, self.ids)


def check_path(path: str) -> None:
    """Raise UserError where dataset.path leads nowhere."""
    given = at_home(path)
    if not given.exists():
        log.info("looked for %s", given.absolute())
        raise NotHere(f"dataset.path={path} does not exist; a path is relative to the working directory")


def check_hub_id(hub_id: str) -> None:
    """Raise UserError unless the id is owner/name and no local folder has that path.

    Offline, `datasets` would take any cached folder of a bare name for it.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise UserError(f"dataset.hub_id='{hub_id}' must be owner/name, or set dataset.path to a local copy")
    if Path(hub_id).exists():
        raise UserError(
            f"the folder {hub_id} of the working directory would be read in place of the hub's '{hub_id}'; "
            f"set dataset.path={hub_id} if it is meant, else start elsewhere"
        )


def check_size(n_rows: int, expected: int | None, where: str) -> None:
    """Raise UserError where a data set has another number of rows than expected; None expects nothing."""
    if expected is not None and n_rows != expected:
        raise UserError(
            f"{where} holds {n_rows} rows, not the expected {expected}: another data set, or a partial copy. "
            "Check it, or set expected_rows=null to take it as it is"
        )


def _dataset(source: Hub) -> Any:
    """Return the split as a `datasets.Dataset`. Raises UserError where it cannot be read."""
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    try:
        if source.path is None:
            return load_dataset(
                source.hub_id, name=source.config, split=source.split, revision=source.revision
            )
        check_path(source.path)
        folder = at_home(source.path)
        if (folder / "dataset_dict.json").exists():
            return load_from_disk(str(folder))[source.split]
        if (folder / "state.json").exists():
            return load_from_disk(str(folder))
        with cache_of_content(content_digest(folder)):
            return load_dataset(str(folder), name=source.config, split=source.split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = without_folders(first_line(error))
        if source.path is not None:
            raise UserError(f"dataset.path={source.path} cannot be read: {reason}") from error
        raise UserError(
            f"{source.hub_id} cannot be read from the hub: {reason}. Without network, download it "
            f"elsewhere (hf download --repo-type dataset {source.hub_id} --local-dir DIR) and set "
            "dataset.path=DIR; for a gated data set set HF_TOKEN"
        ) from error


def _rows(data: Any, order: Sequence[int], where: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield the rows in the given order with their place, a block at a time."""
    table = data.with_format("arrow")
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        rows = table[block.start : block.stop] if isinstance(block, range) else table[block]
        for index, row in zip(block, rows.to_pylist(), strict=True):
            yield Place(where, index + 1, "row"), row
