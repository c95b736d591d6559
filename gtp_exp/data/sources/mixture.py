"""Load several labelled sources as one pool."""

from __future__ import annotations

import logging
import random
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Optional

from gtp_exp.data.examples import Pool
from gtp_exp.data.forms import ColumnNames, Format, Ids, ReadAs, Record
from gtp_exp.data.reading import LINES, expand, parse_lines, read_rows, records_of, shown
from gtp_exp.data.rows import check_rows, join_pools, read_pool, subset
from gtp_exp.data.scores import with_scores
from gtp_exp.data.sources.base import DataSource
from gtp_exp.data.sources.hub import check_hub_id, check_path, check_size
from gtp_exp.data.tables import without_folders
from gtp_exp.data.values import Place
from gtp_exp.errors import UserError, first_line
from gtp_exp.paths import at_home

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MixturePart:
    """Describes one labelled source of a mixture."""

    label: str  # becomes the hidden fact `source` of its rows
    files: list[str]  # below the mixture's path, in its archive, or in its hub repository
    rows: Optional[int] = None  # a uniform random subset of this size; None for all
    expected_rows: Optional[int] = None


@dataclass(frozen=True)
class Mixture(DataSource):
    """Describes a pool of several sources.

    The files are looked for in `path` if it is given, else on the hub if `hub_id` is given, else in the
    working directory.
    """

    sources: list[MixturePart]
    hub_id: Optional[str] = "princeton-nlp/less_data"
    revision: Optional[str] = None
    archive: Optional[str] = "less-data.zip"
    path: Optional[str] = None
    format: Format = Format.MESSAGES
    columns: ColumnNames = field(default_factory=ColumnNames)
    rows: Optional[int] = None
    seed: int = 0  # of the subsets
    ids: Ids = Ids.COLUMN

    def __post_init__(self) -> None:
        labels = [s.label for s in self.sources]
        if not labels or len(set(labels)) < len(labels):
            raise UserError(f"dataset.sources must have one label each, found {labels}")
        for source in self.sources:
            check_rows(source.rows, f"dataset.sources[{source.label}].rows")
            if not source.files:
                raise UserError(f"dataset.sources[{source.label}].files is empty; name its files")
        if self.hub_id is not None and self.path is None:
            check_hub_id(self.hub_id)
        check_rows(self.rows, "dataset.rows")

    def check_files(self) -> Pool | None:
        """Look for a local copy; its sources are read when the pool is."""
        if self.path is not None:
            check_path(self.path)
        return None

    def load(self) -> Pool:
        """Read every source and join them. Raises UserError where one cannot be read."""
        home = _home(self)
        seen: dict[str, Place] = {}
        pools = []
        for source in self.sources:
            before = len(seen)
            records = chain.from_iterable(
                _records(home, file, self, source, position) for position, file in enumerate(source.files, 1)
            )
            pool = with_scores(read_pool(records, seen=seen, strict=self.strict), self.scores, seen)
            check_size(len(seen) - before, source.expected_rows, f"source '{source.label}'")
            # Every source has its own generator, so that adding one leaves the others' subsets alone.
            rng = random.Random(f"{self.seed} {source.label}")
            pools.append(subset(pool, source.rows, rng, f"source '{source.label}'"))
        return subset(join_pools(pools), self.rows, random.Random(self.seed), "the mixture")


def _home(mixture: Mixture) -> Path | None:
    """Return the folder or zip file that holds the sources; None where each file is fetched from the hub."""
    if mixture.path is not None:
        check_path(mixture.path)
        return at_home(mixture.path)
    if mixture.hub_id is None:
        return Path()
    return _fetch(mixture, mixture.archive) if mixture.archive is not None else None


def _fetch(mixture: Mixture, file: str) -> Path:
    """Download one file into the hub's cache and return its path. Raises UserError with the offline
    remedy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    assert mixture.hub_id is not None
    try:
        return Path(
            hf_hub_download(mixture.hub_id, file, repo_type="dataset", revision=mixture.revision)
        )  # kept in the hub's cache
    except (OSError, ValueError, EntryNotFoundError) as error:
        revision = mixture.revision or "main"
        raise UserError(
            f"{file} of {mixture.hub_id} cannot be read from the hub: {without_folders(first_line(error))} "
            "Without network, download it elsewhere (hf download --repo-type dataset "
            f"--revision {revision} {mixture.hub_id} {file} --local-dir DIR) and set "
            f"dataset.path={f'DIR/{file}' if file == mixture.archive else 'DIR'}"
        ) from error


def _records(
    home: Path | None, file: str, mixture: Mixture, source: MixturePart, position: int
) -> Iterator[Record]:
    """Yield the rows of one file of a source."""
    stem = source.label if len(source.files) == 1 else f"{source.label}-{position}"
    asked = ReadAs(mixture.format, mixture.columns, mixture.ids)
    if home is not None and home.is_file():
        given = mixture.path or f"{mixture.hub_id}/{mixture.archive}"
        name = f"{home.name}/{file}"
        yield from records_of(_zipped(home, given, file, name), name, asked, stem=stem, source=source.label)
        return
    if home is None:  # the hub's cache is no place that the user named
        name = f"{mixture.hub_id}/{file}"
        rows = read_rows(_fetch(mixture, file), name)
        yield from records_of(rows, name, asked, stem=stem, source=source.label)
        return
    paths = expand([str(Path(mixture.path or "") / file)])
    for number, path in enumerate(paths, 1):
        own = stem if len(paths) == 1 else f"{stem}-{number}"
        yield from records_of(read_rows(path), shown(path), asked, stem=own, source=source.label)


def _zipped(archive: Path, given: str, member: str, name: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the rows of one member of a zip file. given and name: of the archive and of it, for messages."""
    if not member.endswith(LINES):
        raise UserError(f"{name} is none of {', '.join(LINES)}; unpack the archive and set dataset.path")
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(member) as lines:
            yield from parse_lines(lines, name)
    except KeyError as error:
        raise UserError(f"{given} holds no file {member}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:  # the last: encrypted, say
        raise UserError(
            f"{given} cannot be read as a zip file: {without_folders(first_line(error))}"
        ) from error
