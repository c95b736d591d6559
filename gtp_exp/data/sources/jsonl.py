"""Load a pool from local files, each of which may have its own form."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Optional

from gtp_exp.data.examples import Pool
from gtp_exp.data.reading import expand, records_of_files, shown
from gtp_exp.data.rows import ColumnNames, Format, Ids, Record, check_rows, read_pool, subset
from gtp_exp.data.sources.base import DataSource
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
    seed: int = 0  # of that subset
    ids: Ids = Ids.COLUMN

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("dataset.files is empty; give files, such as dataset.files=[pool.jsonl]")
        check_rows(self.rows, "dataset.rows")

    def check_files(self) -> None:
        """Read the first row of each file. Raises UserError where one is not there, or has no known form."""
        for records in self._records(expand(self.files)):
            next(records)

    def load(self) -> Pool:
        """Read all files, or a uniform subset of their usable rows. Raises UserError where they cannot be
        read."""
        paths = expand(self.files)
        records = chain.from_iterable(self._records(paths))
        pool = read_pool(records, seen={}, strict=self.strict)
        return subset(pool, self.rows, random.Random(self.seed), ", ".join(map(shown, paths)))

    def _records(self, paths: Sequence[Path]) -> Iterator[Iterator[Record]]:
        return records_of_files(paths, format=self.format, columns=self.columns, ids=self.ids)
