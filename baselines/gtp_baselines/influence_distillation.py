"""Influence Distillation: Efficient Data Selection at Scale via Influence Distillation (Nikdan et al., arXiv
2505.19051), first order.

A step on candidates weighted by w lowers the target's loss, to first order, in proportion to p^T w, with p[i]
the product of candidate i's step and the target's gradient. The weights are

    argmax over w >= 0, sum w = N of  p^T w - lam/2 |w|^2   =   max(0, p - tau) / lam

so the rows of positive weight are those of largest p, and lam, through tau, says how many there are. As in
the official code, p is a cosine of projected gradients at one checkpoint, the candidate's an Adam step's.
Each target row j has a p of its own, and in turn each takes the candidate of largest p that is left:

    p[i, j] = cos(Gamma(g[i]), g[j])

Official code: github.com/MNikdan/influence_distillation at commit fdd5210 (infdist/distil.py), which chooses
in turns and gives out no weights: the weights above come with `use_objective` and one p for the whole target,
and of the paper only its beginning was at hand. Not here: its landmarks, which spread the p of 4,096 rows to
all others by a kernel ridge regression on JVP embeddings, for here every row's gradient is stored; and the
paper's second order, which the code lacks too. Ours: turns in one random order, not in another
each round; Gamma with momentum, where the code scales by the second moment alone; the parameters that
LoRA trains, not a subset of the MLPs'. In-domain the pool's mean is the one target row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_baselines.aggregation import Aggregation, choose_by_similarity, group_target
from gtp_baselines.gradient_rows import check_similar, pool_and_target
from gtp_baselines.less import add_cosines
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.selection.atoms.sketches import taken_checkpoint
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class InfluenceDistillation(Selector):
    """Choose the rows whose step at one checkpoint lowers the target rows' losses most, to first order."""

    direction: str = "less"  # of the candidates
    target_direction: str = "sgd"
    checkpoint: int = -1  # along the trajectory from 0; -1 is the last
    aggregation: Aggregation = Aggregation.ROUND_ROBIN
    use_objective: bool = False  # weigh rows by the objective's solution; needs aggregation mean
    target_end_of_turn: Weight = 1.0

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        if self.use_objective and self.aggregation is not Aggregation.MEAN:
            raise UserError(
                f"selector.use_objective needs one p for the whole target, and aggregation="
                f"{self.aggregation.value} has one per group; set selector.aggregation=mean"
            )

    def select(self, problem: SelectionProblem) -> Selection:
        pool, target, _ = pool_and_target(
            problem, self.direction, self.target_direction, "influence_distillation"
        )
        t = taken_checkpoint(len(pool.learning_rates), self.checkpoint)
        groups = group_target(problem, self.aggregation)
        rows, aims = pool.features(t, self.direction), target.features(t, self.target_direction)
        p = torch.zeros(len(groups.names), pool.n)
        add_cosines(p, 1.0, groups, rows, aims, None)
        check_similar(p)
        chosen, scores = choose_by_similarity(p, problem, self.aggregation)
        weights = objective_weights(scores, chosen) if self.use_objective else unit_weights(len(chosen))
        return Selection(chosen, weights, scores, {"checkpoint": t, "groups": len(groups.names)})


def objective_weights(p: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the solution w over its mean, float32 [M], for the largest lam that gives weight to no row but
    the chosen: tau is the largest p [N] among rows that are left out and not above the least one chosen.

    Rows are equal where all are chosen (lam has no bound then) or where no p is above tau.
    """
    left = torch.ones(len(p), dtype=torch.bool)
    left[chosen] = False
    left &= p <= p[chosen].min()  # a token budget leaves out better rows that do not fit
    if not left.any():
        return unit_weights(len(chosen))
    weights = (p[chosen].double() - p[left].max()).clamp(min=0)
    return (weights / weights.mean()).float() if (weights > 0).any() else unit_weights(len(chosen))
