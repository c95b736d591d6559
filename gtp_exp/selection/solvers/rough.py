"""Fit many columns roughly, from their cosines alone, to tell which of them to drop.

A pursuit fits several times the rows that it keeps. Which of them to drop needs no exact fit, so all fits but
the last work in float32 on the Gram matrix of the unit columns, which is known from the search for near
copies; no row is read again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gtp_exp.selection.solvers.nnls import APART, Columns, largest_half, projected_gradient, submatrix

LEAST_RIDGE = 1e-4  # of a unit column: what keeps a float32 factorisation of dependent columns apart


@dataclass(frozen=True)
class RoughFit:
    """Hold columns at unit norm and their weights u [n, S] in those units, all float32."""

    cosines: torch.Tensor  # [n, n]
    pull: torch.Tensor  # [n, S], each unit column's product with the targets
    rho: torch.Tensor  # [n], the ridge in the units of u
    u: torch.Tensor  # [n, S]
    dim: int  # m, the rank of the columns at most

    def select(self, keep: torch.Tensor) -> RoughFit:
        """Return the columns at the positions int64, with the weights that they have."""
        cosines = submatrix(self.cosines, keep)
        return RoughFit(cosines, self.pull[keep], self.rho[keep], self.u[keep], self.dim)

    def guessed(self) -> RoughFit:
        """Return the fit whose support a few steps of projected gradient find, from the present weights."""
        guesses = [
            projected_gradient(lambda v: self.cosines @ v, pull, self.rho, u)
            for pull, u in zip(self.pull.T, self.u.T, strict=True)
        ]
        return self._solved(torch.stack(guesses, dim=1))

    def solved(self) -> RoughFit:
        """Return the fit of the columns that have weight, without those that turn negative."""
        return self._solved(self.u)

    def _solved(self, u: torch.Tensor) -> RoughFit:
        solved, apart = torch.zeros_like(u), float(self.rho.min()) > APART
        for s in range(u.shape[1]):
            passive = (u[:, s] > 0).nonzero().flatten()
            if not apart:
                passive = largest_half(passive, u[:, s], self.dim)
            passive, values = self._feasible(passive, self.pull[:, s])
            solved[passive, s] = values
        return RoughFit(self.cosines, self.pull, self.rho, solved, self.dim)

    def _feasible(self, passive: torch.Tensor, pull: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve on the passive set, drop everything that is not positive, and repeat until all of it is."""
        while True:
            gram = submatrix(self.cosines, passive)
            gram.diagonal().add_(self.rho[passive])
            factor, failed = torch.linalg.cholesky_ex(gram)
            if int(failed):
                passive = torch.cat([passive[: int(failed) - 1], passive[int(failed) :]])
                continue
            values = torch.cholesky_solve(pull[passive, None], factor)[:, 0]
            positive = values > 0
            if positive.all():
                return passive, values
            passive = passive[positive]


def rough_fit(columns: Columns, target: torch.Tensor, ridge: float, weights: torch.Tensor) -> RoughFit:
    """Return weights [n, S] on columns as a rough fit to a target float64 [m, S] would begin with them."""
    live = columns.norms > 0
    scale = torch.where(live, columns.norms, 1.0)
    rho = (ridge / scale.square()).clamp(min=LEAST_RIDGE).float()
    pull = (columns.unit @ target).float()
    cosines = columns.with_cosines().cosines
    assert cosines is not None
    return RoughFit(cosines, pull, rho, (weights * scale[:, None]).float(), columns.unit.shape[1])
