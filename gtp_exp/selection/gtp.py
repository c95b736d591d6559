"""Choose the rows that jointly reproduce the target's gradients along a training trajectory: Gradient
Trajectory Pursuit (Deng, Li, Li, arXiv 2410.16710).

    min over w >= 0, ||w||_0 <= M of  1/2 ||A^T w - b||^2 + lam/2 ||w||^2

The paper's, as far as its abstract and reviews say: joint selection under an L0 constraint in an evolving
subspace along the trajectory, non-negative least squares, compressive sampling. Ours: the ridge and its
cross-validation, rounds and fill, the other solvers, and every option without a counterpart above.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, Optional

import torch
from tqdm import tqdm

from gtp_exp.decode import check_fields
from gtp_exp.errors import UserError
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.selection.alike import alike_rows
from gtp_exp.selection.apart import Apart
from gtp_exp.selection.atoms.metric import Metric, MetricSettings
from gtp_exp.selection.atoms.sketches import (
    GIB,
    AtomSettings,
    CheckpointWeights,
    Normalise,
    PursuitData,
    build_atoms,
)
from gtp_exp.selection.atoms.subspace import Subspace
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector
from gtp_exp.selection.cross_validation import (
    MORE_SIZES,
    Fold,
    RegularisationChoice,
    choose,
    correlated,
    group_means,
    pool_folds,
    target_folds,
)
from gtp_exp.selection.partitioned import select_in_parts
from gtp_exp.selection.rounds import Filled, fill_budget, refit
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.elastic_net import ElasticNet
from gtp_exp.selection.solvers.greedy import Greedy
from gtp_exp.selection.solvers.omp import OMP, BlockOMP
from gtp_exp.selection.solvers.pursuit import Pursuit, PursuitProblem, Solver

log = logging.getLogger(__name__)

REFIT_BYTES = 12  # of a number of a chosen row in the last fit: as float32 and as float64
REFIT_MOST = 4 * GIB  # fixed, not `memory_gib`: how much memory a machine has must not change the weights

SOLVERS = {solver.name: solver for solver in (CoSaMP, OMP, BlockOMP, ElasticNet, Greedy)}  # by their words


class TargetColumns(Enum):
    """Say which target columns the chosen rows reproduce."""

    MEAN = "mean"  # one column: the mean of all target rows
    SUBTASKS = "subtasks"  # one column per Example.subtask; the columns share the chosen rows
    ROWS = "rows"  # one column per target row, so that none is lost in a mean


class Regularisation(Enum):
    """Say where the ridge and the rows per round come from."""

    FIXED = "fixed"  # the ridge and the rows per round as given
    CROSS_VALIDATION = "cross_validation"  # chosen; as given with too few target rows, or in their span


class Weighting(Enum):
    """Say how much each chosen row counts in training."""

    SOLUTION = "solution"  # the fit's weights for the gradients themselves
    UNIFORM = "uniform"  # every chosen row counts the same


@dataclass(frozen=True)
class GTP(Selector):
    """Choose rows whose weighted gradients reproduce the target's, at every checkpoint of the warm-up."""

    checkpoints: Optional[list[int]] = None  # along the trajectory from 0, -1 the last; null takes all
    direction: str = "sgd"  # of the candidates' gradients: sgd, adam or less
    target_direction: str = "sgd"
    # beside the content of target rows: 0 leaves it out, or "balanced"
    target_end_of_turn: Weight = 1.0  # type: ignore[override]  # frozen
    normalise: Normalise = Normalise.ATOM
    checkpoint_weights: CheckpointWeights = CheckpointWeights.LEARNING_RATE
    subspace: Subspace = Subspace.NONE
    subspace_dim: int = 512  # per checkpoint
    subspace_rows: int = 8192  # pool rows that estimate the principal components, at most
    target_columns: TargetColumns = TargetColumns.MEAN
    solver: Solver = field(default_factory=CoSaMP)  # of one round; see selection/solvers
    regularisation: Regularisation = Regularisation.FIXED
    ridge: float = 0.3  # lam over the mean squared norm of the atoms
    # Those that cross-validation may choose, ascending.
    ridges: list[float] = field(default_factory=lambda: [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
    folds: int = 4
    collapse_copies: bool = True  # of rows with equal gradients only the first is a candidate
    # Candidates closer than this to another one are passed over; null: off.
    near_copy_cosine: Optional[float] = 0.98
    round_rows: int = 256  # rows per round at most; never more than half the atoms' dimension
    max_rounds: int = 256
    weighting: Weighting = Weighting.SOLUTION
    partitions: int = 1  # above 1: choose within so many parts of the pool, then among what they chose
    chunk_rows: int = 4096  # rows read from the store at a time
    # For sketches in memory: as float32 where that fits; or else rounded to a byte a number, by which the
    # same rows are found without passes over the store; or else none.
    memory_gib: float = 4.0
    metric: Metric = Metric.EUCLIDEAN  # or whitened: by the inverse of the pool's second moment
    metric_shrinkage: float = 0.1  # over the mean eigenvalue of that moment
    metric_dim: int = 512  # leading directions that are scaled one by one, at most

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 7
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", _as_solver(self.solver))
        check_fields(self, "selector")
        self._metric()

        def need(ok: bool, key: str, remedy: str) -> None:
            if not ok:
                raise UserError(f"selector.{key}={getattr(self, key)} cannot be used; give {remedy}")

        for key in (
            "subspace_dim",
            "subspace_rows",
            "round_rows",
            "max_rounds",
            "partitions",
            "chunk_rows",
        ):
            need(getattr(self, key) >= 1, key, "at least 1")
        need(self.ridge >= 0, "ridge", "0 or more")
        ascending = all(a < b for a, b in zip(self.ridges, self.ridges[1:], strict=False))
        need(
            len(self.ridges) > 0 and min(self.ridges) >= 0 and ascending,
            "ridges",
            "ridges of 0 or more, ascending",
        )
        need(self.checkpoints is None or len(self.checkpoints) > 0, "checkpoints", "at least one, or null")
        need(self.folds >= 2, "folds", "at least 2")
        need(self.memory_gib >= 0, "memory_gib", "0 (always stream) or more")
        need(
            self.near_copy_cosine is None or 0 < self.near_copy_cosine <= 1,
            "near_copy_cosine",
            "a cosine above 0, at most 1, or null",
        )

    def select(self, problem: SelectionProblem) -> Selection:
        """Return exactly the budget's rows, those of the first round first, and their weights."""
        if self.partitions > 1:
            within = replace(self, partitions=1)
            return select_in_parts(within, problem, self.partitions, self.direction)
        began = time.perf_counter()
        rows, n = problem.budget.rows(len(problem.candidates)), len(problem.candidates)
        data = self.pursuit_data(problem)  # A and the target rows
        target, names = self.target(problem, data)  # B
        correlation = data.atoms.correlate_own(target.float())
        of_all = data.atoms.processes.all_reduce(correlation)  # of every process's rows
        scores = of_all.mean(1)
        scale = float(data.atom_norms[data.atom_norms > 0].square().mean())  # of the ridge

        # How much to regularise, and where one round stops.
        at_once, most = self._at_once(), n if rows is None else rows
        round_rows = most if at_once else min(self.round_rows, most, max(1, data.atoms.shape[1] // 2))
        choice, why_not = self._cross_validate(problem, data, round_rows, scale)
        ridge, round_rows = (choice.ridge, choice.rows) if choice else (self.ridge, round_rows)

        # Pursue in rounds, fill what is left, fit the weights of all chosen rows together.
        cost = problem.n_tokens if rows is None else None
        whole = PursuitProblem(
            data.atoms,
            target,
            round_rows,
            ridge * scale,
            near_copy_cosine=self.near_copy_cosine,
            cost=cost,
            correlation=correlation,
        )
        filled = fill_budget(
            lambda available, size, capacity: self.solver.pursue(
                replace(whole, available=available, size=size, capacity=capacity)
            ),
            correlation=of_all,
            apart=Apart(data.copies, data.atoms, self.near_copy_cosine),
            rows=rows,
            tokens=int(problem.budget.amount) if rows is None else 0,
            cost=cost,
            round_rows=round_rows,
            max_rounds=1 if at_once else self.max_rounds,
        )
        final = None
        if not at_once and (held := len(filled.indices) * data.atoms.shape[1] * REFIT_BYTES) <= REFIT_MOST:
            final = refit(data.atoms, target, filled, ridge * scale)
        elif not at_once and problem.processes.main:
            log.warning(
                "GTP: the weights are the rounds' average, as a last fit of all %s rows would hold %.0f GiB",
                f"{len(filled.indices):,}",
                held / GIB,
            )
        weights = self._weights(data, filled, filled.weights if final is None else final.weights)

        diagnostics: dict[str, Any] = {
            "solver": self.solver.name,
            "rows": len(filled.indices),
            "tokens": int(problem.n_tokens[filled.indices].sum()),
            **data.report,
            "target_columns": names,
            "ridge": ridge,
            "round_rows": round_rows,
            "cross_validation": None if choice is None else [point.report() for point in choice.curve],
            "cross_validation_skipped": why_not,
            **filled.report(),
            "exact_copies_collapsed": data.copies.collapsed,
            "refit": None if final is None else final.report(),
            "effective_rows": float(weights.sum().square() / weights.square().sum()),
            "seconds": time.perf_counter() - began,
        }
        return Selection(filled.indices, weights, scores, diagnostics)

    def pursuit_data(self, problem: SelectionProblem) -> PursuitData:
        """Return the atoms of the problem's candidates and its target rows."""
        settings = AtomSettings(
            checkpoints=self.checkpoints,
            direction=self.direction,
            target_direction=self.target_direction,
            normalise=self.normalise,
            checkpoint_weights=self.checkpoint_weights,
            subspace=self.subspace,
            subspace_dim=self.subspace_dim,
            subspace_rows=self.subspace_rows,
            collapse_copies=self.collapse_copies,
            chunk_rows=self.chunk_rows,
            memory_gib=self.memory_gib,
            metric=self._metric(),
        )
        return build_atoms(problem, settings, "GTP")

    def _metric(self) -> MetricSettings:
        return MetricSettings(self.metric, self.metric_shrinkage, self.metric_dim)

    def target(self, problem: SelectionProblem, data: PursuitData) -> tuple[torch.Tensor, list[str]]:
        """Return the target columns B float64 [m, S] and their names: always means, never sums."""
        if problem.target is None:
            n = data.atoms.shape[0]
            columns, names = data.atoms.combine(torch.full((n, 1), 1 / n)), ["pool"]
        else:
            assert data.target_rows is not None
            names = sorted(set(self._groups(problem)))
            columns = group_means(data.target_rows, self._groups(problem), names)
        if not float(columns.square().sum()) > 0:
            raise UserError("the target gradient is zero, so no row can reproduce it; check the target rows")
        return columns, names

    def _groups(self, problem: SelectionProblem) -> list[str]:
        """Return the name of the target column that each target row belongs to."""
        assert problem.target is not None
        if self.target_columns is TargetColumns.MEAN:
            return ["target"] * len(problem.target)
        if self.target_columns is TargetColumns.ROWS:
            digits = len(str(len(problem.target)))
            return [f"row {i:0{digits}}" for i in range(len(problem.target))]
        return [example.subtask for example in problem.target]

    def _cross_validate(
        self, problem: SelectionProblem, data: PursuitData, round_rows: int, scale: float
    ) -> tuple[RegularisationChoice | None, str | None]:
        """Return the choice, or None and the reason why the ridge is the configured one."""
        folds = self._folds(problem, data)
        if isinstance(folds, str):
            if self.regularisation is Regularisation.CROSS_VALIDATION and problem.processes.main:
                instead = "" if self._at_once() else f"; selector.ridge={self.ridge:g} is taken as it is"
                log.warning("GTP: nothing is cross-validated: %s%s", folds, instead)
            return None, folds
        originals = data.copies.multiplicity > 0
        folds = correlated(data.atoms, folds)

        # The search ends early where the error rises again, so the total is the most that it may take.
        most = len(folds) * (len(self.ridges) + MORE_SIZES)
        with tqdm(total=most, desc="GTP: choosing the ridge", unit="pursuit", delay=2.0) as progress:

            def solve(fold: Fold, rows: int, ridge: float) -> Pursuit:
                pursuit = self.solver.pursue(
                    PursuitProblem(
                        data.atoms,
                        fold.train,
                        rows,
                        ridge * scale,
                        available=originals if fold.available is None else originals & fold.available,
                        near_copy_cosine=self.near_copy_cosine,
                        correlation=fold.correlation,
                    )
                )
                progress.update()
                return pursuit

            choice = choose(solve, folds, round_rows, self.ridges)
            progress.total = progress.n
        if problem.processes.main:
            for doubt in choice.doubts(self.ridges):
                log.warning("GTP: %s", doubt)
        return choice, None

    def _folds(self, problem: SelectionProblem, data: PursuitData) -> list[Fold] | str:
        """Return the folds of cross-validation, or the reason why there is none."""
        if self._at_once():
            return f"the solver {self.solver.name} has no ridge and no rounds"
        if self.regularisation is Regularisation.FIXED:
            return "selector.regularisation=fixed"
        if problem.target is None:
            return pool_folds(data.atoms, data.copies.representative, self.folds, problem.seed)
        if self.target_columns is TargetColumns.ROWS:
            return "selector.target_columns=rows leaves no row of a column to be held out"
        if self.subspace is Subspace.SVD:
            return "selector.subspace=svd is spanned by the rows that a fold holds out, too"
        assert data.target_rows is not None
        alike = alike_rows(problem.target, data.target_rows, self.near_copy_cosine)
        return target_folds(data.target_rows, self._groups(problem), self.folds, problem.seed, alike)

    def _at_once(self) -> bool:
        """Tell whether the solver fills the whole budget in one call, with equal weights."""
        return getattr(self.solver, "whole_budget", False)

    def _weights(self, data: PursuitData, filled: Filled, solution: torch.Tensor) -> torch.Tensor:
        """Return the training weights float32 [M], mean 1, from those of the fit float64 [M, S]."""
        if self.weighting is Weighting.UNIFORM or self._at_once():
            return torch.ones(len(solution))
        return data.training_weights(filled.indices, solution.sum(1))


def _as_solver(given: Any) -> Any:
    """Return a solver as it is, or the one that a word stands for, with the values of its YAML."""
    if isinstance(given, str) and given in SOLVERS:
        return SOLVERS[given]()
    if isinstance(given, type):
        raise UserError(f"selector.solver={given.__name__} is a class; give an object, {given.__name__}()")
    if not hasattr(given, "pursue"):
        raise UserError(
            f"selector.solver={given!r} is no solver; give one of {', '.join(SOLVERS)}, or an object such as "
            "OMP() of gtp_exp.selection.solvers.omp"
        )
    return given
