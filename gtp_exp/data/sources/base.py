"""Define what every data set offers: a pool, and what becomes of rows that cannot be used as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum

from gtp_exp.data.examples import Pool
from gtp_exp.data.tokenization import OverLength, RowRules, SpecialTokens


class NearCopies(Enum):
    """Says what becomes of pool rows whose text nearly repeats an earlier row's."""

    KEEP = "keep"
    DROP = "drop"


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """Describes a data set; an option of the group `dataset` inherits it."""

    over_length: OverLength = OverLength.DROP  # of rows of pool and target above model.max_length
    special_tokens: SpecialTokens = SpecialTokens.KEEP  # that the text of pool and target names
    strict: bool = False  # whether a row that cannot be used is an error; else it is left out, and counted
    near_copies: NearCopies = NearCopies.KEEP  # pool rows that nearly repeat an earlier one
    scores: list[str] = field(default_factory=list)  # columns of numbers, for reports and selector=given

    @property
    def rules(self) -> RowRules:
        """Return how rows of pool and target are taken that cannot be taken as they are."""
        return RowRules(self.over_length, self.special_tokens)

    def check_files(self) -> Pool | None:
        """Raise UserError for what can be told of the files at once: a job asks before its long imports.

        Returns the pool where that has taken no more than about a second, else None.
        """
        return None

    @abstractmethod
    def load(self) -> Pool:
        """Read the whole pool. Raises UserError where it cannot be read."""
