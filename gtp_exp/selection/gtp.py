"""Gradient Trajectory Pursuit (Deng, Li, Li, arXiv 2410.16710): choose the rows that jointly reproduce the
target's gradient trajectory.

    min over w >= 0, ||w||_0 <= M of  1/2 ||A^T w - b||^2 + lam/2 ||w||^2

The paper's, as far as its abstract and reviews say: joint selection under an L0 constraint in an evolving
subspace along the trajectory, non-negative least squares, compressive sampling. Ours: every other option here.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch

from gtp_exp.errors import UserError
from gtp_exp.selection.base import Need, Selection, SelectionProblem
from gtp_exp.selection.cosamp import cosamp
from gtp_exp.selection.rounds import Filled, fill_budget
from gtp_exp.selection.subspace import Subspace
from gtp_exp.selection.trajectory import (
    CheckpointWeights,
    Normalise,
    Trajectory,
    require_directions,
    trajectory,
)


class TargetColumns(Enum):
    MEAN = "mean"  # one column: the mean of all target rows
    SUBTASKS = "subtasks"  # one column per Example.subtask; the columns share the chosen rows


class Weighting(Enum):
    SOLUTION = "solution"  # the pursuit's weights for the gradients themselves
    UNIFORM = "uniform"  # every chosen row counts the same


@dataclass(frozen=True)
class GTP:
    direction: str  # of the candidates' gradients: sgd, adam or less
    target_direction: str
    normalise: Normalise
    checkpoint_weights: CheckpointWeights
    subspace: Subspace
    subspace_dim: int  # per checkpoint
    subspace_rows: int  # pool rows that estimate the principal components, at most
    target_columns: TargetColumns
    ridge: float  # lam over the mean squared norm of the atoms
    candidates: float  # rows looked at per iteration, over the rows wanted
    max_iterations: int  # per pursuit
    tolerance: float  # relative fall of the objective below which a pursuit stops
    near_copy_cosine: float | None  # candidates closer than this to another one are passed over; null: off
    round_share: float  # rows per round at most, as a share of the atoms' dimension m
    max_rounds: int
    weighting: Weighting
    chunk_rows: int
    memory_gib: float  # sketches up to this size are held in memory

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        def need(ok: bool, key: str, remedy: str) -> None:
            if not ok:
                raise UserError(f"selector.{key}={getattr(self, key)} cannot be used; give {remedy}")

        need(self.ridge >= 0, "ridge", "0 or more")
        need(self.candidates >= 1, "candidates", "at least 1 (the paper's CoSaMP takes 2)")
        need(self.max_iterations >= 1, "max_iterations", "at least 1")
        need(0 <= self.tolerance < 1, "tolerance", "a share from 0 to below 1")
        need(self.subspace_dim >= 1, "subspace_dim", "at least 1")
        need(self.subspace_rows >= 1, "subspace_rows", "at least 1")
        need(0 < self.round_share <= 1, "round_share", "a share above 0, at most 1: rank is at most m")
        need(self.max_rounds >= 1, "max_rounds", "at least 1")
        need(self.chunk_rows >= 1, "chunk_rows", "at least 1")
        need(self.memory_gib >= 0, "memory_gib", "0 (always stream) or more")
        need(
            self.near_copy_cosine is None or 0 < self.near_copy_cosine <= 1,
            "near_copy_cosine",
            "a cosine above 0, at most 1, or null",
        )

    def select(self, problem: SelectionProblem) -> Selection:
        began = time.perf_counter()
        made = self._trajectory(problem)
        target, names = self._target(problem, made)
        correlation = alignment_with_target(made, target)
        rows = problem.budget.rows(len(problem.candidates))
        solve = functools.partial(self._solve, made, target, problem.n_tokens if rows is None else None)
        filled = fill_budget(
            solve,
            correlation=correlation,
            copies=made.copies,
            rows=rows,
            tokens=int(problem.budget.amount) if rows is None else 0,
            cost=problem.n_tokens if rows is None else None,
            round_rows=max(1, int(self.round_share * made.atoms.shape[1])),
            max_rounds=self.max_rounds,
        )
        weights = self._weights(made, filled)
        fitted = _combination(made, filled)
        left = torch.linalg.vector_norm(target - fitted, dim=0)
        diagnostics: dict[str, Any] = {
            "solver": "cosamp",
            "rows": len(filled.indices),
            **made.report,
            "ridge": self.ridge,
            "target_columns": names,
            "residual": float(torch.linalg.vector_norm(left) / torch.linalg.vector_norm(target)),
            "rounds": [r.summary() for r in filled.rounds],
            "rows_by_round": [len(r.support) for r in filled.rounds],
            "rows_by_fill": len(filled.indices) - filled.from_pursuit,
            "fill": filled.fill,
            "shortfalls": list(filled.shortfalls),
            "exact_copies_collapsed": made.copies.collapsed,
            "near_copies_suppressed": sum(len(r.near_copies) for r in filled.rounds),
            "effective_rows": float(weights.sum().square() / weights.square().sum()),
            "tokens": int(problem.n_tokens[filled.indices].sum()),
            "seconds": time.perf_counter() - began,
        }
        return Selection(filled.indices, weights, correlation, diagnostics)

    def _trajectory(self, problem: SelectionProblem) -> Trajectory:
        pool, target = problem.pool_gradients, problem.target_gradients
        in_domain = problem.target is None
        require_directions(pool, [self.direction], "GTP")
        assert pool is not None
        if in_domain and self.target_direction not in pool.directions:
            require_directions(pool, [self.target_direction], "GTP (in-domain)")
        if not in_domain:
            require_directions(target, [self.target_direction], "GTP's target side")
        return trajectory(
            pool,
            None if in_domain else target,
            problem.candidates,
            direction=self.direction,
            target_direction=self.target_direction,
            normalise=self.normalise,
            checkpoint_weights=self.checkpoint_weights,
            subspace=self.subspace,
            subspace_dim=self.subspace_dim,
            subspace_rows=self.subspace_rows,
            chunk_rows=self.chunk_rows,
            memory_gib=self.memory_gib,
            seed=problem.seed,
        )

    def _target(self, problem: SelectionProblem, made: Trajectory) -> tuple[torch.Tensor, list[str]]:
        """Target columns B float64 [m, S] and their names: always means, never sums."""
        if problem.target is None:
            n = made.atoms.shape[0]
            columns, names = made.atoms.combine(torch.full((n, 1), 1 / n)), ["pool"]
        else:
            assert made.target_rows is not None
            subtasks = [e.subtask for e in problem.target]
            if self.target_columns is TargetColumns.MEAN:
                subtasks = ["target"] * len(subtasks)
            columns, names = group_means(made.target_rows, subtasks)
        if not float(columns.square().sum()) > 0:
            raise UserError("the target gradient is zero, so no row can reproduce it; check the target rows")
        return columns, names

    def _solve(
        self,
        made: Trajectory,
        target: torch.Tensor,
        cost: torch.Tensor | None,
        *,
        available: torch.Tensor,
        size: int,
        capacity: int,
    ):
        live = made.atom_norms > 0
        return cosamp(
            made.atoms,
            target,
            size=size,
            ridge=self.ridge * float(made.atom_norms[live].square().mean()) if live.any() else 0.0,
            available=available,
            candidates=self.candidates,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            near_copy_cosine=self.near_copy_cosine,
            cost=cost,
            capacity=capacity,
        )

    def _weights(self, made: Trajectory, filled: Filled) -> torch.Tensor:
        """Training weights float32 [M], mean 1: those of the gradients before normalisation."""
        total = len(filled.indices)
        if self.weighting is Weighting.UNIFORM or not filled.from_pursuit:
            return torch.ones(total)
        chosen = filled.indices[: filled.from_pursuit]
        weights = filled.weights[: filled.from_pursuit].mean(1)
        weights = weights * made.atom_norms[chosen] / made.gradient_norms[chosen]  # divide the norm back
        weights = torch.cat([weights, weights.min().expand(total - len(chosen))])
        return (weights / weights.mean()).float()


def group_means(rows: torch.Tensor, groups: list[str]) -> tuple[torch.Tensor, list[str]]:
    """Mean row of each group, groups in sorted order: float64 [m, S] and the names."""
    names = sorted(set(groups))
    number = {name: s for s, name in enumerate(names)}
    member = torch.tensor([number[group] for group in groups])
    sums = torch.zeros(len(names), rows.shape[1], dtype=torch.float64).index_add_(0, member, rows.double())
    return (sums / torch.bincount(member)[:, None]).T.contiguous(), names


def alignment_with_target(made: Trajectory, target: torch.Tensor) -> torch.Tensor:
    """Score of every candidate float32 [N]: its correlation with the target; over subtasks, the mean."""
    return made.atoms.correlate(target.float()).mean(1)


def _combination(made: Trajectory, filled: Filled) -> torch.Tensor:
    """A^T W of the chosen rows: float64 [m, S]."""
    total = torch.zeros(made.atoms.shape[1], filled.weights.shape[1], dtype=torch.float64)
    for part, w in zip(filled.indices.split(4096), filled.weights.split(4096), strict=True):
        total += made.atoms.rows(part).double().T @ w
    return total
