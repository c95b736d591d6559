"""GIST: Targeted Data Selection for Instruction Tuning via Coupled Optimization Geometry (Min et al., arXiv
2602.18584).

The target's plain gradients at one checkpoint span a subspace, V their top right-singular vectors (rank 150
in the paper). Score of candidate i, with m_s the mean gradient of subtask s:

    max_s  cos(V g[i], V m_s)

Official code: github.com/GuanghuiMin/GIST; scoring follows gist/matching_gist.py at commit 1b37d4a (the
mean of a subtask's raw gradients first, then its norm). Its scripts take a rank per task (9 for TyDiQA in
the README). Ours: V is computed from sketches rather than whole gradients, so V lies in the sketch's space;
a rank above the number of target rows is cut to it; in-domain V comes from evenly spaced pool rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_baselines.aggregation import Aggregation, choose_by_similarity, group_target
from gtp_baselines.gradient_rows import check_similar, chunks_of, pool_and_target
from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.sketches import taken_checkpoint
from gtp_exp.selection.atoms.subspace import evenly_spaced, principal_rows
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class GIST(Selector):
    """Choose the rows whose gradients align best with the target's within the target's own subspace."""

    direction: str = "sgd"  # of candidates and target alike
    checkpoint: int = -1  # along the trajectory from 0; -1 is the last
    rank: int = 150
    subspace_rows: int = 8192  # target rows that estimate the subspace, at most
    aggregation: Aggregation = Aggregation.MAX_SUBTASK
    target_end_of_turn: Weight = 0.0  # published: target rows carry no loss on it

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        for name in ("rank", "subspace_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"selector.{name}={getattr(self, name)} spans no subspace; give at least 1")

    def select(self, problem: SelectionProblem) -> Selection:
        pool, target, target_rows = pool_and_target(problem, self.direction, self.direction, "GIST")
        t = taken_checkpoint(len(pool.learning_rates), self.checkpoint)
        groups = group_target(problem, self.aggregation)
        sums = torch.zeros(len(groups.names), target.dim, dtype=torch.float64)
        for start, chunk in chunks_of(target.features(t, self.direction)):
            groups.sums(chunk, start, sums)

        sample = evenly_spaced(target.features(t, self.direction), self.subspace_rows)
        basis = principal_rows(sample, self.rank, problem.seed)
        if not len(basis.vectors):
            raise UserError("the target's gradients are all zero, so they span no subspace")
        means = unit_rows(groups.means(sums).float() @ basis.vectors.T)  # [G, rank]
        alignment = torch.empty(len(means), pool.n)
        for start, chunk in chunks_of(pool.features(t, self.direction)):
            alignment[:, start : start + len(chunk)] = means @ unit_rows(chunk @ basis.vectors.T).T
        check_similar(alignment)
        chosen, scores = choose_by_similarity(alignment, problem, self.aggregation)
        diagnostics = {
            "checkpoint": t,
            "rank": len(basis.vectors),
            "explained": basis.explained,
            "groups": len(groups.names),
        }
        return Selection(chosen, unit_weights(len(chosen)), scores, diagnostics)
