"""What a selection costs as a formula, fitted to measured points, and what it says of a pool far larger.

N rows, m = T d numbers a row, M rows wanted, r of them at most in each of R rounds, K passes of the pool, I
iterations of all rounds together, P processes:

    seconds = scan N m / P + sort N + pass K N m / P + step K T N / P + fetch I T F
              + row I N + solve I r^2 m + refit M^2 m + fixed
    memory  = 4-byte words: per_row N + looked_at r m + chosen M m + fixed            (of each process)
    sent    = (T + 2) N + I (2 r + 64) (m + 2 P) + (2 D + M) m numbers                (by each process)

scan: norms and hashes, once. sort: what every process does with the N hashes, to find copies. pass: a
correlation; step: what a row of a checkpoint costs in it whatever its length. fetch: the rows it points at,
out of F files: the N / (1024 P) of the process, or one for each of the 2 r + 64 rows where these are fewer.
row: what every process does with the N correlations. solve: the fits within a round. refit: the last fit of
all chosen rows. The first pass gives the correlations with the target, by which every round begins, so
I = K - 1 + R. D rows repeat another one and are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

ROUND = 256  # rows per round as shipped; never more than m / 2
SLACK = 64  # rows looked at beyond twice a round's
SHARD = 1024  # rows of a file
TIME = ("scan", "sort", "pass", "step", "fetch", "row", "solve", "refit", "fixed")
MEMORY = ("per_row", "looked_at", "chosen", "fixed")


@dataclass(frozen=True)
class Point:
    """Describes the size of one selection."""

    n: int
    dim: int  # d, of one checkpoint's sketch
    wanted: int  # M
    checkpoints: int  # T
    processes: int = 1

    @property
    def m(self) -> int:
        """Return the numbers per row, m = T d."""
        return self.dim * self.checkpoints

    @property
    def round_rows(self) -> int:
        """Return the rows that one round chooses at most."""
        return min(self.wanted, ROUND, self.m // 2)


@dataclass(frozen=True)
class MeasuredSelection:
    """Holds what one selection cost."""

    point: Point
    cpu: float  # seconds of the processor, of the process that took most
    wall: float
    scanning: float  # of cpu, from the store to atoms
    passing: float  # of cpu, in correlations
    fetching: float  # of cpu, for the rows that correlations point at
    refitting: float  # of cpu, in the last fit
    passes: int  # K
    rounds: int
    peak: int  # bytes of anonymous memory beyond those at the start, of the process that took most
    sent: int  # numbers handed to sums over the processes, by one of them
    disk: int  # bytes of the store
    residual: float = 0.0
    clean: float = 0.0


def iterations(passes: float, rounds: float) -> float:
    """Return how often rows are looked at: after every pass, and at the start of each round without one."""
    return passes - 1 + rounds


def time_terms(p: Point, passes: float, rounds: float) -> list[float]:
    """Return the terms of the formula for time at a point, in the order of TIME."""
    share = p.n * p.m / p.processes
    files = min(p.n / (SHARD * p.processes), 2 * p.round_rows + SLACK)
    looks = iterations(passes, rounds)
    fetch, solve = looks * p.checkpoints * files, looks * p.round_rows**2 * p.m
    step = passes * p.checkpoints * p.n / p.processes
    return [share, p.n, passes * share, step, fetch, looks * p.n, solve, p.wanted**2 * p.m, 1.0]


def memory_terms(p: Point) -> list[float]:
    """Return the terms of the formula for memory at a point, in the order of MEMORY."""
    return [4.0 * p.n, 4.0 * p.round_rows * p.m, 4.0 * p.wanted * p.m, 1.0]


def numbers_sent(p: Point, passes: float, rounds: float, copies: float) -> float:
    """Return how many numbers one process sends in a selection. copies: rows that repeat another, D."""
    if p.processes == 1:
        return 0.0
    looked_at = iterations(passes, rounds) * (2 * p.round_rows + SLACK) * (p.m + 2 * p.processes)
    return looked_at + (p.checkpoints + 2) * p.n + (2 * copies + p.wanted) * p.m


@dataclass(frozen=True)
class Fit:
    """Holds non-negative coefficients that are closest to the points in relative error."""

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    errors: tuple[float, ...]  # fitted / measured - 1, by point

    def __getitem__(self, name: str) -> float:
        return self.coefficients[self.names.index(name)]

    def value(self, terms: Sequence[float]) -> float:
        """Return the formula's value for these terms."""
        return float(np.dot(self.coefficients, terms))


def fit_coefficients(
    names: tuple[str, ...], terms: Sequence[Sequence[float]], values: Sequence[float]
) -> Fit:
    """Return the non-negative coefficients with the least squared relative error. terms: one row per
    value."""
    scaled = np.array(terms) / np.array(values)[:, None]
    size = np.linalg.norm(scaled, axis=0)
    coefficients = nnls(scaled / size, np.ones(len(values)))[0] / size
    return Fit(names, tuple(map(float, coefficients)), tuple(map(float, scaled @ coefficients - 1)))


def fit_time(points: Sequence[MeasuredSelection]) -> Fit:
    """Fit each part of the time by itself, as the parts were measured; the errors are those of the whole."""
    terms = [time_terms(one.point, one.passes, one.rounds) for one in points]
    taken: dict[tuple[str, ...], list[float]] = {
        ("scan", "sort"): [one.scanning for one in points],
        ("pass", "step"): [one.passing for one in points],
        ("fetch",): [one.fetching for one in points],
        ("refit",): [one.refitting for one in points],
    }
    others = [sum(part) for part in zip(*taken.values(), strict=True)]
    taken["row", "solve", "fixed"] = [one.cpu - other for one, other in zip(points, others, strict=True)]
    fitted: dict[str, float] = {}
    for names, seconds in taken.items():
        columns = [TIME.index(name) for name in names]
        chosen = [[row[k] for k in columns] for row in terms]
        part = fit_coefficients(names, chosen, [max(value, 1e-4) for value in seconds])
        fitted |= dict(zip(names, part.coefficients, strict=True))
    coefficients = tuple(fitted[name] for name in TIME)
    errors = (np.dot(row, coefficients) / one.cpu - 1 for row, one in zip(terms, points, strict=True))
    return Fit(TIME, coefficients, tuple(map(float, errors)))


def fit_memory(points: Sequence[MeasuredSelection]) -> Fit:
    """Fit the peak of anonymous memory."""
    return fit_coefficients(
        MEMORY, [memory_terms(one.point) for one in points], [max(one.peak, 1) for one in points]
    )


@dataclass(frozen=True)
class Scenario:
    """Describes a pool and the machines it would be selected on. Every figure here is an assumption."""

    point: Point = Point(10_000_000, 8192, 50_000, 4, 64)
    parameters: float = 1.24e9  # of the model
    tokens: float = 512  # of an example, mean
    gpu_flops: float = 989e12  # dense bf16, of one GPU
    utilisation: float = 0.3  # of it in the gradient pass
    gpu_bytes_per_s: float = 3.35e12  # of one GPU's memory
    storage_bytes_per_s: float = 40e9  # of the shared file system, all processes together
    network_bytes_per_s: float = 5e9  # of one process
    copies: float = 0.01  # share of the rows that repeat another one

    @property
    def examples_per_s(self) -> float:
        """Return the rate of one GPU: 4 FLOP per parameter and token, as frozen weights have no gradient of
        their own."""
        return self.gpu_flops * self.utilisation / (4 * self.parameters * self.tokens)


@dataclass(frozen=True)
class ProjectedCost:
    """Holds what a selection would cost in a scenario."""

    gradients: float  # seconds
    disk: float  # bytes
    share: float  # bytes of the store that a process reads
    passes: float
    sent_per_pass: float  # bytes, by each process
    sent: float  # bytes, by each process
    memory: float  # bytes of a process beyond its share of the store
    parts: dict[str, float]  # seconds of selection, by part
    on_gpu: dict[str, float]  # the same, were the share held in the GPU's memory

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole selection."""
        return sum(self.parts.values())

    @property
    def seconds_on_gpu(self) -> float:
        """Return the seconds, were each share held in a GPU's memory."""
        return sum(self.on_gpu.values())


def project(s: Scenario, time: Fit, memory: Fit, passes_per_round: float) -> ProjectedCost:
    """Return the costs of a scenario by the formulas, with the scenario's bandwidths for reading and
    sending."""
    p = s.point
    rounds = -(-p.wanted // p.round_rows)
    passes = 1 + rounds * passes_per_round
    disk = 2.0 * p.n * p.m
    share = disk / p.processes
    sent_per_pass = 4.0 * (2 * p.round_rows + SLACK) * (p.m + 2 * p.processes)
    sent = 4.0 * numbers_sent(p, passes, rounds, s.copies * p.n)
    scan, sort, over, step, fetch, row, solve, _, _ = np.multiply(
        time.coefficients, time_terms(p, passes, rounds)
    )
    parts = {
        "reading the store once": disk / s.storage_bytes_per_s,
        "norms and hashes": float(scan),
        "the N hashes in each process": float(sort),
        "passes": float(over + step),
        "fetching rows": float(fetch),
        "the N correlations in each process": float(row),
        "fits": float(solve),
        "sending (a ring moves twice what is summed)": 2 * sent / s.network_bytes_per_s,
    }
    a_pass = share / s.gpu_bytes_per_s
    on_gpu = {**parts, "norms and hashes": a_pass, "passes": passes * a_pass}
    terms = memory_terms(p)
    terms[MEMORY.index("chosen")] = 0.0  # a refit of so many rows is left out, as it exceeds memory_gib
    return ProjectedCost(
        gradients=p.n * p.checkpoints / (p.processes * s.examples_per_s),
        disk=disk,
        share=share,
        passes=passes,
        sent_per_pass=sent_per_pass,
        sent=sent,
        memory=memory.value(terms),
        parts=parts,
        on_gpu=on_gpu,
    )
