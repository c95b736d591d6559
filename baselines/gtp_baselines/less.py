"""LESS: Selecting Influential Data for Targeted Instruction Tuning (Xia et al., arXiv 2402.04333).

Score of candidate i, with u(x) = x / |x|, mean learning rate eta_t of checkpoint t, subtasks s of the
target:

    max_s  sum_t  eta_t / sum eta  <u(Gamma_t(g[t, i])),  mean_{j in s} u(g[t, j])>

Gamma is the Adam direction by the published formula (direction `less`); the target side is the plain
gradient (direction `sgd`). The candidates with the largest scores are chosen.

Official code: github.com/princeton-nlp/LESS; the aggregation follows less/data_selection/matching.py at
commit 1e4afda. It differs from the published settings where the gradients group does: the default sketch is
a CountSketch with an independent seed per checkpoint, not one Rademacher matrix. The official code needs
equally many rows in every subtask; here they may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_baselines.aggregation import Aggregation, Groups, choose_by_similarity, group_target
from gtp_baselines.gradient_rows import check_similar, chunks_of, pool_and_target
from gtp_exp.decode import check_fields
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.gradients.features import Rows
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.metric import Metric, MetricSettings, Whitening
from gtp_exp.selection.atoms.sketches import CheckpointWeights, checkpoint_shares
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights

EUCLIDEAN = MetricSettings()


@dataclass(frozen=True)
class LESS(Selector):
    """Choose the rows of largest influence on their best subtask of the target."""

    direction: str = "less"  # of the candidates
    target_direction: str = "sgd"
    aggregation: Aggregation = Aggregation.MAX_SUBTASK
    target_end_of_turn: Weight = 0.0  # published: target rows carry no loss on it
    metric: Metric = Metric.EUCLIDEAN  # published; or whitened: by the inverse of the pool's second moment
    metric_shrinkage: float = 0.1  # over the mean eigenvalue of that moment
    metric_dim: int = 512  # leading directions that are scaled one by one, at most

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        self._metric()

    def _metric(self) -> MetricSettings:
        return MetricSettings(self.metric, self.metric_shrinkage, self.metric_dim)

    def select(self, problem: SelectionProblem) -> Selection:
        groups = group_target(problem, self.aggregation)
        similarity = influence(problem, groups, self.direction, self.target_direction, "LESS", self._metric())
        chosen, scores = choose_by_similarity(similarity, problem, self.aggregation)
        return Selection(chosen, unit_weights(len(chosen)), scores, {"groups": len(groups.names)})


def influence(
    problem: SelectionProblem,
    groups: Groups,
    direction: str,
    target_direction: str,
    selector: str,
    metric: MetricSettings = EUCLIDEAN,
) -> torch.Tensor:
    """Return the mean influence of every candidate on the target rows of every group, float32 [G, N].

    selector: its name, for messages.
    """
    pool, target, _ = pool_and_target(problem, direction, target_direction, selector)
    total = torch.zeros(len(groups.names), pool.n)
    for t, share in enumerate(checkpoint_shares(pool.learning_rates, CheckpointWeights.LEARNING_RATE)):
        rows, aims = pool.features(t, direction), target.features(t, target_direction)
        add_cosines(total, share, groups, rows, aims, metric.of(rows))
    check_similar(total)
    return total


def add_cosines(
    total: torch.Tensor, share: float, groups: Groups, pool: Rows, target: Rows, whitening: Whitening | None
) -> None:
    """Add to total [G, N] a share of every pool row's mean cosine with the target rows of every group, at one
    checkpoint."""
    sums = torch.zeros(len(groups.names), target.shape[1], dtype=torch.float64)
    for start, chunk in chunks_of(target):
        chunk = chunk if whitening is None else whitening.apply(chunk)
        groups.sums(unit_rows(chunk), start, sums)
    means = groups.means(sums).float()  # [G, dim]
    for start, chunk in chunks_of(pool):
        chunk = chunk if whitening is None else whitening.apply(chunk)
        total[:, start : start + len(chunk)] += share * (means @ unit_rows(chunk).T)
