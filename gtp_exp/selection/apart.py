"""Find rows that nearly repeat chosen ones: a pursuit compares only those that it looks at itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.duplicates import Copies
from gtp_exp.selection.atoms.matrix import Atoms

BLOCK = 1024  # rows held at a time on either side


@dataclass(frozen=True)
class Apart:
    """Tell exact copies by their rows, and near copies by the cosine of their atoms."""

    exact: Copies
    atoms: Atoms
    cosine: float | None  # rows closer than this are near copies; None: no rows are

    def repeats(self, index: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Tell which rows int64 [k] are near copies of a chosen row int64 [n], bool [k]."""
        near = torch.zeros(len(index), dtype=torch.bool)
        if self.cosine is None or not len(chosen):
            return near
        for start in range(0, len(index), BLOCK):
            rows = self._unit(index[start : start + BLOCK])
            for others in chosen.split(BLOCK):
                near[start : start + len(rows)] |= (rows @ self._unit(others).T > self.cosine).any(1)
        return near

    def among(self, index: torch.Tensor) -> torch.Tensor:
        """Tell which of at most `BLOCK` rows int64 [k] are near copies of which, bool [k, k]."""
        assert self.cosine is not None
        rows = self._unit(index)
        return rows @ rows.T > self.cosine

    def _unit(self, index: torch.Tensor) -> torch.Tensor:
        return unit_rows(self.atoms.rows(index))
