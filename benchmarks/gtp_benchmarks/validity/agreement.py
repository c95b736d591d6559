"""How well an objective orders subsets as a loss does: Spearman's correlation, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 1000
NOTHING = 1e-6  # norm of ranks that another one explains wholly, but for rounding
FEWEST = 4  # subsets, below which an order says nothing


@dataclass(frozen=True)
class Estimate:
    """Holds a correlation, or a difference of two, with its 95% percentile interval over subsets."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """Holds which subsets each resample takes; the same for all that is compared."""

    index: np.ndarray  # int64 [R + 1, n]; the first row takes every subset once

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """Return the ranks of values [n] in each resample, centred and of unit norm: float64 [R + 1, n].

        Ties share their mean rank; a resample of equal values is all NaN, for it has no order.
        """
        ranks = rankdata(values[self.index], axis=1)
        ranks -= ranks.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(ranks, axis=1, keepdims=True)
        return np.divide(ranks, norms, out=np.full_like(ranks, math.nan), where=norms > 0)


def resamples(n: int, seed: int = 0, count: int = RESAMPLES) -> Resamples:
    """Draw resamples of n subsets with replacement."""
    drawn = np.random.default_rng(seed).integers(0, n, (count, n))
    return Resamples(np.vstack([np.arange(n), drawn]))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation of two samples [n]; NaN where one of them has no order."""
    every = Resamples(np.arange(len(a))[None])
    return float((every.ranks(a) * every.ranks(b)).sum())


def correlations(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the correlation in each resample, float64 [R + 1], of what `Resamples.ranks` returns."""
    return (ours * theirs).sum(axis=1)


def without(ranks: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Return ranks without what a third one explains of them, again of unit norm: float64 [R + 1, n].

    Both are what `Resamples.ranks` returns. Correlations of such ranks are partial rank correlations; NaN
    where nothing is left.
    """
    left = ranks - correlations(ranks, control)[:, None] * control
    norms = np.linalg.norm(left, axis=1, keepdims=True)
    return np.divide(left, norms, out=np.full_like(left, math.nan), where=norms > NOTHING)


def estimate(drawn: np.ndarray) -> Estimate | None:
    """Return the first of some values [R + 1] with the interval of the others; None without a first one."""
    if not math.isfinite(drawn[0]):
        return None
    others = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.quantile(others, [0.025, 0.975]) if len(others) else (math.nan, math.nan)
    return Estimate(float(drawn[0]), float(low), float(high))
