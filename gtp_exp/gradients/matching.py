"""Bring the rows of given gradient stores into the order of a job's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gtp_exp.data.hashing import digest
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.picked import picked
from gtp_exp.gradients.store import GradientStore


@dataclass(frozen=True)
class GivenStore:
    """Holds a store that was not collected by the job, and which of its rows are the job's."""

    store: GradientStore
    order: torch.Tensor  # int64 [n]: of each of the job's rows its row in the store

    @property
    def key(self) -> str:
        """Return what the rows are, for the key of a stage that reads them; the same wherever the store
        lies."""
        return digest(self.store.key, self.order.tolist())[:24]

    @property
    def quarantined(self) -> torch.Tensor:
        """Return which of the job's rows are not finite, int64, ascending."""
        return torch.isin(self.order, self.store.quarantined).nonzero().flatten()

    def features(self) -> GradientFeatures:
        """Return the gradients of the job's rows, in their order. Raise UserError for a damaged store."""
        if problems := self.store.verify():
            raise UserError(f"{self.store.directory} is damaged ({problems[0]}); make the store again")
        if torch.equal(self.order, torch.arange(self.store.n)):
            return self.store
        return picked(self.store, self.order)


def match_rows(split: str, store: GradientStore, wanted: Sequence[str], known: Sequence[str]) -> GivenStore:
    """Return the store's rows in the order of the wanted ids. known: ids that it may have, too."""
    place = {name: i for i, name in enumerate(store.ids)}
    may_be_there = set(known)
    missing = [name for name in wanted if name not in place]
    extra = [name for name in store.ids if name not in may_be_there]
    if missing or extra:
        told = f"'{missing[0]}' of the {split} is not in it" if missing else ""
        told += " and " if missing and extra else ""
        told += f"'{extra[0]}' is in it and not of the {split}" if extra else ""
        raise UserError(
            f"gradients.{split}: {store.directory} has {store.n} rows and the {split} {len(wanted)}: {told} "
            f"({len(missing)} missing, {len(extra)} extra); give the store of these rows, or import it with "
            "their ids (--ids)"
        )
    return GivenStore(store, torch.tensor([place[name] for name in wanted], dtype=torch.long))


def is_numbered(ids: Sequence[str]) -> bool:
    """Say whether the ids are those of rows that had none."""
    return all(name == f"row-{i}" for i, name in enumerate(ids))
