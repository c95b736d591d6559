"""Solve non-negative least squares on the columns a pursuit looks at, exactly to its optimality conditions.

    min over w >= 0 of  1/2 ||A^T w - b||^2 + lam/2 ||w||^2 + l1 sum w,     A [n, m] holds one atom per row

The method is a monotone block active set. A short accelerated projected gradient guesses the support. Then,
from a feasible passive set, the atoms of negative gradient join (all, or a block of the worst), the problem
on the passive set is solved by Cholesky, what turned negative leaves, and the new set is accepted only if the
objective fell; otherwise the block is halved, down to the single exchange of Lawson and Hanson (Solving Least
Squares Problems, 1974, ch. 23), which always makes progress. So it cannot cycle, as block principal pivoting
does with more columns than m and a small ridge. The Gram matrix is formed only for atoms that were ever
passive.

The ridge enters the true problem: its gradient is A (A^T w - b) + lam w. Solving the normal equations
(A A^T + lam I) w = A b as if they were plain non-negative least squares finds another support.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gtp_exp.selection.solvers.wide import WideSystem

log = logging.getLogger(__name__)

DEPENDENT = 1e-11  # squared pivot of a unit column below which it lies in the span of the passive ones
APART = 1e-2  # ridge of a unit column above which any columns are well conditioned
TOLERANCE = 1e-9  # gradient of a unit column, relative to the largest correlation, that counts as zero
WARM_STEPS = 40  # of projected gradient, before the active set takes over
PATIENCE = 40  # factorisations after which a small ridge calls for Newton's method on the dual
NEWTON_STEPS = 200
MOST_ITERATIONS = 1000  # factorisations, far beyond what was ever needed
POWER_STEPS = 6  # power iterations for the step length
TRIED = 16  # of the worst columns, one by one: where these lower nothing, hundreds more seldom do
FALL = 1 - 1e-12  # an objective must fall by more than rounding to count

Solution = tuple[torch.Tensor, torch.Tensor]  # passive columns int64 [p] and their values float64 [p]


@dataclass(frozen=True)
class NNLS:
    """Hold a solution of non-negative least squares."""

    weights: torch.Tensor  # float64 [n], >= 0
    residual: torch.Tensor  # float64 [m], b - A^T w
    kkt: float  # largest violation of the optimality conditions, relative; see `kkt_residual`
    iterations: int  # Cholesky factorisations


class GramCache:
    """Keep the unit rows that were passive and their Gram matrix by atom id, for all solves of a pursuit."""

    def __init__(self) -> None:
        self._slot: dict[int, int] = {}
        self._rows = torch.empty(0, 0, dtype=torch.float64)
        self._gram = torch.empty(0, 0, dtype=torch.float64)

    def gram(self, ids: torch.Tensor, rows: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """Return the Gram matrix [k, k] of the unit rows known as ids [k].

        rows(positions) gives rows [., m] float64 for positions in ids; only new ones are asked for.
        """
        keys = ids.tolist()
        new = [k for k, key in enumerate(keys) if key not in self._slot]
        if new:
            used, needed = len(self._slot), len(self._slot) + len(new)
            fresh = rows(new)
            self._grow(used, needed, fresh)
            self._rows[used:needed] = fresh
            for offset, k in enumerate(new):
                self._slot[keys[k]] = used + offset
            block = self._rows[:needed] @ fresh.T
            self._gram[:needed, used:needed] = block
            self._gram[used:needed, :needed] = block.T
        slots = torch.tensor([self._slot[key] for key in keys])
        return submatrix(self._gram, slots)

    def keep(self, ids: torch.Tensor) -> None:
        """Forget all rows but these: a row new to the cache is multiplied with every row in it."""
        known = [key for key in ids.tolist() if key in self._slot]
        slots = torch.tensor([self._slot[key] for key in known], dtype=torch.long)
        if len(known) < len(self._slot):
            self._rows[: len(known)] = self._rows[slots]
            self._gram[: len(known), : len(known)] = submatrix(self._gram, slots)
            self._slot = {key: k for k, key in enumerate(known)}

    def _grow(self, used: int, needed: int, like: torch.Tensor) -> None:
        capacity = len(self._rows)
        if needed <= capacity:
            return
        capacity = max(needed, 3 * capacity // 2)
        rows, gram = like.new_empty(capacity, like.shape[1]), like.new_empty(capacity, capacity)
        if used:
            rows[:used] = self._rows[:used]
            gram[:used, :used] = self._gram[:used, :used]
        self._rows, self._gram = rows, gram


@dataclass(frozen=True)
class Columns:
    """Hold the columns of one or several solves, at unit norm: u_i = ||a_i|| w_i is what is solved for."""

    unit: torch.Tensor  # float64 [n, m]; a zero row stays zero
    norms: torch.Tensor  # float64 [n]
    ids: torch.Tensor  # int64 [n], the rows' names in `cache`
    cache: GramCache
    cosines: torch.Tensor | None = None  # float32 [n, n], their Gram matrix where somebody needed it

    def select(self, keep: torch.Tensor) -> Columns:
        """Return the columns at the positions int64, or where bool [n] is true."""
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        cosines = None if self.cosines is None else submatrix(self.cosines, keep)
        return Columns(self.unit[keep], self.norms[keep], self.ids[keep], self.cache, cosines)

    def join(self, other: Columns) -> Columns:
        """Return these columns followed by others."""
        return Columns(
            torch.cat([self.unit, other.unit]),
            torch.cat([self.norms, other.norms]),
            torch.cat([self.ids, other.ids]),
            self.cache,
        )

    def with_cosines(self, known: torch.Tensor | None = None) -> Columns:
        """Return the columns with all their cosines; known [k, k] are those of the first k columns."""
        if self.cosines is not None:
            return self
        unit = self.unit.float()
        first = 0 if known is None else len(known)
        cosines = unit.new_empty(len(unit), len(unit))
        cosines[:, first:] = unit @ unit[first:].T
        cosines[first:, :first] = cosines[:first, first:].T
        if known is not None:
            cosines[:first, :first] = known
        return replace(self, cosines=cosines)


def submatrix(matrix: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return the rows and the columns of a matrix [n, n] at the positions int64 [k]: [k, k]."""
    return matrix.index_select(0, keep).index_select(1, keep)


def columns_of(rows: torch.Tensor, ids: torch.Tensor, cache: GramCache) -> Columns:
    """Scale rows [n, m] of any floating type to unit norm; `cache` knows them by ids int64 [n]."""
    unit = rows.to(torch.float64, copy=True)
    norms = torch.linalg.vector_norm(unit, dim=1)
    return Columns(unit.div_(norms.clamp(min=1e-300)[:, None]), norms, ids, cache)


def kkt_residual(
    rows: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, ridge: float = 0.0, l1: float = 0.0
) -> float:
    """Return the largest violation of the optimality conditions, whatever the scale of a column or of b.

    With g = A (A^T w - b) + lam w + l1: |g_i| / ||a_i|| where w_i > 0, max(0, -g_i) / ||a_i|| where w_i = 0,
    over the largest positive correlation max_i a_i.b / ||a_i||. Computed in float64, from the rows alone.
    """
    rows, target, weights = rows.double(), target.double(), weights.double()
    norms = torch.linalg.vector_norm(rows, dim=1)
    norms = torch.where(norms > 0, norms, 1.0)  # a zero column must not have weight either, given a ridge
    gradient = rows @ (rows.T @ weights - target) + ridge * weights + l1
    violation = torch.where(weights > 0, gradient.abs(), (-gradient).clamp(min=0)) / norms
    worst = float(violation.max()) if len(rows) else 0.0
    largest = float(((rows @ target) / norms).clamp(min=0).max()) if len(rows) else 0.0
    if largest == 0:
        return float("inf") if worst > 0 else 0.0
    return worst / largest


def nnls(
    rows: torch.Tensor,
    target: torch.Tensor,
    *,
    ridge: float = 0.0,
    l1: float = 0.0,
    start: torch.Tensor | None = None,
) -> NNLS:
    """Solve for w [n] given rows [n, m] and target [m] of any floating type; arithmetic is float64.

    start [n] >= 0 is a warm start.
    """
    columns = columns_of(rows, torch.arange(len(rows)), GramCache())
    return nnls_of_columns(columns, target, ridge=ridge, l1=l1, start=start)


def nnls_of_columns(
    columns: Columns,
    target: torch.Tensor,
    *,
    ridge: float,
    l1: float = 0.0,
    start: torch.Tensor | None = None,
    guess: bool = True,
) -> NNLS:
    """Solve as `nnls` does, on prepared columns, so that a pursuit's many solves share their Gram matrix.

    guess: refine the start by projected gradient; leave it out when the start is close to the solution.
    """
    active = _ActiveSet(columns, target.double(), ridge, l1)
    if active.nothing_to_fit():
        return NNLS(active.zero, active.target.clone(), 0.0, 0)
    current = active.feasible(active.first_passive(start, guess))
    value, block, newton = active.objective(current), len(active.unit), False
    while active.iterations < MOST_ITERATIONS:
        if ridge > 0 and not newton and active.iterations > PATIENCE:
            # Many more columns than m and a small ridge: exchanges of a few columns creep, the dual does not.
            newton = True
            trial = active.feasible(active.passive_by_dual(current))
            if active.objective(trial) < value:
                current, value, block = trial, active.objective(trial), len(active.unit)
                continue
        better, block = active.descend(current, value, block)
        if better is None or not active.objective(better) < value * FALL:
            return active.answer(current)  # no violation, or no descent left in float64
        current, value = better, active.objective(better)
    answer = active.answer(current)
    log.warning(
        "a non-negative fit of %d rows ended after %d factorisations, %.1e from optimal; raise the ridge",
        len(columns.ids),
        answer.iterations,
        answer.kkt,
    )
    return answer


class _ActiveSet:
    """Hold one problem in the units of its unit columns, and count the factorisations spent on it."""

    def __init__(self, columns: Columns, target: torch.Tensor, ridge: float, l1: float) -> None:
        self.columns, self.unit, self.target, self.ridge, self.l1 = columns, columns.unit, target, ridge, l1
        self.live = columns.norms > 0
        self.scale = torch.where(self.live, columns.norms, 1.0)
        self.rho = ridge / self.scale.square()  # the ridge of w in the units of u
        self.pull = self.unit @ target  # a_i.b of the unit columns
        self.largest = float(self.pull.max()) if len(self.pull) else 0.0
        self.correlation = torch.where(self.live, self.pull - l1 / self.scale, 0.0)
        self.zero = torch.zeros(len(self.unit), dtype=torch.float64)
        self.wide = WideSystem(self.unit, self.rho)
        self.iterations = 0

    def nothing_to_fit(self) -> bool:
        """Tell whether w = 0 is the solution."""
        return not len(self.pull) or not float(self.correlation.max()) > 0

    @functools.cached_property
    def held_apart(self) -> bool:
        """Whether the ridge is so large that any passive set is well conditioned."""
        return float(self.rho[self.live].min()) > APART

    def first_passive(self, start: torch.Tensor | None, guess: bool) -> torch.Tensor:
        """Return the passive columns int64 to begin with: those with weight at the start or in a guess."""
        first = self.zero if start is None else start.double() * self.scale
        if guess:
            unit = self.unit.float()
            first = projected_gradient(
                lambda u: unit @ (unit.T @ u), self.correlation.float(), self.rho.float(), first.float()
            )
        passive = ((first > 0) & self.live).nonzero().flatten()
        return passive if self.held_apart else largest_half(passive, first, self.unit.shape[1])

    def solve(self, passive: torch.Tensor) -> Solution:
        """Return the unconstrained u on the passive set, less columns in the span of those before them."""
        if self.ridge > 0 and len(passive) > self.unit.shape[1]:
            self.iterations += 1
            return passive, self.wide.solve(passive, self.correlation[passive])
        while len(passive):
            self.iterations += 1
            gram = self.columns.cache.gram(
                self.columns.ids[passive], lambda new, of=passive: self.unit[of[new]]
            )
            gram.diagonal().add_(self.rho[passive])
            factor, info = torch.linalg.cholesky_ex(gram)
            bad = dependent(factor, int(info))
            if not bad:
                return passive, torch.cholesky_solve(self.correlation[passive, None], factor)[:, 0]
            keep = torch.ones(len(passive), dtype=torch.bool)
            keep[bad] = False
            passive = passive[keep]
        return passive, self.zero[:0]

    def feasible(self, passive: torch.Tensor) -> Solution:
        """Solve, drop everything that is not positive, and repeat until all of it is."""
        while True:
            passive, u = self.solve(passive)
            positive = u > 0
            if positive.all():
                return passive, u
            passive = passive[positive]

    def combined(self, solution: Solution) -> torch.Tensor:
        """Return U^T u float64 [m]: reading all rows is quicker than copying many passive ones out."""
        passive, u = solution
        if 4 * len(passive) < len(self.unit):
            return self.unit[passive].T @ u
        return self.unit.T @ self.zero.index_copy(0, passive, u)

    def objective(self, solution: Solution) -> float:
        """Return the objective, from the residual: half c.u, its fall from w = 0, would drown a small one in
        rounding.
        """
        passive, u = solution
        left = self.target - self.combined(solution)
        penalty = 0.5 * float(self.rho[passive] @ u.square()) + self.l1 * float(
            (u / self.scale[passive]).sum()
        )
        return 0.5 * float(left @ left) + penalty

    def passive_by_dual(self, current: Solution) -> torch.Tensor:
        """Return the columns int64 that have weight where Newton's method on the dual ends."""
        residual = self.target - self.combined(current)
        return _dual_newton(self.unit, self.target, self.l1 / self.scale, self.rho, residual)

    def violating(self, current: Solution) -> torch.Tensor:
        """Return the columns int64 whose weight should leave zero, worst first, then the lowest index."""
        gradient = self.unit @ self.combined(current) - self.correlation  # no ridge in it where u = 0
        gradient[current[0]] = 0.0
        violating = (self.live & (gradient < -TOLERANCE * self.largest)).nonzero().flatten()
        return violating[gradient[violating].sort(stable=True).indices]

    def descend(self, current: Solution, value: float, block: int) -> tuple[Solution | None, int]:
        """Return a solution of lower objective with a block of the worst columns added, or with one column
        exchanged, and the size of the next block. None where nothing violates the conditions.
        """
        passive, m = current[0], self.unit.shape[1]
        violating = self.violating(current)
        roomy = self.held_apart or (self.ridge > 0 and len(passive) >= m)
        widest = len(self.unit) if roomy else max(1, (m - len(passive)) // 2, m // 8)
        block = min(block, widest, len(violating))
        while block >= 1:
            trial = self.feasible(torch.cat([passive, violating[:block]]))
            if self.objective(trial) < value * FALL:
                return trial, 2 * block
            block //= 2
        for column in violating[:TRIED]:
            trial = self.exchanged(current, column)
            if trial is not None and self.objective(trial) < value * FALL:
                return trial, 1
        return None, block

    def exchanged(self, current: Solution, column: torch.Tensor) -> Solution | None:
        """Take one step of Lawson and Hanson: add a column, or exchange a passive one for it where these span
        it, and walk to the boundary. None where rounding blocks it.
        """
        passive, u = torch.cat([current[0], column[None]]), torch.cat([current[1], current[1].new_zeros(1)])
        solved, z = self.solve(passive)
        if len(solved) < len(passive) or z[-1] <= 0:
            passive, u = self.in_place_of_another(current, column)
            solved, z = self.solve(passive)
            if len(solved) < len(passive):
                return None
        while (z <= 0).any():
            leaving = z <= 0
            ratio = torch.where(leaving, u / (u - z), torch.inf)
            u = u + ratio.min() * (z - u)
            keep = ratio > ratio.min()
            passive, u = passive[keep], u[keep]
            _, z = self.solve(passive)  # a subset of independent columns is independent
        return passive, z

    def in_place_of_another(self, current: Solution, column: torch.Tensor) -> Solution:
        """Return a feasible point with a column that the passive ones span, a = U^T y, in the place of one.

        Along e_column - y the fit stays what it is, but for the ridge's part, and the penalties fall, until a
        passive weight is zero.
        """
        passive, u = current
        joined = torch.cat([passive, column[None]])
        gram = self.columns.cache.gram(self.columns.ids[joined], lambda new: self.unit[joined[new]])
        gram.diagonal()[:-1].add_(self.rho[passive])
        factor, failed = torch.linalg.cholesky_ex(gram[:-1, :-1])
        if failed:
            return current
        y = torch.cholesky_solve(gram[:-1, -1:], factor)[:, 0]
        ratio = torch.where(y > 0, u / y, torch.inf)
        step, keep = ratio.min(), ratio > ratio.min()
        if not torch.isfinite(step):
            return current
        return joined[torch.cat([keep, keep.new_ones(1)])], torch.cat([(u - step * y)[keep], step[None]])

    def answer(self, current: Solution) -> NNLS:
        """Return a solution in the units of the columns as given, and how far it is from optimal."""
        passive, u = current
        weights = self.zero.clone()
        weights[passive] = u / self.scale[passive]
        fitted = self.combined(current)
        gradient = self.unit @ fitted - self.correlation
        gradient[passive] += self.rho[passive] * u
        violation = torch.where(self.live, (-gradient).clamp(min=0), 0.0)
        violation[passive] = gradient[passive].abs()
        kkt = float(violation.max()) / self.largest
        return NNLS(weights, self.target - fitted, kkt, self.iterations)


def largest_half(passive: torch.Tensor, weights: torch.Tensor, m: int) -> torch.Tensor:
    """Return the passive columns int64 with the largest weights [n], at most m / 2: near m most of them are
    dependent.
    """
    if len(passive) <= m // 2:
        return passive
    return passive[weights[passive].sort(descending=True, stable=True).indices[: m // 2].sort().values]


def dependent(factor: torch.Tensor, failed: int) -> list[int]:
    """Return the positions of columns in the span of those before them, from their Cholesky factor.

    failed: the 1-based position of the first column without a positive pivot, or 0, as `cholesky_ex` says.
    """
    pivots = factor.diagonal()[: failed - 1 if failed else None].square()
    return (pivots < DEPENDENT).nonzero().flatten().tolist() + ([failed - 1] if failed else [])


def _dual_newton(
    unit: torch.Tensor, target: torch.Tensor, l1: torch.Tensor, rho: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """Return the columns with weight in the ridge problem, by Newton's method on its dual from a residual.

        min over r of  1/2 ||r||^2 - b.r + sum_i (a_i.r - l1_i)_+^2 / (2 rho_i)

    with u_i = (a_i.r - l1_i)_+ / rho_i for unit columns a_i. It is strongly convex, its gradient piecewise
    linear, so the semismooth Newton step with an exact line search converges from anywhere.
    """
    m = unit.shape[1]
    correlation = unit @ residual - l1
    for _ in range(NEWTON_STEPS):
        active = (correlation > 0).nonzero().flatten()
        rows, ridge = unit[active], rho[active]
        gradient = residual - target + rows.T @ (correlation[active] / ridge)
        if len(active) > m:
            hessian = rows.T @ (rows / ridge[:, None])
            hessian.diagonal().add_(1.0)
            step = -torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        else:
            inner = rows @ rows.T
            inner.diagonal().add_(ridge)
            factor = torch.linalg.cholesky(inner)
            step = rows.T @ torch.cholesky_solve((rows @ gradient)[:, None], factor)[:, 0] - gradient
        length = _line_search(correlation, unit @ step, rho, float((residual - target) @ step), step)
        residual = residual + length * step
        before = correlation > 0
        correlation = unit @ residual - l1
        if length == 1.0 and torch.equal(before, correlation > 0):
            break
    return (correlation > 0).nonzero().flatten()


def _line_search(
    correlation: torch.Tensor, change: torch.Tensor, rho: torch.Tensor, flat: float, step: torch.Tensor
) -> float:
    """Return the length in (0, 1] at which the dual's slope along a step vanishes, by bisection: it rises."""
    curved = float(step @ step)

    def slope(t: float) -> float:
        return flat + t * curved + float((((correlation + t * change).clamp(min=0) / rho) * change).sum())

    if slope(1.0) <= 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low + high) / 2


def projected_gradient(
    times_gram: Callable[[torch.Tensor], torch.Tensor],
    pull: torch.Tensor,
    rho: torch.Tensor,
    u: torch.Tensor,
) -> torch.Tensor:
    """Return a rough solution whose support is close to the right one, by projected gradient in float32.

    times_gram multiplies the Gram matrix of the unit columns with a vector [n]; pull [n] is the linear term,
    u [n] the start. FISTA (Beck and Teboulle, 2009), restarted as by O'Donoghue and Candes (2015).
    """
    dominant = pull.clamp(min=0)  # direction of the largest curvature
    for _ in range(POWER_STEPS):
        dominant = times_gram(dominant / torch.linalg.vector_norm(dominant).clamp(min=1e-30))
    step = 1 / (1.1 * float(torch.linalg.vector_norm(dominant)) + float(rho.max()))
    ahead, momentum = u, 1.0
    for _ in range(WARM_STEPS):
        gradient = times_gram(ahead) - pull + rho * ahead
        after = (ahead - step * gradient).clamp(min=0)
        if float((ahead - after) @ (after - u)) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = after + (momentum - 1) / following * (after - u)
        u, momentum = after, following
    return u
