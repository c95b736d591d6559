"""Keep rows rounded to eight bits in memory, and bound their products with a column by those of the rounded.

A number x is rounded to step * floor(x / step + u_j), with one u_j for all numbers of its column j, uniform
from 0 to 1. So it is right in the mean, and off by less than a step; and as the u_j are independent, so are
the errors of a row, and by Hoeffding's inequality (1963, Theorem 2) its product with a column r that does not
depend on them is off by more than

    step |r| sqrt(log(2 / RARE) / 2)

with a probability of RARE at most: by a thousandth of |a| |r|, where Cauchy's inequality allows a hundredth.
A pass over numbers of one byte so tells of almost every row that it is not among the k of the largest
products, and only the others are read from the store. The columns of a pursuit do not depend on the u_j, as
it takes the same rows, whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

RARE = 1e-18  # ten million rows in a thousand passes: one selection in 10^8 overlooks one of them
STEPS = math.sqrt(math.log(2 / RARE) / 2)  # of a row, times |r|, by which a product may be off: 4.6
LEVELS = 126  # the steps to the largest number of a row: one more, if it is rounded up, is what int8 holds

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # rows [n, d] and columns [d, S] to [n, S]


@dataclass(frozen=True)
class RoundedRows:
    """Hold rows [n, d] as `steps * numbers`."""

    numbers: torch.Tensor  # int8 [n, d]
    steps: torch.Tensor  # float32 [n]
    offsets: torch.Tensor  # float32 [d], the u_j

    @classmethod
    def empty(cls, n: int, dim: int, seed: int) -> RoundedRows:
        """Return room for n rows. seed: of the offsets; rows whose products are added up need different
        ones.
        """
        offsets = torch.rand(dim, generator=torch.Generator().manual_seed(seed))
        return cls(torch.empty(n, dim, dtype=torch.int8), torch.empty(n), offsets)

    def put(self, place: range, rows: torch.Tensor) -> None:
        """Round rows float32 [k, d] into a place among all."""
        largest = torch.maximum(rows.amax(1), -rows.amin(1))  # abs().amax() takes ten times as long
        steps = (largest / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        where = slice(place.start, place.stop)
        self.numbers[where] = (rows / steps[:, None]).add_(self.offsets).floor_()
        self.steps[where] = steps

    def products(self, columns: torch.Tensor, product: Product) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the products of the rounded rows with columns float32 [d, S], and the squares of what those
        of the rows may differ by, both float32 [n, S].
        """
        off = STEPS * self.steps[:, None] * torch.linalg.vector_norm(columns, dim=0)
        return self.steps[:, None] * product(self.numbers, columns), off.square()
