"""Inner products in the metric of a pool: with the inverse of its atoms' second moment, shrunk to a sphere.

    M = (1 - s) 1/n sum_i a_i a_i^T + s mu I,    mu = trace / m

s is the shrinkage of Ledoit and Wolf (A well-conditioned estimator for large-dimensional covariance matrices,
2004), for rows that are not centred. n is smaller than m, so M is inverted by Woodbury's identity:

    M^-1 = 1/alpha (I - (1 - s) A^T (n alpha I + (1 - s) A A^T)^-1 A),    alpha = s mu
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAST_SHRINKAGE = 1e-3  # below it M could not be inverted where there are fewer rows than dimensions


@dataclass(frozen=True)
class Whitening:
    """Gives inner products in the metric of some atoms."""

    atoms: torch.Tensor  # float64 [n, m]
    factor: torch.Tensor  # float64 [n, n], the lower Cholesky factor of n alpha I + (1 - s) A A^T
    shrinkage: float
    alpha: float

    def inner(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return left M^-1 right^T for rows float64 [a, m] and [b, m]: float64 [a, b]."""
        ours, theirs = (
            torch.linalg.solve_triangular(self.factor, self.atoms @ rows.T, upper=False)
            for rows in (left, right)
        )
        return (left @ right.T - (1 - self.shrinkage) * ours.T @ theirs) / self.alpha


def whitening_of(atoms: torch.Tensor) -> Whitening:
    """Return the metric of atoms float [n, m], not all of them zero."""
    atoms = atoms.double()
    n, m = atoms.shape
    gram = atoms @ atoms.T
    shrinkage = max(LEAST_SHRINKAGE, ledoit_wolf(gram, m))
    alpha = shrinkage * float(gram.trace()) / n / m
    system = (1 - shrinkage) * gram
    system.diagonal().add_(n * alpha)
    return Whitening(atoms, torch.linalg.cholesky(system), shrinkage, alpha)


def ledoit_wolf(gram: torch.Tensor, m: int) -> float:
    """Return the shrinkage, 0 to 1, for the Gram matrix float64 [n, n] of rows of m dimensions."""
    n = len(gram)
    squared = float(gram.square().sum()) / n**2  # of the second moment's entries, summed
    distance = squared - m * (float(gram.trace()) / n / m) ** 2
    if distance <= 0:
        return 1.0
    error = (float(gram.diagonal().square().sum()) / n - squared) / n
    return min(1.0, error / distance)
