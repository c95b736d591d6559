"""Solve the ridge problem on more columns than dimensions, through an m x m system (Woodbury).

    (U U^T + R)^-1 c = R^-1 (c - U H^-1 U^T R^-1 c),     H = I + U^T R^-1 U,     R = diag(rho)

H is factorised in float32 and the solution refined in float64, which converges unless the ridge is tiny;
there the factor is float64 too.
"""

from __future__ import annotations

import torch

REFINED = 1e-13  # residual over the right side at which a refined solution is exact
FEW = 4  # a passive set that differs from the last one in less than a quarter of its columns reuses its H


class WideSystem:
    """Solve for the passive sets of one problem in turn, each of which differs little from the one before."""

    def __init__(self, unit: torch.Tensor, rho: torch.Tensor) -> None:
        """Take all unit columns U float64 [n, m] and their ridges rho float64 [n]."""
        self.unit, self.rho = unit, rho
        self._inner = torch.empty(0, 0)  # H of the columns below, float32 [m, m]
        self._passive = torch.zeros(len(unit), dtype=torch.bool)

    def solve(self, passive: torch.Tensor, correlation: torch.Tensor) -> torch.Tensor:
        """Return u float64 [p] for passive columns int64 [p] and their right side c float64 [p]."""
        unit, rho = self.unit[passive], self.rho[passive]
        u = refined(self.inner(passive), unit, rho, correlation)
        if u is None:
            self._passive.zero_()  # the next set's H is made anew
            u = refined(_inner(unit, rho, torch.float64), unit, rho, correlation, last=True)
            assert u is not None
        return u

    def inner(self, passive: torch.Tensor) -> torch.Tensor:
        """Return H float32 [m, m] of passive columns int64 [p]; keeps it for the next set."""
        now = torch.zeros_like(self._passive)
        now[passive] = True
        gone, new = (self._passive & ~now).nonzero().flatten(), (now & ~self._passive).nonzero().flatten()
        if FEW * (len(gone) + len(new)) < len(passive):
            self._inner = self._inner + self._outer(new) - self._outer(gone)
        else:
            self._inner = _inner(self.unit[passive], self.rho[passive], torch.float32)
        self._passive = now
        return self._inner

    def _outer(self, columns: torch.Tensor) -> torch.Tensor:
        scaled = (self.unit[columns] / self.rho[columns].sqrt()[:, None]).float()
        return scaled.T @ scaled


def _inner(unit: torch.Tensor, rho: torch.Tensor, precision: torch.dtype) -> torch.Tensor:
    """Return H [m, m] of columns [p, m] in a precision."""
    scaled = (unit / rho.sqrt()[:, None]).to(precision)
    inner = scaled.T @ scaled
    inner.diagonal().add_(1.0)
    return inner


def refined(
    inner: torch.Tensor, unit: torch.Tensor, rho: torch.Tensor, correlation: torch.Tensor, last: bool = False
) -> torch.Tensor | None:
    """Return the solution float64 [p] by the factor of H [m, m] and iterative refinement; None where that
    does not converge, unless it is the last resort.
    """
    factor, failed = torch.linalg.cholesky_ex(inner)
    u, left = torch.zeros_like(correlation), correlation
    enough, falls = REFINED * float(correlation.norm()), not int(failed)
    while falls and float(left.norm()) > enough:
        inside = torch.cholesky_solve((unit.T @ (left / rho)).to(inner.dtype)[:, None], factor)[:, 0]
        better = u + (left - unit @ inside.double()) / rho
        remaining = correlation - unit @ (unit.T @ better) - rho * better
        falls = float(remaining.norm()) < 0.5 * float(left.norm())
        if falls:
            u, left = better, remaining
    return u if last or float(left.norm()) <= enough else None
