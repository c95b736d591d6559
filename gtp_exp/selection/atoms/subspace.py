"""Estimate the low-dimensional subspace of a checkpoint from stored sketches: principal components of the
pool, or the span of the target. Every checkpoint has its own, so the subspace evolves along the trajectory.

Components are uncentred: the mean direction is what the pursuit must match, so it is not taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from gtp_exp.gradients.features import Rows

OVERSAMPLING = 16
POWER_ITERATIONS = 3
EXACT = 1024  # up to this many rows or columns the factorisation is exact


class Subspace(Enum):
    """Say on what a checkpoint's sketches are projected."""

    NONE = "none"
    PCA = "pca"  # of the pool
    SVD = "svd"  # of the target rows


@dataclass(frozen=True)
class Basis:
    """Hold a subspace."""

    vectors: torch.Tensor  # float32 [k, d], orthonormal rows, largest component first
    explained: float  # share of the rows' squared norm that lies in the subspace


def principal_rows(rows: torch.Tensor, dim: int, seed: int) -> Basis:
    """Return the top right-singular vectors of rows [n, d]; fewer than `dim` when the rows span less.

    Small matrices are factorised exactly in float64, large ones by randomised subspace iteration (Halko,
    Martinsson and Tropp, 2011, algorithm 4.4).
    """
    rows = rows.float()
    n, d = rows.shape
    dim = min(dim, n, d)
    if min(n, d) <= EXACT or dim + OVERSAMPLING >= min(n, d):
        exact = rows.double()
        _, singular, vectors = torch.linalg.svd(exact, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(d, dim + OVERSAMPLING, generator=generator)
        sketch = rows @ basis
        for _ in range(POWER_ITERATIONS):
            basis = torch.linalg.qr(rows.T @ torch.linalg.qr(sketch).Q).Q  # [d, dim + p]
            sketch = rows @ basis
        _, singular, small = torch.linalg.svd(sketch.double(), full_matrices=False)
        vectors = small @ basis.double().T
    keep = min(dim, int((singular > 1e-6 * singular[0]).sum())) if len(singular) else 0
    energy = float(rows.double().square().sum())
    explained = float(singular[:keep].square().sum()) / energy if energy else 0.0
    return Basis(vectors[:keep].float().contiguous(), explained)


def evenly_spaced(rows: Rows, at_most: int) -> torch.Tensor:
    """Return a deterministic sample of the rows, float32 [<= at_most, d]: every (n / at_most)-th one."""
    return rows.rows(spread(rows.shape[0], at_most)).float()


def spread(n: int, at_most: int) -> torch.Tensor:
    """Return int64 [<= at_most] of 0 ... n - 1 at equal distances, or all of them."""
    return torch.arange(n) if n <= at_most else (torch.arange(at_most) * n) // at_most
