"""TAROT: Targeted Data Selection via Optimal Transport (Feng et al., arXiv 2412.00420), of a fixed size.

Gradients at one checkpoint are whitened over pool and target together, with C their covariance, and scaled to
unit length. The distance of candidate i and target row j is that of the unit vectors:

    z = L^-1 (g - mean),   L L^T = C + lam I,   d(i, j) = sqrt(2 - 2 cos(z_i, z_j))

The first layer of rows is every target row's nearest, the second every target row's second nearest, and so
on. Layers join the choice whole as long as they fit; of the one that does not, those rows join that have the
largest dual potential f of entropic optimal transport (cost d, blur 0.01) from the layer's new rows to the
target, both uniform.

Official code: github.com/vita-epfl/TAROT at commit bbb6ce2; the whitening follows get_wfd of
tarot/wfd_estimator.py, the choice `fixed_size` of tarot/data_selector.py, the potentials geomloss's sinkhorn
(epsilon from the diameter's square down to the blur's, a quarter each step, both sides moved half way). There
lam is 1e-5 whatever the gradients' scale; here it is relative to the covariance's mean eigenvalue, and large:
with next to none, directions that hold but noise weigh as much as the others. There features meet L^-1
transposed, which does not whiten them, and are rounded to half precision; at most 2,000 layers are looked at;
and a layer that fills the budget to the last row is followed by one more, whole and above it. Not here: the
ratio by k folds (`otm`), which a given budget replaces; weights by the chosen rows' potentials, off in its
configuration; training on target rows. In-domain evenly spaced pool rows are the target, and none is its own
nearest.

Memory: matrices of the sketch's width squared (0.5 GiB each at 8,192 in float64), and the cosine of every
target row with every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from gtp_baselines.best_rows import best_rows
from gtp_baselines.gradient_rows import check_some, chunks_of, pool_and_target
from gtp_baselines.ranking import tie_order
from gtp_exp.decode import check_fields
from gtp_exp.errors import NothingToChoose, UserError
from gtp_exp.gradients.end_of_turn import Weight
from gtp_exp.gradients.features import Rows, TensorRows
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.sketches import taken_checkpoint
from gtp_exp.selection.atoms.subspace import evenly_spaced
from gtp_exp.selection.base import Need, Selection, SelectionProblem, Selector, unit_weights


@dataclass(frozen=True)
class TAROT(Selector):
    """Choose the nearest neighbours of all target rows, layer by layer, by whitened gradients."""

    direction: str = "sgd"  # of candidates and target alike
    checkpoint: int = -1  # along the trajectory from 0; -1 is the last
    ridge: float = 1.0  # lam over the covariance's mean eigenvalue
    blur: float = 0.01  # of the transport, in units of distance
    in_domain_rows: int = 2048  # pool rows that stand for the target in-domain, at most
    target_end_of_turn: Weight = 1.0

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRADIENTS})
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_fields(self, "selector")
        for name in ("ridge", "blur", "in_domain_rows"):
            if not getattr(self, name) > 0:
                raise UserError(f"selector.{name}={getattr(self, name)} must be above 0")

    def select(self, problem: SelectionProblem) -> Selection:
        pool, target, _ = pool_and_target(problem, self.direction, self.direction, "TAROT")
        t = taken_checkpoint(len(pool.learning_rates), self.checkpoint)
        rows, aims = pool.features(t, self.direction), target.features(t, self.direction)
        in_domain = problem.target is None
        check_some([rows], "every candidate's")
        check_some([aims], "every target row's")
        whitening = Whitening.of([rows] if in_domain else [rows, aims], self.ridge)
        at_most = self.in_domain_rows if in_domain else target.n
        targets = whitening(evenly_spaced(aims, at_most))  # [n, dim]
        cosines = torch.empty(len(targets), pool.n)
        for start, chunk in chunks_of(rows):
            cosines[:, start : start + len(chunk)] = targets @ whitening(chunk).T
        if in_domain:
            own = evenly_spaced(TensorRows(torch.arange(pool.n)[:, None]), at_most)[:, 0].long()
            cosines[torch.arange(len(own)), own] = -1.0

        def potentials_of(layer: torch.Tensor) -> torch.Tensor:
            """The potentials of a layer's new rows, float64 [k]."""
            corners = torch.cat([whitening(rows.rows(layer).float()), targets])
            diameter = float((corners.amax(0) - corners.amin(0)).norm())  # of the box around all rows
            distances = (2 - 2 * cosines[:, layer].T.double()).clamp_(min=0).sqrt_()
            return potentials(distances, diameter, self.blur)

        wanted = problem.budget.rows(pool.n)
        cost = problem.n_tokens if wanted is None else torch.ones(pool.n, dtype=torch.long)
        limit = int(problem.budget.amount) if wanted is None else wanted
        ties = tie_order(problem.candidates, problem.seed)
        layers = new_rows_of_layers(cosines, ties, cost, limit)
        if cut := int(cost[torch.cat(layers)].sum()) > limit:
            layers[-1] = layers[-1][potentials_of(layers[-1]).argsort(descending=True, stable=True)]
        order, nearest = torch.cat(layers), cosines.max(0).values
        if wanted is None:  # a row behind the last layer may fit where those of the layer do not
            others = ties[~torch.isin(ties, order)]
            order = torch.cat([order, others[nearest[others].argsort(descending=True, stable=True)]])
        chosen = problem.budget.take(order, problem.n_tokens)
        diagnostics = {
            "checkpoint": t,
            "targets": len(targets),
            "whole_layers": len(layers) - cut,
            "rows_of_whole_layers": sum(len(layer) for layer in layers[: len(layers) - cut]),
        }
        return Selection(chosen, unit_weights(len(chosen)), nearest, diagnostics)


@dataclass(frozen=True)
class Whitening:
    """Hold what makes the covariance of rows the identity, but for the ridge."""

    mean: torch.Tensor  # float32 [d]
    factor: torch.Tensor  # L, float32 [d, d], lower triangular

    @classmethod
    def of(cls, parts: Sequence[Rows], ridge: float) -> Whitening:
        """Return the whitening of all rows of the parts [n, d] together, in two passes over them.

        ridge: over the mean of the eigenvalues that so many rows can have above zero.
        """
        n, dim = sum(part.shape[0] for part in parts), parts[0].shape[1]
        total, largest = torch.zeros(dim, dtype=torch.float64), 0.0
        for part in parts:
            for _, chunk in chunks_of(part):
                total += chunk.double().sum(0)
                largest = max(largest, float(chunk.abs().max()))
        mean = (total / n).float()
        covariance = torch.zeros(dim, dim, dtype=torch.float64)
        for part in parts:
            for _, chunk in chunks_of(part):
                centred = chunk - mean
                covariance += centred.T @ centred
        covariance /= n
        trace = float(covariance.trace())
        if not trace > dim * (1e-6 * largest) ** 2:  # rounding is no variation
            raise NothingToChoose(
                "the gradients of pool and target are all the same, so no row is nearer to the target than "
                "another; check how they were computed"
            )
        covariance.diagonal().add_(ridge * trace / min(dim, n - 1))
        try:
            return cls(mean, torch.linalg.cholesky(covariance).float())
        except torch.linalg.LinAlgError:
            raise UserError(
                f"selector.ridge={ridge:g} is lost in the rounding of the gradients' covariance, which "
                "cannot be factorised; raise it (1.0 is the default)"
            ) from None

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return whitened rows of unit length, float32 [c, d]; a row at the mean stays zero."""
        return unit_rows(torch.linalg.solve_triangular(self.factor, (rows - self.mean).T, upper=False).T)


def new_rows_of_layers(
    cosines: torch.Tensor, ties: torch.Tensor, cost: torch.Tensor, limit: int
) -> list[torch.Tensor]:
    """Return what each layer adds to those before it, int64 [k], up to the first that reaches the limit.

    cosines: [n, N]. ties: all candidates in the order of equals. cost: int64 [N], 1 or a row's tokens; the
    layers' costs add up to the limit or more, unless all candidates together cost less. The rows of a layer
    are in the order of their largest cosine.
    """
    enough = int((cost.sort().values.cumsum(0) < limit).sum()) + 1  # so many rows reach the limit, whichever
    places, _ = best_rows(cosines, ties, min(len(ties), enough))
    nearest = cosines.max(0).values
    left = torch.ones(len(ties), dtype=torch.bool)
    layers: list[torch.Tensor] = []
    for layer in places.T:
        rows = ties[layer.unique()]  # unique sorts: equals stay in their order
        rows = rows[left[rows]]
        if len(rows):
            left[rows] = False
            layers.append(rows[nearest[rows].argsort(descending=True, stable=True)])
            limit -= int(cost[rows].sum())
        if limit <= 0:
            break
    return layers


def potentials(distances: torch.Tensor, diameter: float, blur: float) -> torch.Tensor:
    """Return the dual potential f float64 [k] of transport between k rows and n target rows, both uniform.

    distances: float64 [k, n]. Sinkhorn's updates run while epsilon falls from the diameter's square to the
    blur's; f and g are then near the optimum, not at it. Both move half way to

        f_i = -eps log mean_j exp((g_j - d_ij) / eps),    g_j = -eps log mean_i exp((f_i - d_ij) / eps)
    """

    def soft_minimum(values: torch.Tensor, epsilon: float) -> torch.Tensor:
        return -epsilon * (torch.logsumexp(-values / epsilon, dim=1) - math.log(values.shape[1]))

    end = max(diameter, blur) ** 2
    epsilons = [end]
    while end > blur**2 * (1 + 1e-9):
        epsilons.append(end)
        end /= 4
    epsilons.append(blur**2)
    f, g = soft_minimum(distances, epsilons[0]), soft_minimum(distances.T, epsilons[0])
    for epsilon in epsilons:
        to_f = soft_minimum(distances - g, epsilon)
        to_g = soft_minimum(distances.T - f, epsilon)
        f, g = (f + to_f) / 2, (g + to_g) / 2
    return soft_minimum(distances - g, blur**2)
