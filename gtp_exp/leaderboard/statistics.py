"""Seeds to intervals and tests. Every function takes plain numbers and returns plain numbers.

Interval of a mean over n seeds:
  n = 1      none: one seed says nothing about spread, and no more do seeds that are all equal
  n = 2..4   Student's t
  n >= 5     bootstrap, percentile widened as in Hesterberg (2015), "What Teachers Should Know About the
             Bootstrap", section 4: the plain percentile interval is too narrow by sqrt((n-1)/n) and by using
             normal in place of t quantiles.
On normal samples (1,000 draws each) a plain 95% percentile interval holds the true mean in 48, 73, 80, 85%
of cases at n = 2, 3, 4, 5; the widened one in 93% at n = 5. But no bootstrap reaches beyond the extreme
seeds, hence t below five.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 0.05
BOOTSTRAP_FROM = 5  # seeds
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """Hold a 95% confidence interval of a mean, and how it was found."""

    low: float
    high: float
    method: str  # "bootstrap" or "t"


@dataclass(frozen=True)
class Summary:
    """Hold the mean of some seeds, and how sure it is."""

    n: int
    mean: float
    sd: float | None  # of the seeds (n - 1), None for one seed
    interval: Interval | None  # None for one seed, and for seeds without spread


@dataclass(frozen=True)
class Paired:
    """A method minus another at the same seeds, in the metric's own unit and sign."""

    n: int
    difference: float
    interval: Interval | None  # Student's t, so that it and p agree; None where there is no spread
    p: float | None  # two-sided paired t; None where there is no spread to test against
    win_rate: float  # share of seeds where the first is better; a tie counts half


def summarise(values: Sequence[float], *, share: bool = False) -> Summary:
    """share: the mean cannot leave [0, 1], so neither does its interval."""
    sample = np.asarray(values, dtype=float)
    n = len(sample)
    if n == 0:
        raise ValueError("no values to summarise")
    mean = float(sample.mean())
    if n == 1:
        return Summary(n=1, mean=mean, sd=None, interval=None)
    sd = float(sample.std(ddof=1))
    if not _spread(sample, sample):
        return Summary(n=n, mean=mean, sd=sd, interval=None)
    interval = bootstrap_interval(sample) if n >= BOOTSTRAP_FROM else t_interval(sample)
    if share:
        interval = Interval(max(0.0, interval.low), min(1.0, interval.high), interval.method)
    return Summary(n=n, mean=mean, sd=sd, interval=interval)


def t_interval(sample: np.ndarray) -> Interval:
    """Return Student's interval of the mean of a sample [n], n at least 2."""
    n = len(sample)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(sample.std(ddof=1)) / math.sqrt(n)
    mean = float(sample.mean())
    return Interval(low=mean - half, high=mean + half, method="t")


def bootstrap_interval(sample: np.ndarray) -> Interval:
    """Widened percentile bootstrap. The generator is seeded here: the same runs give the same page."""
    n = len(sample)
    # tail = Phi(-sqrt(n / (n-1)) t_{1-alpha/2, n-1})
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    bounds = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1 - 2 * float(tail),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(low=float(bounds.low), high=float(bounds.high), method="bootstrap")


def paired(a: Mapping[int, float], b: Mapping[int, float], *, higher_is_better: bool) -> Paired | None:
    """a, b: seed -> value. None where they share no seed."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    d = np.array([a[seed] - b[seed] for seed in seeds])
    gain = d if higher_is_better else -d
    win_rate = float(((gain > 0) + 0.5 * (gain == 0)).mean())
    n = len(d)
    if n == 1:
        return Paired(n=1, difference=float(d[0]), interval=None, p=None, win_rate=win_rate)
    if not _spread(d, [a[seed] for seed in seeds] + [b[seed] for seed in seeds]):
        p = None if d.any() else 1.0
        return Paired(n=n, difference=float(d.mean()), interval=None, p=p, win_rate=win_rate)
    t = float(d.mean()) / (float(d.std(ddof=1)) / math.sqrt(n))
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return Paired(n=n, difference=float(d.mean()), interval=t_interval(d), p=p, win_rate=win_rate)


def _spread(sample: np.ndarray, of: Sequence[float] | np.ndarray) -> bool:
    """Whether the sample differs by more than what rounding does to the numbers it was computed of."""
    return float(np.ptp(sample)) > 1e-12 * float(np.abs(of).max())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment, in the given order. None marks a comparison that could not be tested: it
    stays None and does not count in the family."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for step, (p, i) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - step) * p))
        adjusted[i] = running
    return adjusted


@dataclass(frozen=True)
class RankComparison:
    """Mean ranks and Nemenyi's critical difference (Demsar 2006) over blocks, here seeds."""

    blocks: int
    mean_ranks: tuple[float, ...]  # 1 is best, ties share
    critical_difference: float


def compare_ranks(values: np.ndarray, *, higher_is_better: bool) -> RankComparison:
    """values: [blocks, methods], at least 2 x 3."""
    blocks, k = values.shape
    ranks = stats.rankdata(-values if higher_is_better else values, axis=1)
    # CD = q_alpha sqrt(k (k+1) / (6 N)), q_alpha = studentised range at infinite degrees of freedom / sqrt 2
    q = float(stats.studentized_range.ppf(1 - ALPHA, k, np.inf)) / math.sqrt(2)
    return RankComparison(
        blocks=blocks,
        mean_ranks=tuple(float(rank) for rank in ranks.mean(axis=0)),
        critical_difference=q * math.sqrt(k * (k + 1) / (6 * blocks)),
    )
