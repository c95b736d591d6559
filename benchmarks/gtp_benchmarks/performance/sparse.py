"""Make atoms in general position, and a target of few of them: what a pursuit should find is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sparse:
    """Holds a planted problem."""

    atoms: torch.Tensor  # float32 [n, m], unit rows in general position
    target: torch.Tensor  # float64 [m, 1], a positive combination of the support, plus noise
    support: set[int]


def sparse(n: int, m: int, size: int, noise: float, seed: int) -> Sparse:
    """Return a planted problem. noise: norm of what is added to the target, over the norm of the
    combination."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(n, m, generator=generator), dim=1)
    support = torch.randperm(n, generator=generator)[:size]
    weights = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
    target = atoms[support].double().T @ weights
    added = torch.randn(m, generator=generator, dtype=torch.float64)
    target = target + noise * target.norm() * added / added.norm()
    return Sparse(atoms, target[:, None], set(support.tolist()))
