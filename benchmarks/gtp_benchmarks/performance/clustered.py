"""A pool whose right answer is known: clusters of unit atoms, exact copies among them, a noisy target.

Rows are made a block at a time, each block from its own seed, so that a pool of any size can be written to
disk without ever being in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

BLOCK = 1024
CLUSTERS = 200
WANTED = 5  # clusters the target is made of
COPIES = 0.1  # share of a block's rows that repeat another row of it
TARGET_ROWS = 32
CENTRES, NOISE = 1 << 40, 1 << 41  # streams of random numbers beside those of the blocks 0, 1, 2, ...


@dataclass(frozen=True)
class Clustered:
    """Describes one checkpoint's atoms. Those of another checkpoint keep clusters and copies, with other
    values."""

    n: int
    dim: int
    seed: int
    checkpoint: int = 0
    noise: float = 0.28  # distance of the observed target to the clean one, over the norm of the latter

    def _values(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self.seed, self.checkpoint, stream)) % 2**62)

    def _structure(self, block: int) -> torch.Generator:
        return torch.Generator().manual_seed(hash((self.seed, block)) % 2**62)

    def centres(self) -> torch.Tensor:
        """Return the cluster centres, unit rows [CLUSTERS, dim]."""
        centres = torch.randn(CLUSTERS, self.dim, generator=self._values(CENTRES))
        return torch.nn.functional.normalize(centres, dim=1)

    def blocks(self) -> Iterator[torch.Tensor]:
        """Yield the atoms, float32 [<= BLOCK, dim] at a time: unit rows, half their energy the cluster's
        centre."""
        centres = self.centres()
        for block, start in enumerate(range(0, self.n, BLOCK)):
            rows, structure = min(BLOCK, self.n - start), self._structure(block)
            cluster = torch.randint(CLUSTERS, (rows,), generator=structure)
            x = torch.randn(rows, self.dim, generator=self._values(block)).mul_(self.dim**-0.5)
            x += centres[cluster]
            order = torch.randperm(rows, generator=structure)
            copies = order[: int(COPIES * rows)]
            originals = order[len(copies) :]
            x[copies] = x[originals[torch.randint(len(originals), (len(copies),), generator=structure)]]
            yield torch.nn.functional.normalize(x, dim=1)

    def atoms(self) -> torch.Tensor:
        """Return all atoms, float32 [N, dim]."""
        out = torch.empty(self.n, self.dim)
        for block, rows in enumerate(self.blocks()):
            out[block * BLOCK : block * BLOCK + len(rows)] = rows
        return out

    def clean(self) -> torch.Tensor:
        """Return the target without noise, float64 [dim]."""
        return self.centres()[:WANTED].double().mean(0)

    def target_rows(self) -> torch.Tensor:
        """Return what a selector sees of the target: float32 [TARGET_ROWS, dim], whose mean is the observed
        target."""
        clean = self.clean()
        noise = torch.randn(TARGET_ROWS, self.dim, generator=self._values(NOISE), dtype=torch.float64)
        spread = self.noise * float(clean.norm()) * (TARGET_ROWS / self.dim) ** 0.5
        return (clean + spread * noise).float()
