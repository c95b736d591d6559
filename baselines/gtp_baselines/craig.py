"""CRAIG: Coresets for Data-efficient Training of Machine Learning Models (Mirzasoleiman, Bilmes, Leskovec,
arXiv 1906.01827).

Chooses the rows that represent all rows of the pool by greedy facility location over gradients:

    max over S of  F(S) = sum_i max_{j in S} s(i, j),     s = max distance - distance, or 1 + cosine

and weighs each by the number of rows that it is closest to. The target plays no part: the coreset stands
for the pool.

Official code: github.com/baharanm/craig, commit 40afe04 (lazy_greedy.py, util.py). There s is split by
class and the gradients are the last layer's, taken anew in training; ours are those of the trajectory, each
checkpoint weighed by its learning rate, and taken once. Like there, a pool too large for one matrix of
similarities is cut at random into parts that are solved alone (GreeDi's first stage); equal texts stand side
by side, so they fall into one part unless it ends between them. An exact copy of a chosen row is closest to
no row and weighs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from tqdm import tqdm

from gtp_baselines.gradient_rows import check_some
from gtp_baselines.ranking import tie_order
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.features import GradientFeatures, TensorRows
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.duplicates import exact_copies, row_hash
from gtp_exp.selection.atoms.sketches import CheckpointWeights, checkpoint_shares, require_directions
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector

BLOCK = 64  # gains brought up to date at a time
CLOSE = 1e-3  # squared distance over squared norms below which float32 products are too coarse
PAIRS = 4096  # close pairs looked at together


class GradientCloseness(Enum):
    """Name how close two gradients are."""

    EUCLIDEAN = "euclidean"
    COSINE = "cosine"  # of every checkpoint, averaged


@dataclass(frozen=True)
class CRAIG(Selector):
    """Choose the rows that stand for all rows of the pool, by facility location over gradients."""

    direction: str = "sgd"
    similarity: GradientCloseness = GradientCloseness.EUCLIDEAN
    part_rows: int = 8192  # rows solved together; memory grows with the square

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        if self.part_rows < 2:
            raise UserError(
                f"selector.part_rows={self.part_rows} leaves nothing to represent; give some 1,000"
            )

    def select(self, problem: SelectionProblem) -> Selection:
        pool = problem.pool_gradients
        require_directions(pool, [self.direction], "CRAIG")
        assert pool is not None
        n, wanted = pool.n, problem.budget.rows(pool.n)
        check_some(
            [pool.features(t, self.direction) for t in range(len(pool.learning_rates))], "every candidate's"
        )
        shuffled = tie_order(problem.candidates, problem.seed)  # by text: the pool's order plays no part
        parts = shuffled.tensor_split(math.ceil(n / self.part_rows))
        scores = torch.zeros(n)
        orders, places = [], []
        for part in tqdm(parts, desc="CRAIG", unit="part", delay=2.0):
            similarity = self.similarities(problem, pool, part)
            share = len(part) if wanted is None else min(len(part), math.ceil(wanted * len(part) / n) + 1)
            order = facility_location(similarity, share)
            scores[part] = (similarity.sum(1) / len(part)).float()
            orders.append(part[order])
            places.append((torch.arange(len(order), dtype=torch.float64) + 0.5) / len(part))
        merged = torch.cat(orders)[torch.argsort(torch.cat(places), stable=True)]
        chosen = problem.budget.take(merged, problem.n_tokens)

        counts = torch.zeros(n)
        for part in parts:
            inside = part[torch.isin(part, chosen)]
            if len(inside):
                closest = self.similarities(problem, pool, part, inside).argmax(1)
                counts[inside] = torch.bincount(closest, minlength=len(inside)).float()
        weights = counts[chosen]
        diagnostics = {
            "parts": len(parts),
            "largest_cluster": int(weights.max()),
            "rows_without_weight": int((weights == 0).sum()),
        }
        return Selection(chosen, weights / weights.mean(), scores, diagnostics)

    def similarities(
        self,
        problem: SelectionProblem,
        pool: GradientFeatures,
        rows: torch.Tensor,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """s >= 0 between candidates `rows` and `columns` (the same rows if None): float32 [r, c]."""
        left = self._features(problem, pool, rows)
        right = left if columns is None else self._features(problem, pool, columns)
        if self.similarity is GradientCloseness.COSINE:
            return (1 + left @ right.T).clamp_(min=0)
        left, of_row = distinct(left)
        right, of_column = (left, of_row) if columns is None else distinct(right)
        distances = squared_distances(left, right).sqrt_()
        distances = distances.max() - distances
        if len(of_row) == len(left) and len(of_column) == len(right):
            return distances
        return distances[of_row[:, None], of_column]

    def _features(
        self, problem: SelectionProblem, pool: GradientFeatures, index: torch.Tensor
    ) -> torch.Tensor:
        """sqrt(eta_t / sum eta) x[t, i], checkpoints side by side: float32 [k, T dim]."""
        blocks = []
        for t, share in enumerate(checkpoint_shares(pool.learning_rates, CheckpointWeights.LEARNING_RATE)):
            rows = pool.features(t, self.direction).rows(index).float()
            if self.similarity is GradientCloseness.COSINE:
                rows = unit_rows(rows)
            blocks.append(math.sqrt(share) * rows)
        return torch.cat(blocks, dim=1)


def squared_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """||l - r||^2 for rows [r, d] and [c, d], float32 [r, c]."""
    scale = left.square().sum(1)[:, None] + right.square().sum(1)
    squares = (scale - 2 * left @ right.T).clamp_(min=0)
    # The difference has lost its digits where rows are close: there it is taken row by row.
    for pairs in (squares < CLOSE * scale).nonzero().split(PAIRS):
        i, j = pairs.T
        squares[i, j] = (left[i] - right[j]).square().sum(1)
    return squares


def distinct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of every kind of equal rows [n, d], in order, [k, d]; and which of them each row equals,
    int64 [n]. Every pair of equal rows is close: of thousands there are millions."""
    copies = exact_copies([TensorRows(rows)], row_hash(rows, seed=0))
    kept = (copies.multiplicity > 0).nonzero().flatten()
    return rows[kept], torch.searchsorted(kept, copies.representative)


def facility_location(similarity: torch.Tensor, size: int) -> torch.Tensor:
    """The greedy order of `size` rows of a symmetric non-negative similarity [n, n]: int64 [size].

    Lazy greedy (Minoux, 1978): a gain only falls as the set grows, so an old gain bounds the new one, and
    only rows whose bound exceeds the best gain found are looked at again.
    """
    n = len(similarity)
    covered = torch.zeros(n)
    bound = similarity.sum(1, dtype=torch.float64)  # the gain of every row alone
    order = torch.empty(size, dtype=torch.long)
    for step in range(size):
        stale = bound.clone()
        best, best_gain = -1, -math.inf
        while True:
            top = stale.topk(min(BLOCK, n))
            looked_at = top.indices[top.values > best_gain]
            if not len(looked_at):
                break
            gains = (similarity[looked_at] - covered).clamp_(min=0).sum(1, dtype=torch.float64)
            bound[looked_at] = gains
            stale[looked_at] = -math.inf
            first = int(gains.argmax())
            if float(gains[first]) > best_gain:
                best, best_gain = int(looked_at[first]), float(gains[first])
        order[step] = best
        covered = torch.maximum(covered, similarity[best])
        bound[best] = -math.inf
    return order
