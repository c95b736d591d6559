"""RDS+: Large-Scale Data Selection for Instruction Tuning (Ivison et al., arXiv 2503.01807).

Rows are represented by the untuned model's last hidden states, averaged with weights i / sum i over
positions i, prompt and answer together. Target rows take turns, each choosing the candidate of largest
cosine that is left.

Official code: github.com/hamishivi/automated-instruction-selection; pooling follows
minimal_multitask/compute_influence_cosinesim.py (`--pooling weighted_mean`) at commit 13bcaf3, the turns
get_top_influences.py at commit 06be5de. Ours: rows go through the model's own chat template, padding takes
no part, a target row whose best candidate is already taken chooses the next instead of losing its turn, and
the turns are in an order drawn by the seed.
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
class RDSPlus(Selector):
    """Choose the nearest neighbours of the target rows among position-weighted hidden states."""

    aggregation: Aggregation = Aggregation.ROUND_ROBIN
    batch_size: int = 16  # of the forward pass; no part of the result

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL})
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        check_batch_size(self.batch_size)

    def select(self, problem: SelectionProblem) -> Selection:
        return nearest(problem, Pooling.POSITION, self.aggregation, self.batch_size)
