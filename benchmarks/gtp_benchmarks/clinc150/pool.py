"""The pool: requests of the training split, each with its intent in words as the answer.

On demand some rows come again in other words, and sentences of one domain come with other tasks. What was
planted is in `Pool.hidden`, which only reports read; neither ids nor the order of rows give it away.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

from gtp_benchmarks.clinc150.decoys import draw_decoys
from gtp_benchmarks.clinc150.intents import INTENTS
from gtp_benchmarks.clinc150.phrasing import TEMPLATES, asked, asked_again, in_words
from gtp_benchmarks.clinc150.source import Request, Split, Version, check_domains, read_split
from gtp_exp.data.examples import Example, Message, Pool
from gtp_exp.data.rows import check_rows
from gtp_exp.data.sources.base import DataSource
from gtp_exp.errors import UserError


class _Row(NamedTuple):
    text: str
    what: str  # is asked about the text, and how: no two rows have the same
    question: str
    answer: str
    hidden: dict[str, Any]

    @property
    def id(self) -> str:
        digest = hashlib.sha256(f"{self.text}\n{self.what}".encode()).hexdigest()
        return f"clinc150-{digest[:16]}"


@dataclass(frozen=True)
class Clinc150Pool(DataSource):
    """Describes the pool. Its rows stand in the order of their ids, which are hashes of their texts."""

    path: Optional[str] = None  # of a copy of data_full.json; None reads the hub
    version: Version = Version.PLUS  # of the hub
    domains: list[str] = field(default_factory=lambda: list(INTENTS))
    rows: Optional[int] = None  # of the whole pool, copies and decoys among them; None for all of the split
    seed: int = 0  # of what is drawn
    copied_share: float = 0.25  # of the rows that are no copies, if there are copies
    copies: int = 0  # of each such row, in other words
    decoys: int = 0  # rows with another task about a sentence of the pool
    decoy_domain: str = "banking"

    def __post_init__(self) -> None:
        check_domains(self.domains, "dataset.domains")
        check_rows(self.rows, "dataset.rows")
        if self.path is not None and self.version is not Version.PLUS:
            raise UserError(
                f"dataset.version={self.version.value} is of the hub; with dataset.path the file decides: "
                "leave dataset.version out, and name that version's file"
            )
        if not 0 < self.copied_share <= 1:
            raise UserError(
                f"dataset.copied_share={self.copied_share} must lie in (0, 1]; copies=0 copies none"
            )
        if not 0 <= self.copies < len(TEMPLATES):
            raise UserError(
                f"dataset.copies={self.copies} must lie in 0 to {len(TEMPLATES) - 1}, one for each other "
                "template"
            )
        if self.decoys < 0 or (self.rows is not None and self.decoys >= self.rows):
            raise UserError(f"dataset.decoys={self.decoys} must be 0 or more, and fewer than dataset.rows")
        if self.decoys and self.decoy_domain not in self.domains:
            raise UserError(f"dataset.decoy_domain={self.decoy_domain} must be one of dataset.domains")

    def load(self) -> Pool:
        """Read the training split and draw from it; the same options give the same rows."""
        rng = random.Random(self.seed)
        requests = [
            request
            for request in read_split(Split.TRAIN, self.version, self.path, "dataset.path")
            if request.domain in self.domains
        ]
        n, n_copies = self._sizes(len(requests))
        if n > len(requests):
            raise UserError(
                f"dataset.rows={self.rows} needs {n} requests, but there are {len(requests)}; lower it, or "
                "set null for all"
            )
        drawn = [requests[i] for i in sorted(rng.sample(range(len(requests)), n))]
        copied = rng.sample(drawn, math.ceil(n_copies / self.copies)) if n_copies else []
        about = [request for request in drawn if request.domain == self.decoy_domain]
        rows = [
            *map(_original, drawn),
            *list(_copies(copied, self.copies))[:n_copies],
            *(
                _Row(
                    decoy.about.text,
                    f"decoy: {decoy.task}",
                    decoy.question,
                    decoy.answer,
                    {"domain": self.decoy_domain, "kind": "decoy"},
                )
                for decoy in draw_decoys(about, self.decoys, rng)
            ),
        ]
        return _as_pool(rows)

    def _sizes(self, available: int) -> tuple[int, int]:
        """Return how many requests the pool has, and how many copies of them."""
        copies_each = self.copied_share * self.copies
        if self.rows is None:
            return available, round(available * self.copied_share) * self.copies
        wanted = self.rows - self.decoys
        n = math.ceil(wanted / (1 + copies_each))
        return n, wanted - n


def _original(request: Request) -> _Row:
    label = in_words(request.intent)
    hidden = {"domain": request.domain, "intent": request.intent, "label": label, "kind": "request"}
    return _Row(request.text, request.intent, asked(request.text), label, hidden)


def _copies(requests: Sequence[Request], copies: int) -> Iterator[_Row]:
    """Yield the copies of each request, named by the id of the row that it is one of."""
    for request in requests:
        original = _original(request)
        for copy in range(1, copies + 1):
            hidden = {**original.hidden, "copy_of": original.id}
            question = asked_again(request.text, copy)
            yield _Row(request.text, f"{request.intent} {copy}", question, original.answer, hidden)


def _as_pool(rows: Sequence[_Row]) -> Pool:
    """Return the rows sorted by id."""
    ordered = sorted(rows, key=lambda row: row.id)
    examples = tuple(
        Example(row.id, (Message("user", row.question), Message("assistant", row.answer))) for row in ordered
    )
    return Pool(examples, {row.id: row.hidden for row in ordered})
