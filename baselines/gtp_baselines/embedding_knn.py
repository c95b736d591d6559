"""Nearest neighbours of the target rows among mean-pooled embeddings, the plain form of
representation-based selection (RDS in LESS, arXiv 2402.04333, takes the last token's state instead of the
mean).

Rows are represented by the mean of the untuned model's last hidden states over all tokens, compared by
cosine. With turns (round_robin) M chosen rows are the M / n nearest neighbours of each of n target rows.
Ours throughout; `rds_plus` differs in the positions' weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gtp_baselines.aggregation import Aggregation
from gtp_baselines.model_passes import Pooling, check_batch_size
from gtp_baselines.neighbours import nearest
from gtp_exp.decode import check_fields
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector


@dataclass(frozen=True)
class EmbeddingKNN(Selector):
    """Choose the nearest neighbours of the target rows among mean-pooled hidden states."""

    aggregation: Aggregation = Aggregation.ROUND_ROBIN
    batch_size: int = 16  # of the forward pass; no part of the result

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL})
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        check_batch_size(self.batch_size)

    def select(self, problem: SelectionProblem) -> Selection:
        return nearest(problem, Pooling.MEAN, self.aggregation, self.batch_size)
