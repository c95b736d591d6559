"""LESS: Selecting Influential Data for Targeted Instruction Tuning (Xia et al., arXiv 2402.04333).

Score of candidate i, with u(x) = x / |x|, mean learning rate eta_t of checkpoint t, subtasks s of the target:

    max_s  sum_t  eta_t / sum eta  <u(Gamma_t(g[t, i])),  mean_{j in s} u(g[t, j])>

Gamma is the Adam direction by the published formula (direction `less`); the target side is the plain gradient
(direction `sgd`). The candidates with the largest scores are chosen. Written from the paper's formulas. It
differs from the published settings where the gradients group does: the default sketch is a CountSketch with
an independent seed per checkpoint, not one Rademacher matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from gtp_exp.errors import UserError
from gtp_exp.selection.base import Need, Selection, SelectionProblem, unit_weights

CHUNK = 4096  # pool rows in memory at a time


@dataclass(frozen=True)
class LESS:
    direction: str  # of the candidates
    target_direction: str

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 1

    def select(self, problem: SelectionProblem) -> Selection:
        pool, target = problem.pool_gradients, problem.target_gradients
        assert pool is not None
        for direction in (self.direction, self.target_direction):
            if direction not in pool.directions:
                raise UserError(
                    f"LESS reads direction '{direction}' but the store holds {', '.join(pool.directions)}; "
                    "add it to gradients.directions"
                )
        rates = torch.tensor(pool.learning_rates, dtype=torch.float64)
        shares = (rates / rates.sum()).tolist()
        subtasks = [e.subtask for e in problem.target] if problem.target is not None else [""] * pool.n
        scores = torch.zeros(len(set(subtasks)), pool.n)
        for t, share in enumerate(shares):
            rows = (target or pool).features(t, self.target_direction)
            means = subtask_means(rows, subtasks)  # [S, dim]
            for start, chunk in pool.features(t, self.direction).chunks(CHUNK):
                influence = means @ F.normalize(chunk.float(), dim=1).T
                scores[:, start : start + len(chunk)] += share * influence
        score = scores.max(dim=0).values
        if not torch.isfinite(score).all():
            bad = problem.candidates[int((~torch.isfinite(score)).nonzero()[0])].id
            raise UserError(
                f"the gradient of example '{bad}' is not finite; remove the row or set model.precision=fp32"
            )
        order = torch.argsort(score, descending=True, stable=True)  # ties go to the lower index
        chosen = problem.budget.take(order, problem.n_tokens)
        return Selection(chosen, unit_weights(len(chosen)), score, {"subtasks": len(scores)})


def subtask_means(rows, subtasks: list[str]) -> torch.Tensor:
    """Mean of the L2-normalised rows of each subtask, subtasks in sorted order: [S, dim]."""
    names = sorted(set(subtasks))
    member = torch.tensor([names.index(s) for s in subtasks])
    sums = torch.zeros(len(names), rows.shape[1])
    for start, chunk in rows.chunks(CHUNK):
        sums.index_add_(0, member[start : start + len(chunk)], F.normalize(chunk.float(), dim=1))
    return sums / torch.bincount(member, minlength=len(names))[:, None]
