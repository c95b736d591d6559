"""Load a pool from local files, each of which may have its own form."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Optional

from gtp_exp.data.examples import Pool
from gtp_exp.data.forms import ColumnNames, Format, Ids, ReadAs, Record
from gtp_exp.data.reading import FirstSecond, expand, records_of_files, shown
from gtp_exp.data.rows import check_rows, read_pool, subset
from gtp_exp.data.scores import with_scores
from gtp_exp.data.sources.base import DataSource
from gtp_exp.data.values import Place
from gtp_exp.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jsonl(DataSource):
    """Describes a pool from local files; each file may have its own form."""

    files: list[str] = field(
        default_factory=list
    )  # paths or glob patterns, relative to the working directory
    format: Format = Format.AUTO
    columns: ColumnNames = field(default_factory=ColumnNames)
    rows: Optional[int] = None
    seed: int = 0  # of the random subset that `rows` asks for
    ids: Ids = Ids.COLUMN

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("dataset.files is empty; give files, such as dataset.files=[pool.jsonl]")
        check_rows(self.rows, "dataset.rows")

    def check_files(self) -> Pool | None:
        """Read the first row of each file, and then all of them for a second.

        Raises UserError for what shows in that. Returns the pool if that was all.
        """
        paths = expand(self.files)
        for records in self._records(paths):
            next(records)
        records = FirstSecond(chain.from_iterable(self._records(paths)))
        pool = self._read(records, tell=False)
        return None if records.stopped else subset(pool, self.rows, random.Random(self.seed), _named(paths))

    def load(self) -> Pool:
        """Read all files, or a uniform subset of their usable rows. Raises UserError where they cannot be
        read."""
        paths = expand(self.files)
        pool = self._read(chain.from_iterable(self._records(paths)), tell=True)
        return subset(pool, self.rows, random.Random(self.seed), _named(paths))

    def _read(self, records: Iterable[Record], *, tell: bool) -> Pool:
        seen: dict[str, Place] = {}
        pool = read_pool(records, seen=seen, strict=self.strict, tell=tell)
        return with_scores(pool, self.scores, seen)

    def _records(self, paths: Sequence[Path]) -> Iterator[Iterator[Record]]:
        return records_of_files(paths, ReadAs(self.format, self.columns, self.ids))


def _named(paths: Sequence[Path]) -> str:
    """Return the files as messages name them."""
    return ", ".join(map(shown, paths))
