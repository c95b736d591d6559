"""Orthogonal matching pursuit as GradMatch publishes it: the slow reference the solvers are measured against.

One atom joins at a time, and every step computes the Gram matrix of the support and solves the least-squares
problem anew (Killamsetty et al., arXiv 2103.00123; github.com/decile-team/cords at 030c531,
cords/selectionstrategies/helpers/omp_solvers.py, `OrthogonalMP_REG_Parallel` with positive=True). Written
from that procedure: the arg-max of the correlations, an end without a word when it is already in the support,
a ridge on the normal equations, and the most negative weights dropped one by one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Matched:
    """Holds what matching has chosen, and the seconds of each step."""

    indices: torch.Tensor  # int64 [k], in order of choice
    weights: torch.Tensor  # float32 [k]
    step_seconds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Return the seconds of all steps."""
        return sum(self.step_seconds)


def one_atom_omp(
    atoms: torch.Tensor, target: torch.Tensor, *, steps: Sequence[int], lam: float, tolerance: float = 1e-4
) -> list[Matched]:
    """What was chosen after each of `steps` (ascending); fewer rows than steps where weights were dropped.

    atoms float32 [N, m], target float32 [m]. lam is absolute, as there; its default there is 0.5.
    """
    support: list[int] = []
    weights = torch.empty(0)
    residual, length = target.clone(), float(target.norm())
    seconds: list[float] = []
    matched: list[Matched] = []
    for step in range(1, max(steps) + 1):
        began = time.perf_counter()
        if float(residual.norm()) < tolerance * length:
            break
        chosen = int((atoms @ residual).argmax())
        if chosen in support:
            break
        support.append(chosen)
        rows = atoms[support]
        weights = _refit(rows, target, lam)
        while len(support) > 1 and float(weights.min()) < 0:
            worst = int(weights.argmin())
            support.pop(worst)
            rows = atoms[support]
            weights = _refit(rows, target, lam)
        residual = target - rows.T @ weights
        seconds.append(time.perf_counter() - began)
        if step in steps:
            matched.append(Matched(torch.tensor(support), weights, tuple(seconds)))
    # Where it ended before, this is all that more steps would have brought.
    rest = len(set(steps)) - len(matched)
    return matched + [Matched(torch.tensor(support, dtype=torch.long), weights, tuple(seconds))] * rest


def _refit(rows: torch.Tensor, target: torch.Tensor, lam: float) -> torch.Tensor:
    gram = rows @ rows.T
    gram.diagonal().add_(lam)
    return torch.linalg.lstsq(gram, (rows @ target)[:, None]).solution[:, 0]


@dataclass(frozen=True)
class StepCost:
    """Seconds of step k fitted as c0 + c1 k + c2 k^2 + c3 k^3, every c >= 0: pass, Gram matrix, factors."""

    coefficients: tuple[float, ...]
    fitted_to: int  # steps measured
    determination: float  # R^2 of the cumulated seconds

    def total(self, steps: int) -> float:
        """Return the seconds of the first `steps` steps."""
        k = np.arange(1, steps + 1, dtype=np.float64)
        return float(sum(c * (k**p).sum() for p, c in enumerate(self.coefficients)))


def fit_step_cost(step_seconds: tuple[float, ...]) -> StepCost:
    """Fit the cost of a step to measured steps."""
    from scipy.optimize import nnls

    k = np.arange(1, len(step_seconds) + 1, dtype=np.float64)
    cumulated = np.cumsum(step_seconds)
    basis = np.stack([np.cumsum(k**p) for p in range(4)], axis=1)
    scale = basis.max(0)
    scaled, _ = nnls(basis / scale, cumulated)
    fitted = basis @ (scaled / scale)
    spread = float(((cumulated - cumulated.mean()) ** 2).sum())
    determination = 1 - float(((cumulated - fitted) ** 2).sum()) / spread if spread > 0 else 1.0
    return StepCost(tuple((scaled / scale).tolist()), len(step_seconds), determination)
