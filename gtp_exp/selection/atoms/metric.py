"""Weigh the inner product of gradients by the inverse of the pool's second moment, at every checkpoint: a
natural-gradient metric. Directions that all rows share count less, those that tell rows apart count more.

    x' = ((1 + s) c)^(1/2) (C + s c I)^(-1/2) x,     C = 1/N sum_i u_i u_i^T,  u = x / |x|,  c = tr C / d

s is the shrinkage; the factor in front leaves isotropic rows as they are. With the rows of pool and target
alike made x', plain inner products of them are those of the metric. It is the form of an influence function
(Koh and Liang, arXiv 1703.04730) whose curvature is the gradients' second moment.

A matrix [8192, 8192] is never made. The leading eigenvectors of C, at most `dim`, are those of a sample of
the pool's rows, through their Gram matrix, improved by a step of subspace iteration over the whole pool; what
is left of the trace is spread evenly over the rest. With no more than `dim` directions in the pool, none of
which the sample lacks, that is exact, and outside of their span the shrinkage alone is left. Without the step
over the whole pool the sampled rows would be scaled unlike the rows beside them: the sample's own noise bends
its eigenvectors, and the metric magnifies what they miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch

from gtp_exp.distributed import ALONE, Processes
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import Rows
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.subspace import spread

CHUNK = 2048  # rows in memory at a time
RANK = 1e-10  # squared singular value, over the largest, below which a direction is rounding


class Metric(Enum):
    """Name the inner product by which gradients are compared."""

    EUCLIDEAN = "euclidean"
    WHITENED = "whitened"  # weighted by the inverse of the pool's second moment


@dataclass(frozen=True)
class Whitening:
    """Scale rows along some directions, and by one factor outside of them: a symmetric map."""

    vectors: torch.Tensor  # float32 [r, d], orthonormal rows
    gains: torch.Tensor  # float32 [r], along them
    rest: float  # outside of their span

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows [k, d], float32 or float64, in the metric's coordinates, in the same type."""
        vectors, excess = self.vectors.to(rows.dtype), (self.gains - self.rest).to(rows.dtype)
        return self.rest * rows + (rows @ vectors.T * excess) @ vectors


@dataclass(frozen=True)
class MetricSettings:
    """Say by which inner product a selector compares gradients; its options are `metric` and `metric_...`."""

    metric: Metric = Metric.EUCLIDEAN
    shrinkage: float = 0.1
    dim: int = 512  # directions that are scaled one by one, at most

    def __post_init__(self) -> None:
        if not self.shrinkage > 0:
            raise UserError(
                f"selector.metric_shrinkage={self.shrinkage} leaves directions without a scale; give a share "
                "of the mean eigenvalue above 0, such as 0.1"
            )
        if self.dim < 1:
            raise UserError(f"selector.metric_dim={self.dim} scales no direction; give at least 1")

    def of(
        self, rows: Rows, basis: torch.Tensor | None = None, processes: Processes = ALONE
    ) -> Whitening | None:
        """Return the map into the metric of the pool's rows [n, d]; None for the Euclidean one.

        basis [k, d]: in which the rows are seen, where one is given. Takes two passes over a pool of more
        than 2 dim rows, otherwise one. Rows that are not finite are left to others to refuse.
        """
        if self.metric is Metric.EUCLIDEAN:
            return None
        n, index = rows.shape[0], spread(rows.shape[0], 2 * self.dim)
        vectors = _leading(_unit(rows.rows(index), basis).double(), self.dim)
        if len(index) < n:
            image = torch.zeros(vectors.shape[1], len(vectors), dtype=torch.float64)
            for unit in _unit_chunks(rows, basis):
                image += (unit.T @ (unit @ vectors.float().T)).double()
            vectors = torch.linalg.qr(processes.all_reduce(image)).Q.T
        inside, trace = torch.zeros(len(vectors), len(vectors), dtype=torch.float64), torch.zeros(1)
        for unit in _unit_chunks(rows, basis):
            along = unit.double() @ vectors.T
            inside, trace = inside + along.T @ along / n, trace + unit.square().sum() / n
        values, turn = torch.linalg.eigh(processes.all_reduce(inside))
        return self._scaled(turn.T @ vectors, values.clamp(min=0), float(processes.all_reduce(trace)))

    def _scaled(self, vectors: torch.Tensor, values: torch.Tensor, trace: float) -> Whitening:
        """Return the map of a second moment with these eigenvectors [r, d] and values [r], float64."""
        (r, d), vectors = vectors.shape, vectors.float()
        if not trace > 0:  # every row is zero
            return Whitening(vectors, torch.ones(r), 1.0)
        left = max(0.0, trace - float(values.sum())) / (d - r) if r < d else 0.0
        damping, scale = self.shrinkage * trace / d, (1 + self.shrinkage) * trace / d
        gains = (scale / (values + damping)).sqrt()
        return Whitening(vectors, gains.float(), (scale / (left + damping)) ** 0.5)


def _unit(rows: torch.Tensor, basis: torch.Tensor | None) -> torch.Tensor:
    """Return the rows in the basis at unit norm, float32; zero for those that are zero or not finite."""
    rows = rows.float() if basis is None else rows.float() @ basis.T
    rows = torch.where(torch.isfinite(rows).all(1, keepdim=True), rows, 0.0)
    return unit_rows(rows)


def _unit_chunks(rows: Rows, basis: torch.Tensor | None) -> Iterator[torch.Tensor]:
    for _, chunk in rows.chunks(CHUNK):
        yield _unit(chunk, basis)


def _leading(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the leading right singular vectors of rows float64 [n, d]: [<= count, d], fewer at a lower rank.

    From the smaller of the two Gram matrices, which takes a tenth of the time of a singular value
    decomposition.
    """
    n, d = rows.shape
    values, vectors = torch.linalg.eigh(rows @ rows.T if n < d else rows.T @ rows)
    keep = int((values > RANK * values[-1]).sum())  # they ascend
    values, vectors = (part[..., len(values) - min(keep, count) :] for part in (values, vectors))
    return vectors.T @ rows / values.sqrt()[:, None] if n < d else vectors.T.contiguous()
