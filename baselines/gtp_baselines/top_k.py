"""Independent top-k: the rows whose own gradients are most similar to the target's mean gradient.

    score_i = sum_t eta_t / sum eta  s(Gamma(g[t, i]), mean over j of g[t, j]),     s = dot product or cosine

It is the first-order influence of one SGD step (TracIn; Pruthi et al., arXiv 2002.08484) on the mean target
loss, and the yardstick of joint selection: same gradients, same target, every row scored on its own. LESS
differs by normalising each target row and by its maximum over subtasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch

from gtp_baselines.gradient_rows import check_similar
from gtp_exp.decode import check_fields
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.gradients.unit import SHORTEST, unit_rows
from gtp_exp.selection.atoms.matrix import dot
from gtp_exp.selection.atoms.metric import Metric, MetricSettings
from gtp_exp.selection.atoms.sketches import CheckpointWeights, checkpoint_shares, require_directions
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights

CHUNK = 4096  # pool rows in memory at a time


class Similarity(Enum):
    """Name how a row's gradient is compared with the target's mean gradient."""

    DOT = "dot"  # favours large gradients, which often means short completions
    COSINE = "cosine"


@dataclass(frozen=True)
class TopK(Selector):
    """Choose the rows whose gradients are most similar to the target's mean, each on its own."""

    direction: str = "sgd"  # of the candidates
    target_direction: str = "sgd"
    similarity: Similarity = Similarity.COSINE
    target_end_of_turn: Weight = 1.0
    metric: Metric = Metric.EUCLIDEAN  # or whitened: by the inverse of the pool's second moment
    metric_shrinkage: float = 0.1  # over the mean eigenvalue of that moment
    metric_dim: int = 512  # leading directions that are scaled one by one, at most

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        self._metric()

    def _metric(self) -> MetricSettings:
        return MetricSettings(self.metric, self.metric_shrinkage, self.metric_dim)

    def select(self, problem: SelectionProblem) -> Selection:
        pool = problem.pool_gradients
        target = pool if problem.target is None else problem.target_gradients
        require_directions(pool, [self.direction], "top_k")
        require_directions(target, [self.target_direction], "top_k's target side")
        assert pool is not None and target is not None
        score = torch.zeros(pool.n)
        for t, share in enumerate(checkpoint_shares(pool.learning_rates, CheckpointWeights.LEARNING_RATE)):
            mean = torch.zeros(target.dim, dtype=torch.float64)
            for _, chunk in target.features(t, self.target_direction).chunks(CHUNK):
                mean += chunk.double().sum(0)
            mean = (mean / target.n).float()
            metric = self._metric().of(pool.features(t, self.direction))
            if metric is not None:
                mean = metric.apply(mean[None])[0]
            if self.similarity is Similarity.COSINE:
                mean = unit_rows(mean[None])[0]
            for start, chunk in pool.features(t, self.direction).chunks(CHUNK):
                chunk = chunk if metric is None else metric.apply(chunk.float())
                value = dot(chunk, mean[:, None])[:, 0]
                if self.similarity is Similarity.COSINE:
                    value /= torch.linalg.vector_norm(chunk.float(), dim=1).clamp(min=SHORTEST)
                score[start : start + len(chunk)] += share * value
        check_similar(score)
        order = torch.argsort(score, descending=True, stable=True)  # ties go to the lower index
        chosen = problem.budget.take(order, problem.n_tokens)
        return Selection(chosen, unit_weights(len(chosen)), score, {"similarity": self.similarity.value})
