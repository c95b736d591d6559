"""Pursue by compressive sampling matching pursuit with non-negative least squares.

CoSaMP (Needell and Tropp, 2009), in the non-negative form that Gradient Trajectory Pursuit uses (Deng, Li,
Li, arXiv 2410.16710): take the 2M atoms that correlate most with the residual, merge them with the support,
solve NNLS on the union, prune to the M largest, fit again. Ours: the warm starts, the Gram matrix kept across
iterations, pruning in stages, the suppression of near copies, and a token budget in place of M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_exp.decode import check_fields
from gtp_exp.selection.solvers.nnls import Columns
from gtp_exp.selection.solvers.pruning import contributions, fit_to_prune, prune
from gtp_exp.selection.solvers.pursuit import Pursuit, PursuitProblem, Search, require

EXACT = 1e-12  # relative residual at which nothing is left to pursue


@dataclass(frozen=True)
class Iterate:
    """Hold the support and its weights after an iteration."""

    columns: Columns
    weights: torch.Tensor  # float64 [k, S]
    residual: torch.Tensor  # float64 [m, S]
    objective: float
    kkt: float


@dataclass(frozen=True)
class CoSaMP:
    """Take many rows at once, fit them together and prune: the paper's solver."""

    candidates: float = 2.0  # rows looked at per iteration, over the rows wanted (the paper's 2)
    prune_stages: int = 4  # 1 is the paper's single prune; see `prune`
    max_iterations: int = 30
    tolerance: float = 0.02  # end when an iteration lowers the best objective by a smaller share

    name: ClassVar[str] = "cosamp"

    def __post_init__(self) -> None:
        check_fields(self, "selector.solver")
        require(
            self.candidates >= 1, "candidates", self.candidates, "at least 1 (the paper's CoSaMP takes 2)"
        )
        require(self.prune_stages >= 1, "prune_stages", self.prune_stages, "at least 1")
        require(self.max_iterations >= 1, "max_iterations", self.max_iterations, "at least 1")
        require(0 <= self.tolerance < 1, "tolerance", self.tolerance, "a share from 0 to below 1")

    def pursue(self, problem: PursuitProblem) -> Pursuit:
        """Return the rows and weights of the iteration with the lowest objective."""
        search = Search(problem)
        width = max(1, round(self.candidates * problem.size))
        columns = search.no_columns()
        weights = torch.empty(0, search.target.shape[1], dtype=torch.float64)
        residual = search.target
        best = Iterate(columns, weights, residual, 0.5 * search.energy, 0.0)

        for _ in range(self.max_iterations):
            # Proxy: the atoms most correlated with the residual, without those that are already in.
            index, rows = search.strongest(columns.ids, residual, width)
            if not len(index):
                break
            merged = search.join(columns, index, rows)

            # Merge, fit as well as pruning needs it, prune, fit exactly.
            warm = torch.cat([weights, weights.new_zeros(len(merged.ids) - len(weights), weights.shape[1])])
            fitted = fit_to_prune(merged, search.target, problem.ridge, warm)
            columns, weights, residual, kkt = prune(merged, fitted, problem, self.prune_stages)
            columns.cache.keep(columns.ids)

            objective = search.objective(weights, residual)
            search.curve.append(search.relative(residual))
            improved = objective < best.objective * (1 - self.tolerance)
            if objective < best.objective:
                best = Iterate(columns, weights, residual, objective, kkt)
            if not improved or search.curve[-1] < EXACT:
                break

        contribution = contributions(best.weights, best.columns)
        return search.finish(best.columns.ids, best.weights, best.residual, best.kkt, contribution)
