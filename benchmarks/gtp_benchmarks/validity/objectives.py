"""What the gradients say of a subset: every objective, for every way to make atoms of the stored gradients.

With atoms a_i of a subset of k rows, s = 1/k sum a_i, and the target b, the mean of the target's atoms:

    dot       s . b                             what top-k maximises, row by row
    cosine    s . b / (|s| |b|)                 equal weights
    residual  |A^T w - b| / |b|                 w >= 0 of the ridge fit
    fit       (|A^T w - b|^2 + lam |w|^2) / |b|^2    what the pursuit with a ridge minimises

Whitened, the atoms are those of `selector.metric=whitened`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from gtp_exp.gradients.end_of_turn import LINEAR
from gtp_exp.gradients.features import GradientFeatures
from gtp_exp.gradients.unit import unit_rows
from gtp_exp.selection.atoms.metric import Metric, MetricSettings, Whitening
from gtp_exp.selection.atoms.sketches import CheckpointWeights, checkpoint_shares, taken_checkpoints
from gtp_exp.selection.solvers.nnls import GramCache, columns_of, nnls_of_columns

RIDGES = (0.0, 0.1, 1.0)  # over the mean squared norm of the atoms, which is 1
CHECKPOINTS: Mapping[str, Sequence[int] | None] = {"first": [0], "last": [-1], "all": None}
SMALLEST = 1e-30  # norm of a zero vector, by which it is divided


@dataclass(frozen=True)
class Objective:
    """Names an objective by its formula and by what its atoms are made of."""

    formula: str = "cosine"  # dot, cosine, residual or fit
    ridge: float | None = None  # of residual and fit
    metric: str = "plain"  # or whitened
    atoms: str = "unit"  # raw, or each of unit norm
    direction: str = LINEAR  # of the candidates; the target's is the plain gradient
    checkpoints: str = "all"  # first, last, or all of them side by side, by their learning rates
    end_of_turn: str = "1"  # its weight in target rows: 1, 0 or balanced

    @property
    def name(self) -> str:
        """Return one line that tells it from all others."""
        ridge = "" if self.ridge is None else f", ridge {self.ridge:g}"
        metric = "" if self.metric == "plain" else f" {self.metric}"
        return (
            f"{self.formula}{ridge}{metric}: {self.atoms} {self.direction}, checkpoints {self.checkpoints}, "
            f"end of turn {self.end_of_turn}"
        )

    @property
    def sign(self) -> int:
        """Return 1 where a larger value is better, else -1."""
        return 1 if self.formula in ("dot", "cosine") else -1


def evaluate_objectives(
    pool: GradientFeatures, targets: Mapping[str, GradientFeatures], subsets: Sequence[torch.Tensor]
) -> dict[Objective, list[float]]:
    """Return the value of every objective for each subset.

    targets: the target's gradients by the weight of the end of turn. subsets: int64 rows of the pool.
    """
    values: dict[Objective, list[float]] = {}
    for space in tqdm(list(_spaces(pool.directions)), desc="objectives", unit="kind of atoms"):
        metric = whitening_of(pool, space)
        target = torch.stack(
            [
                atoms_of(features, replace(space, direction=LINEAR), None, metric).double().mean(0)
                for features in targets.values()
            ]
        )
        by_weight = [replace(space, end_of_turn=weight) for weight in targets]
        means = []
        for index in subsets:
            rows = atoms_of(pool, space, index, metric)
            means.append(rows.double().mean(0))
            if space.atoms == "unit":
                for objective, column in zip(by_weight, target, strict=True):
                    for fitted, value in _fits(objective, rows, column):
                        values.setdefault(fitted, []).append(value)
        for formula, found in _similarities(torch.stack(means), target):
            for objective, column in zip(by_weight, found.T, strict=True):
                values[replace(objective, formula=formula)] = column.tolist()
    return values


def _spaces(directions: Sequence[str]) -> Iterator[Objective]:
    """Yield an objective for every way to make atoms."""
    for metric in ("plain", "whitened"):
        for direction in directions:
            for checkpoints in CHECKPOINTS:
                for atoms in ("raw", "unit"):
                    yield Objective(metric=metric, direction=direction, checkpoints=checkpoints, atoms=atoms)


def whitening_of(pool: GradientFeatures, space: Objective) -> Sequence[Whitening | None]:
    """Return the map of each checkpoint into the metric of the pool's rows, as a selector makes it."""
    settings = MetricSettings(Metric.WHITENED if space.metric == "whitened" else Metric.EUCLIDEAN)
    return [settings.of(pool.features(t, space.direction)) for t in range(len(pool.learning_rates))]


def atoms_of(
    features: GradientFeatures,
    space: Objective,
    index: torch.Tensor | None,
    metric: Sequence[Whitening | None],
) -> torch.Tensor:
    """Return the atoms of some rows (None: of all), float32 [k, m]: sqrt(eta_t / sum eta) x[t, i], side by
    side, as GTP makes them. metric: the map of each checkpoint of the trajectory."""
    index = torch.arange(features.n) if index is None else index
    taken = taken_checkpoints(len(features.learning_rates), CHECKPOINTS[space.checkpoints])
    rates = [features.learning_rates[t] for t in taken]
    shares = checkpoint_shares(rates, CheckpointWeights.LEARNING_RATE)
    parts = []
    for t, share in zip(taken, shares, strict=True):
        rows, whiten = features.features(t, space.direction).rows(index).float(), metric[t]
        parts.append(share**0.5 * (rows if whiten is None else whiten.apply(rows)))
    joined = torch.cat(parts, dim=1)
    return unit_rows(joined) if space.atoms == "unit" else joined


def _similarities(means: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield dot and cosine, float64 [subsets, targets], of means [subsets, m] and targets [targets, m]."""
    dot = means @ target.T
    yield "dot", dot
    norms = means.square().sum(1)[:, None] * target.square().sum(1)[None, :]
    yield "cosine", dot / norms.clamp(min=SMALLEST**2).sqrt()


def _fits(of: Objective, rows: torch.Tensor, target: torch.Tensor) -> Iterator[tuple[Objective, float]]:
    """Yield what is left of the target after the non-negative fit of unit atoms [k, m], for every ridge."""
    columns = columns_of(rows, torch.arange(len(rows)), GramCache())
    total = max(float(target.square().sum()), SMALLEST)
    for ridge in RIDGES:
        solved = nnls_of_columns(columns, target, ridge=ridge)
        left = float(solved.residual.square().sum())
        yield replace(of, formula="residual", ridge=ridge), (left / total) ** 0.5
        if ridge:
            penalty = ridge * float(solved.weights.square().sum())
            yield replace(of, formula="fit", ridge=ridge), (left + penalty) / total
