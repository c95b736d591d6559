"""Atoms with a known solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Clusters:
    """Hold atoms around centres, and a target that is a sum of some of the centres."""

    atoms: torch.Tensor  # float32 [n, m], unit rows scattered around centres
    cluster: torch.Tensor  # int64 [n]
    clean: torch.Tensor  # float64 [m], the sum of `wanted` centres
    target_rows: torch.Tensor  # float32 [k, m], clean plus noise each


def clusters(
    n: int, m: int, seed: int, *, count: int = 50, wanted: int = 5, target_rows: int = 16, noise: float = 0.3
) -> Clusters:
    """Draw n atoms in m dimensions.

    noise: norm of (mean of target rows - clean) over the norm of clean, in expectation."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(count, m, generator=generator), dim=1)
    cluster = torch.randint(count, (n,), generator=generator)
    atoms = centres[cluster] + torch.randn(n, m, generator=generator) / m**0.5
    clean = centres[:wanted].double().sum(0)
    spread = noise * float(clean.norm()) * target_rows**0.5 / m**0.5
    rows = clean.float() + spread * torch.randn(target_rows, m, generator=generator)
    return Clusters(torch.nn.functional.normalize(atoms, dim=1), cluster, clean, rows)
