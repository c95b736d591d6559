"""Hold what all solvers share: the problem, the result, and the steps that are the same for all."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from gtp_exp.distributed import Processes
from gtp_exp.errors import UserError
from gtp_exp.selection.atoms.duplicates import near_copies
from gtp_exp.selection.atoms.matrix import Atoms
from gtp_exp.selection.solvers.nnls import Columns, GramCache, columns_of

FEW = 16  # a pass over the pool is quicker than to read more than one row in so many by its index
SLACK = 64  # rows fetched beyond those asked for, so that float32 rounding cannot decide who is in


@dataclass(frozen=True)
class PursuitProblem:
    """Ask for at most `size` rows whose non-negative combination is closest to the target:

    min over W >= 0, at most `size` rows of which are not zero, of  1/2 ||A^T W - B||^2 + ridge/2 ||W||^2
    """

    atoms: Atoms  # A, N x m
    target: torch.Tensor  # B, float64 [m, S]
    size: int
    ridge: float
    available: torch.Tensor | None = None  # bool [N], rows that may be chosen; None: all
    near_copy_cosine: float | None = None  # rows closer than this to another candidate are passed over
    cost: torch.Tensor | None = None  # int64 [N], tokens of each row
    capacity: int = 0  # where rows cost, the chosen ones cost no more than this together
    correlation: torch.Tensor | None = None  # float32 [N, S], `correlate_own` of the target where it is known


@dataclass(frozen=True)
class Pursuit:
    """Hold the rows and weights at which one solver ended."""

    support: torch.Tensor  # int64 [k], largest contribution first
    weights: torch.Tensor  # float64 [k, S], >= 0, for the atoms as given
    contributions: torch.Tensor  # float64 [k], ||W_i|| ||a_i||
    objective: float
    residual: float  # ||B - A^T W|| / ||B||
    kkt: float  # of the last fit on the support, relative; see nnls.kkt_residual
    iterations: int
    seconds: float
    curve: tuple[float, ...]  # relative residual after each iteration
    near_copies: torch.Tensor  # int64, rows suppressed as near copies of other candidates
    fitted: torch.Tensor  # float64 [m, S], A^T W

    def summary(self) -> dict[str, float | int | list[float]]:
        """Return the figures of the pursuit as JSON values."""
        return {
            "rows": len(self.support),
            "objective": self.objective,
            "residual": self.residual,
            "kkt": self.kkt,
            "iterations": self.iterations,
            "seconds": self.seconds,
            "curve": list(self.curve),
            "near_copies": len(self.near_copies),
        }


class Solver(Protocol):
    """Solve a pursuit. A solver is a frozen dataclass that holds the options which it reads.

    One that fills the whole budget in one call, with equal weights and no ridge, says so by
    `whole_budget: ClassVar[bool] = True`; it is then asked once, and nothing is cross-validated.
    """

    name: ClassVar[str]  # of its YAML in conf/selector/solver, for diagnostics

    def pursue(self, problem: PursuitProblem) -> Pursuit:
        """Return at most `problem.size` rows, fewer where no further row would help."""
        ...


class Search:
    """Keep the state of one pursuit while a solver works on it: the rows that it may still take, and what is
    reported of it at the end.
    """

    def __init__(self, problem: PursuitProblem) -> None:
        self._began = time.perf_counter()
        self.problem = problem
        self.target = problem.target.double()
        self.energy = float(self.target.square().sum())
        self.curve: list[float] = []  # relative residual after each iteration
        self._suppressed: list[torch.Tensor] = []
        n = problem.atoms.shape[0]
        if problem.available is None:
            self._available = torch.ones(n, dtype=torch.bool)
        else:
            self._available = problem.available.clone()

    def no_columns(self) -> Columns:
        """Return an empty support."""
        m = self.problem.atoms.shape[1]
        return columns_of(torch.empty(0, m), torch.empty(0, dtype=torch.long), GramCache())

    def eligible(self, support: torch.Tensor, spent: int) -> torch.Tensor:
        """Return the rows outside the support int64 [k] that may be chosen and fit into the capacity, bool
        [N].
        """
        eligible = self._available.clone()
        eligible[support] = False
        if self.problem.cost is not None:
            eligible &= self.problem.cost <= self.problem.capacity - spent
        return eligible

    def strongest(
        self, support: torch.Tensor, residual: torch.Tensor, count: int, *, above: float = 0.0, spent: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows outside the support int64 [k] that correlate most with the residual [m, S]; see
        `strongest`.

        Rows that cost more than the capacity less what is spent are passed over.
        """
        eligible = self.eligible(support, spent)
        known = self.problem.correlation if torch.equal(residual, self.target) else None
        return strongest(self.problem.atoms, residual, eligible, count, above, known)

    def join(self, support: Columns, index: torch.Tensor, rows: torch.Tensor) -> Columns:
        """Return the support followed by further rows, without those that nearly repeat a row before them.

        Their cosines are with them.
        """
        joined = support.join(columns_of(rows, index, support.cache)).with_cosines(support.cosines)
        threshold = self.problem.near_copy_cosine
        if threshold is None:
            return joined
        assert joined.cosines is not None
        near = near_copies(joined.cosines, threshold, kept=len(support.ids))
        if not near.any():
            return joined
        self.suppress(joined.ids[near])
        return joined.select(~near)

    def suppress(self, near: torch.Tensor) -> None:
        """Take rows int64 [k] for near copies, which no later iteration may choose."""
        self._suppressed.append(near)
        self._available[near] = False

    def objective(self, weights: torch.Tensor, residual: torch.Tensor) -> float:
        """Return 1/2 ||residual||^2 + ridge/2 ||weights||^2."""
        ridge = self.problem.ridge
        return 0.5 * float(residual.square().sum()) + 0.5 * ridge * float(weights.square().sum())

    def relative(self, residual: torch.Tensor) -> float:
        """Return the norm of a residual [m, S] over that of the target."""
        return (float(residual.square().sum()) / self.energy) ** 0.5 if self.energy else 0.0

    def finish(
        self,
        ids: torch.Tensor,
        weights: torch.Tensor,
        residual: torch.Tensor,
        kkt: float,
        contributions: torch.Tensor,
    ) -> Pursuit:
        """Return the pursuit that ends with rows int64 [k] and their weights [k, S]; rows without a
        contribution leave.
        """
        order = top(contributions, len(contributions))
        none = torch.empty(0, dtype=torch.long)
        return Pursuit(
            support=ids[order],
            weights=weights[order],
            contributions=contributions[order],
            objective=self.objective(weights, residual),
            residual=self.relative(residual),
            kkt=kkt,
            iterations=len(self.curve),
            seconds=time.perf_counter() - self._began,
            curve=tuple(self.curve),
            near_copies=torch.cat(self._suppressed) if self._suppressed else none,
            fitted=self.target - residual,
        )


def require_one_column(target: torch.Tensor, solver: str) -> None:
    """Raise UserError for a target [m, S] of several columns, which only CoSaMP can pursue."""
    if target.shape[1] != 1:
        raise UserError(
            f"{solver} one target, not {target.shape[1]} columns; "
            "set selector.target_columns=mean or selector/solver=cosamp"
        )


def require(ok: bool, key: str, value: object, remedy: str) -> None:
    """Raise UserError for an option of the solver that cannot be used, naming its key and the remedy."""
    if not ok:
        raise UserError(f"selector.solver.{key}={value} cannot be used; give {remedy}")


def alignment(correlation: torch.Tensor) -> torch.Tensor:
    """Return one figure per row from its correlations [k, S] with the residual columns: the norm of the
    positive part, float [k].

    It is the fall of the objective that a small non-negative step along the row buys, per unit of step.
    """
    if correlation.shape[1] == 1:
        return correlation[:, 0].clamp(min=0)
    return torch.linalg.vector_norm(correlation.clamp(min=0), dim=1)


def top(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of the k largest positive values, largest first, equal values in order of their
    indices.
    """
    k = min(k, int((values > 0).sum()))
    if k == 0:
        return torch.empty(0, dtype=torch.long)
    kth = values.topk(k, sorted=True).values[-1]
    index = (values >= kth).nonzero().flatten()  # ascending, so a stable sort breaks ties by index
    return index[values[index].sort(descending=True, stable=True).indices[:k]]


def _top_of_all(values: torch.Tensor, k: int, processes: Processes) -> torch.Tensor:
    """Return `top` of the values of all processes, each of which holds those of its own rows and zeros
    elsewhere.

    Only the best of every process are sent, 2 k numbers each: who is among the best of all is among its own.
    """
    own = top(values, k)
    if processes.size == 1:
        return own
    offers = torch.zeros(processes.size, 2, k, dtype=torch.float64)
    offers[processes.rank, 0, : len(own)] = own.double()
    offers[processes.rank, 1, : len(own)] = values[own].double()
    index, value = processes.all_reduce(offers).transpose(0, 1).reshape(2, -1)
    order = index.argsort(stable=True)  # where values are equal the lower index comes first
    return index[order][top(value[order], k)].long()


def _aligned(atoms: Atoms, residual: torch.Tensor, available: torch.Tensor, k: int) -> torch.Tensor:
    """Return `alignment` of this process's rows with a residual [m, S], float [N], where it is needed: it is
    0 for rows that rounded ones in memory show not to be among the k largest of the available.
    """
    bounds = atoms.bounds(residual)
    if bounds is not None:
        low, high = (torch.where(available, alignment(bound), 0.0) for bound in bounds)
        surely = low[top(low, k)]
        least = surely[-1] if len(surely) == k else 0.0
        index = ((high > 0) & (high >= least)).nonzero().flatten()
        if len(index) * FEW <= len(atoms.own):
            values = torch.zeros_like(high)
            values[index] = alignment(atoms.correlate_some(index, residual))
            return values
    return alignment(atoms.correlate_own(residual))


def strongest(
    atoms: Atoms,
    residual: torch.Tensor,
    available: torch.Tensor,
    k: int,
    above: float = 0.0,
    correlation: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k available rows that correlate most with the residual [m, S], and more than `above`: index
    int64 [<= k] and their atoms float32 [<= k, m]. Takes one pass over the pool, or none where rounded rows
    are in memory or the correlation float32 [N, S] of this process's rows with the residual is given.

    The float32 pass proposes k and some more, float64 products of those rows decide: chunking, threads and
    the storage's product kernel change the last bits of the pass, but not the answer.
    """
    if correlation is None:
        values = _aligned(atoms, residual.float(), available, k + SLACK)
    else:
        values = alignment(correlation)
    values = torch.where(available & (values > above), values, 0.0)
    proposed = _top_of_all(values, k + SLACK, atoms.processes).sort().values
    rows = atoms.rows(proposed)
    best = top(alignment(rows.double() @ residual.double()), k)
    return proposed[best], rows[best]
