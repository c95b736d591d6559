"""GradMatch: Gradient Matching based Data Subset Selection for Efficient Deep Model Training (Killamsetty
et al., arXiv 2103.00123).

Non-negative orthogonal matching pursuit of the target's mean gradient b, with a ridge:

    min over w >= 0, ||w||_0 <= M of  ||A^T w - b||^2 + lam ||w||^2

One atom at a time joins, the one that correlates most with the residual, and all weights are fitted again.

Official code: github.com/decile-team/cords (cords/selectionstrategies/SL/gradmatchstrategy.py at commit
1595199, helpers/omp_solvers.py at 030c531; lam 0.5 in configs/SL/config_gradmatch_cifar10.py at 012b02d).
There gradients are those of the last layer, per class, taken anew in training, lam is absolute, a target is
a sum, a negative weight drops the most negative atom, and random rows fill the budget, weighing 1. Ours:
gradients of the whole trajectory, taken once; lam over the mean squared norm of the atoms; the exact
non-negative fit in place of the dropping; rows that correlate most with b fill the budget at the smallest
weight of the fit. Exact and near copies are atoms like any other, as there: collapsing them is GTP's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.selection.apart import Apart
from gtp_exp.selection.atoms.sketches import AtomSettings, Normalise, build_atoms
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector
from gtp_exp.selection.rounds import fill_budget
from gtp_exp.selection.solvers.omp import OMP
from gtp_exp.selection.solvers.pursuit import PursuitProblem


@dataclass(frozen=True)
class GradMatchOMP(Selector):
    """Choose rows one at a time by orthogonal matching pursuit of the target's gradient."""

    direction: str = "sgd"  # of the candidates
    target_direction: str = "sgd"
    normalise: Normalise = Normalise.NONE
    ridge: float = 0.5  # lam over the mean squared norm of the atoms
    chunk_rows: int = 4096
    # For sketches in memory: as float32 where that fits; or else rounded to a byte a number, by which the
    # same rows are found without passes over the store; or else none.
    memory_gib: float = 4.0

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        if not self.ridge > 0:
            raise UserError(
                f"selector.ridge={self.ridge} must be above 0: copies of a row are told apart by it"
            )
        if self.chunk_rows < 1 or self.memory_gib < 0:
            raise UserError(
                f"selector needs chunk_rows >= 1 and memory_gib >= 0; "
                f"got {self.chunk_rows}, {self.memory_gib}"
            )

    def select(self, problem: SelectionProblem) -> Selection:
        """Return the rows of one pursuit, then, up to the budget, those that correlate most with b."""
        settings = AtomSettings(
            direction=self.direction,
            target_direction=self.target_direction,
            normalise=self.normalise,
            collapse_copies=False,
            chunk_rows=self.chunk_rows,
            memory_gib=self.memory_gib,
        )
        data = build_atoms(problem, settings, "GradMatch")
        atoms, n = data.atoms, len(problem.candidates)
        if data.target_rows is None:
            b = atoms.combine(torch.full((n, 1), 1 / n))
        else:
            b = data.target_rows.double().mean(0)[:, None]
        if not float(b.square().sum()) > 0:
            raise UserError("the target gradient is zero, so no row can match it; check the target rows")
        scores = atoms.correlate(b.float())[:, 0]
        lam = self.ridge * float(data.atom_norms[data.atom_norms > 0].square().mean())

        rows = problem.budget.rows(n)
        cost = problem.n_tokens if rows is None else None
        filled = fill_budget(
            lambda available, size, capacity: OMP().pursue(
                PursuitProblem(atoms, b, size, lam, available=available, cost=cost, capacity=capacity)
            ),
            correlation=scores[:, None],
            apart=Apart(data.copies, atoms, None),
            rows=rows,
            tokens=int(problem.budget.amount) if rows is None else 0,
            cost=cost,
            round_rows=n,
            max_rounds=1,
        )
        weights = data.training_weights(filled.indices, filled.weights[:, 0])
        diagnostics: dict[str, Any] = {**data.report, **filled.report()}
        return Selection(filled.indices, weights, scores, diagnostics)
