"""Perplexity of the answers under the untuned model: the highest, the middle or the lowest.

When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale (Marion et al., arXiv
2309.04564) keeps the top, middle or bottom of the distribution; for instruction tuning see
Compute-Constrained Data Selection (Yin and Rush, arXiv 2410.16208) and Ivison et al. (arXiv 2503.01807),
whose minimal_multitask/compute_influence_perplexity.py
(github.com/hamishivi/automated-instruction-selection, commit 404a9b7) takes the loss of the whole text.
Ours takes the answer's tokens, given the prompt: they are what training learns. The target plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch

from gtp_baselines.model_passes import check_batch_size, labelled_loss, tokens_of
from gtp_baselines.ranking import rank, toward_middle
from gtp_exp.decode import check_fields
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


class LossRange(Enum):
    """Name the part of the distribution of losses that is chosen."""

    TOP = "top"  # the rows that surprise the model most
    MIDDLE = "middle"  # around the median
    BOTTOM = "bottom"


@dataclass(frozen=True)
class Perplexity(Selector):
    """Choose rows by how much their answers surprise the untuned model."""

    part: LossRange = LossRange.MIDDLE
    batch_size: int = 16  # of the forward pass; no part of the result

    needs: ClassVar[frozenset[Need]] = frozenset({Need.MODEL})
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        check_batch_size(self.batch_size)

    def select(self, problem: SelectionProblem) -> Selection:
        assert problem.model is not None
        tokens = tokens_of(problem.candidates, problem.model, problem.candidate_tokens)
        nats = labelled_loss(tokens, problem.model, batch_size=self.batch_size, label="perplexity")
        scores = self.score(nats, rank(nats, problem))
        chosen = problem.budget.take(rank(scores, problem), problem.n_tokens)
        diagnostics = {"nats_per_token": float(nats.mean()), "of_chosen": float(nats[chosen].mean())}
        return Selection(chosen, unit_weights(len(chosen)), scores.float(), diagnostics)

    def score(self, nats: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """float64 [N], larger is better. order: the rows by nats, largest first."""
        if self.part is LossRange.TOP:
            return nats
        if self.part is LossRange.BOTTOM:
            return -nats
        return toward_middle(order)
