"""How fast, how exact and how frugal GTP selects, beside one-atom-at-a-time matching on the same pool.

    python -m gtp_benchmarks.performance.selection  # everything: ten minutes on two cores
    python -m gtp_benchmarks.performance.selection --parts pass inside   # some of it

The pool is clustered, a tenth of it exact copies, and the target is a noisy mean of few rows around a clean
one that is known (clustered.py). What is timed for GTP is the whole of `select`: reading, normalising and
hashing the rows, the pursuit in rounds, the fill and the last fit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gtp_benchmarks.performance.clustered import Clustered
from gtp_benchmarks.performance.clustered_store import write_clustered
from gtp_benchmarks.performance.measuring import (
    Figure,
    Stopwatch,
    Timing,
    forget_files,
    interleaved,
    machine,
    process_memory,
    read_files,
    scratch_folder,
    write_report,
)
from gtp_benchmarks.performance.one_atom_omp import Matched, StepCost, fit_step_cost, one_atom_omp
from gtp_exp.data.examples import Example
from gtp_exp.gradients.features import GradientFeatures, MemoryFeatures
from gtp_exp.gradients.shards import from_int8, to_int8
from gtp_exp.gradients.store import GradientStore
from gtp_exp.selection import gtp as gtp_module
from gtp_exp.selection.atoms import fused
from gtp_exp.selection.atoms.duplicates import row_hash
from gtp_exp.selection.atoms.matrix import BlockAtoms, tensor_atoms
from gtp_exp.selection.base import Budget, SelectionProblem, Unit
from gtp_exp.selection.gtp import GTP, Regularisation
from gtp_exp.selection.solvers.omp import OMP
from gtp_exp.selection.solvers.pursuit import PursuitProblem

RIDGE = 1e-3  # of the comparisons at equal regularisation
PARTS = ("pass", "inside", "beyond", "storage", "disk")
CHECKPOINTS = 4
READS = 12  # plain reads of a store from disk that a selection within the rank may take as long as


@dataclass(frozen=True)
class MethodResult:
    """Holds one method at one budget, judged from its indices and weights alone."""

    wanted: int
    method: str
    seconds: float
    rows: int
    residual: float  # to the observed target, over its norm
    clean: float  # to the clean target, over its norm, at the best scale
    copies: int  # chosen rows that repeat another chosen row

    def line(self) -> str:
        return (
            f"| {self.wanted:,} | {self.method} | {self.seconds:.2f} s | {self.rows:,} "
            f"| {self.residual:.3f} | {self.clean:.3f} | {self.copies} |"
        )


HEAD = "| M | method | time | rows chosen | residual | clean | exact copies |\n|---|---|---|---|---|---|---|"


@dataclass
class Report:
    """Collects what the parts measure."""

    figures: list[Figure] = field(default_factory=list)
    rows: list[MethodResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    repeats: dict[str, dict[str, Timing]] = field(default_factory=dict)
    published: Matched | None = None  # the longest run of OMP as published


def selector(**settings: Any) -> GTP:
    """Return GTP as shipped, with some settings replaced."""
    return GTP(**settings)


def problem(pool: GradientFeatures, target: Sequence[torch.Tensor], rows: int) -> SelectionProblem:
    """Return a selection problem over given features, where every row counts one token."""
    ones = torch.ones(pool.n, dtype=torch.long)
    return SelectionProblem(
        candidates=[Example(str(i), ()) for i in range(pool.n)],
        n_tokens=ones,
        n_completion_tokens=ones,
        target=[Example(f"target-{i}", ()) for i in range(len(target[0]))],
        budget=Budget(Unit.ROWS, rows),
        seed=0,
        pool_gradients=pool,
        target_gradients=MemoryFeatures(tuple({"sgd": rows} for rows in target), tuple(1.0 for _ in target)),
    )


def memory_features(atoms: torch.Tensor) -> MemoryFeatures:
    """Return atoms as features of one checkpoint in memory."""
    return MemoryFeatures(({"sgd": atoms},), (1.0,))


def judge(
    atoms: Callable[[torch.Tensor], torch.Tensor],
    indices: torch.Tensor,
    weights: torch.Tensor,
    observed: torch.Tensor,
    clean: torch.Tensor,
) -> tuple[float, float, int]:
    """Return the residual, the distance to the clean target, and the number of exact copies.

    The scale is free, as weights have mean 1.
    """
    rows = atoms(indices).double()
    fitted = rows.T @ weights.double()

    def distance(target: torch.Tensor) -> float:
        scale = float(fitted @ target) / float(fitted @ fitted)
        return float((target - scale * fitted).norm() / target.norm())

    return distance(observed), distance(clean), len(rows) - len(row_hash(rows.float(), 0).unique())


# --- the correlation pass ---------------------------------------------------------------------------------


def measure_pass(pool: Clustered, repeats: int, report: Report) -> None:
    """Compare reading the pool with correlating it, in each type that it can be stored in."""
    wide = pool.atoms()
    residual = pool.clean().float()[:, None]
    stored = {"float32": wide, "bfloat16": wide.bfloat16(), "float16": wide.half()}
    methods: dict[str, Callable[[], object]] = {"read float32": wide.sum}
    for columns in (1, 8):
        for name, x in stored.items():
            label = name if columns == 1 else f"{name} with {columns} columns"
            several = residual.repeat(1, columns)
            methods[label] = lambda x=x, several=several: tensor_atoms(x).correlate(several)
    kernel = fused.widen_and_dot(wide.shape[1], torch.bfloat16)
    best = "bfloat16" if kernel is None else "bfloat16, compiled"
    if kernel is not None:
        methods[best] = lambda: kernel(stored["bfloat16"], residual[:, 0])
    for method in methods.values():
        method()
    timings = run_interleaved("pass", methods, max(10, repeats), report, amount=pool.n)
    read, pass32, pass16 = timings["read float32"], timings["float32"], timings[best]
    gigabytes = wide.numel() * 4 / 1e9

    def speed(name: str) -> str:
        return f"{name} {timings[name].median * 1e3:.1f} ms"

    report.figures += [
        Figure(
            f"correlation pass, float32 / plain read of the same bytes ({gigabytes:.2g} GB)",
            pass32.rate / read.rate,
            f"{speed('read float32')} ({gigabytes / read.median:.0f} GB/s), {speed('float32')}",
            0.7,
        ),
        Figure(
            f"correlation pass, {best} / float32",
            pass16.rate / pass32.rate,
            ", ".join(speed(name) for name in timings if name != "read float32"),
            1.0,
        ),
    ]


# --- budgets inside and beyond the rank -------------------------------------------------------------------


def measure_inside(pool: Clustered, sizes: Sequence[int], repeats: int, report: Report) -> None:
    """Compare with OMP where both choose the same number of rows with the same regularisation."""
    atoms, observed = pool.atoms(), pool.target_rows().double().mean(0)
    unit = observed.float()
    sizes = sorted(set(sizes))
    published = one_atom_omp(atoms, unit, steps=sizes, lam=RIDGE)
    report.published = published[-1]
    for size, there in zip(sizes, published, strict=True):
        add = adder(pool, atoms, size, report)
        # OMP is one pursuit of M rows, so GTP is too; as shipped it pursues in several smaller rounds.
        gtp = timed_gtp(pool, atoms, size, repeats, report, f"inside, M={size}", round_rows=size)
        slow = add("OMP as published, full refit at every step", there.seconds, there.indices, there.weights)
        pursuit = OMP().pursue(PursuitProblem(tensor_atoms(atoms), observed[:, None], size, RIDGE))
        quick = add("non-negative OMP, incremental", pursuit.seconds, pursuit.support, pursuit.weights[:, 0])
        first = size == min(sizes)  # the bars are for this one
        report.figures.append(
            Figure(
                f"N={pool.n:,}, M={size:,}: seconds of GTP",
                gtp.seconds,
                f"{gtp.rows} rows",
                3.0 if first else None,
                at_most=True,
            )
        )
        for other, bar in ((slow, 17.0), (quick, None)):
            report.figures += [
                Figure(
                    f"M={size:,}: speed of GTP / {other.method}",
                    other.seconds / gtp.seconds,
                    f"{gtp.seconds:.2f} s : {other.seconds:.1f} s, {gtp.rows} and {other.rows} rows",
                    bar,
                ),
                Figure(
                    f"M={size:,}: residual of GTP / {other.method}",
                    gtp.residual / other.residual,
                    f"{gtp.residual:.4f} : {other.residual:.4f}",
                    1.02,
                    at_most=True,
                ),
            ]


def measure_beyond(pool: Clustered, size: int, repeats: int, report: Report) -> None:
    """More rows than the rank: OMP ends before, so times do not compare and no ratio is given."""
    atoms = pool.atoms()
    gtp = timed_gtp(pool, atoms, size, repeats, report, f"beyond, M={size}")
    report.figures += [
        Figure(f"M={size:,}: seconds of GTP", gtp.seconds, f"{gtp.rows} rows", 10.0, True),
        Figure(f"M={size:,}: share of the rows asked for", gtp.rows / size, f"{gtp.rows} rows", 1.0),
        Figure(f"M={size:,}: exact copies chosen", gtp.copies, f"{gtp.copies}", 0.0, True),
    ]
    if report.published is not None:
        rank = min(pool.dim, size)
        cost = fit_step_cost(report.published.step_seconds)
        report.notes.append(
            f"**Extrapolated**, no measurement: OMP as published would end at its rank, at most {rank:,} of "
            f"{size:,} rows, after about {cost.total(rank):.0f} s ({describe_fit(cost)})."
        )


def describe_fit(cost: StepCost) -> str:
    """Return the fitted cost of an OMP step as a sentence."""
    terms = " + ".join(f"{c:.2g} k^{p}" for p, c in enumerate(cost.coefficients) if c > 0)
    return f"step k costs {terms} s, fitted to {cost.fitted_to} steps, R^2 {cost.determination:.4f}"


def timed_gtp(
    pool: Clustered,
    atoms: torch.Tensor,
    size: int,
    repeats: int,
    report: Report,
    section: str,
    **settings: Any,
) -> MethodResult:
    """Adds GTP at the ridge of the comparison, as shipped and cross-validated (each run once), and top-M;
    returns the first.

    settings: what else differs from the shipped GTP in the former.
    """
    asked = problem(memory_features(atoms), [pool.target_rows()], size)
    add = adder(pool, atoms, size, report)
    name = f"GTP, ridge {RIDGE:g} as OMP's"
    fixed = selector(regularisation=Regularisation.FIXED, ridge=RIDGE, near_copy_cosine=None, **settings)
    selection = fixed.select(asked)
    timing = run_interleaved(section, {name: lambda: fixed.select(asked)}, repeats, report, amount=1)[name]
    row = add(name, timing.median, selection.indices, selection.weights)
    for method, gtp in {
        "GTP as shipped": selector(),
        "GTP, ridge by cross-validation": selector(regularisation=Regularisation.CROSS_VALIDATION),
    }.items():
        began = time.perf_counter()
        chosen = gtp.select(asked)
        seconds = time.perf_counter() - began
        add(method, seconds, chosen.indices, chosen.weights)
        add("the same rows, equal weights", seconds, chosen.indices, torch.ones(size))
    add("top-M by correlation, equal weights", 0.0, selection.scores.topk(size).indices, torch.ones(size))
    return row


def adder(
    pool: Clustered, atoms: torch.Tensor, size: int, report: Report
) -> Callable[[str, float, torch.Tensor, torch.Tensor], MethodResult]:
    """Return a function that judges a choice and adds it to the report."""
    observed, clean = pool.target_rows().double().mean(0), pool.clean()

    def add(method: str, seconds: float, indices: torch.Tensor, weights: torch.Tensor) -> MethodResult:
        judged = judge(lambda index: atoms[index], indices, weights, observed, clean)
        report.rows.append(MethodResult(size, method, seconds, len(indices), *judged))
        return report.rows[-1]

    return add


# --- storage types ----------------------------------------------------------------------------------------


def measure_storage(pool: Clustered, size: int, report: Report) -> None:
    """Measure what rounding the stored gradients does to the chosen set."""
    wide, chosen = pool.atoms(), {}
    observed, clean = pool.target_rows().double().mean(0), pool.clean()
    lines = ["| stored as | same rows as float32 | residual | clean |", "|---|---|---|---|"]
    for name, stored in {
        "float32": wide,
        "bfloat16": wide.bfloat16(),
        "float16": wide.half(),
        "int8": from_int8(*to_int8(wide)),
    }.items():
        gtp = selector(regularisation=Regularisation.FIXED, ridge=RIDGE)
        selection = gtp.select(problem(memory_features(stored), [pool.target_rows()], size))
        indices, weights = selection.indices, selection.weights
        chosen[name] = set(indices.tolist())
        residual, distance, _ = judge(lambda i: wide[i], indices, weights, observed, clean)
        shared = len(chosen[name] & chosen["float32"]) / size
        lines.append(f"| {name} | {shared:.1%} | {residual:.4f} | {distance:.4f} |")
    report.tables.append(f"Storage type, N={pool.n:,}, M={size:,}:\n\n" + "\n".join(lines))


# --- a store on disk, at the paper's scale ----------------------------------------------------------------


def measure_disk(rows: int, dim: int, sizes: Sequence[int], scratch: Path, report: Report) -> None:
    """Measure in processes of their own, so that peak memory is theirs."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as worker:
        store_bytes = worker.apply(write_store, (rows, dim, scratch))
    report.notes.append(
        f"Store on disk: {store_bytes / 1e9:.2f} GB in bfloat16, {rows:,} rows x {dim} x {CHECKPOINTS}."
    )
    for size in sizes:
        with context.Pool(1) as worker:
            values = worker.apply(select_from_store, (rows, dim, size, scratch))
        row = MethodResult(**values["row"])
        report.rows.append(row)
        detail = (
            f"peak memory {values['peak_gib']:.2f} GiB beyond the mapped store, "
            f"{values['rounds']} rounds, {values['fill']} rows by fill, "
            f"{values['passes']} passes over the store"
        )
        report.figures.append(
            Figure(
                f"N={rows:,} x {CHECKPOINTS} on disk, M={size:,}: seconds of GTP",
                row.seconds,
                detail,
            )
        )
        whence = "from disk" if values["forgotten"] else "(this system cannot forget the files first)"
        report.figures.append(
            Figure(
                f"M={size:,} on disk: seconds of GTP / one plain read {whence}",
                row.seconds / values["read"],
                f"{row.seconds:.1f} : {values['read']:.1f} s; read from memory {values['again']:.1f} s",
                bar=READS if size < dim else None,
                at_most=True,
            )
        )
        if size <= CHECKPOINTS * dim:
            cost: StepCost = values["omp"]
            report.figures.append(
                Figure(
                    f"M={size:,} on disk: speed of GTP / incremental OMP, **extrapolated**",
                    cost.total(size) / row.seconds,
                    f"about {cost.total(size):.0f} s ({describe_fit(cost)})",
                )
            )


def checkpoints(rows: int, dim: int) -> list[Clustered]:
    """Return the checkpoints of one clustered pool."""
    return [Clustered(rows, dim, seed=1, checkpoint=t) for t in range(CHECKPOINTS)]


def write_store(rows: int, dim: int, scratch: Path) -> int:
    """Write the clustered store and return its bytes."""
    return write_clustered(scratch / "store", checkpoints(rows, dim)).nbytes


def select_from_store(rows: int, dim: int, size: int, scratch: Path) -> dict[str, Any]:
    """Select from a store that only the disk holds; return seconds, memory and quality, and the seconds of
    plain reads.
    """
    read, again = (read_files(scratch / "store", from_disk=cold) for cold in (True, False))
    forgotten = forget_files(scratch / "store")
    store = GradientStore.open(scratch / "store")
    pool = checkpoints(rows, dim)
    target = [one.target_rows() for one in pool]
    asked = problem(store, target, size)
    gtp = selector(regularisation=Regularisation.FIXED, ridge=RIDGE)
    with PeakMemory() as memory, Stopwatch(correlate_own=BlockAtoms, build_atoms=gtp_module) as watch:
        began = time.perf_counter()
        selection = gtp.select(asked)
        seconds = time.perf_counter() - began
    stored = [store.features(t, "sgd") for t in range(CHECKPOINTS)]

    def atoms(index: torch.Tensor) -> torch.Tensor:
        parts = [torch.nn.functional.normalize(s.rows(index).float(), dim=1) for s in stored]
        return torch.cat(parts, 1)

    observed = torch.cat([rows.double().mean(0) for rows in target])
    clean = torch.cat([one.clean() for one in pool])
    judged = judge(atoms, selection.indices, selection.weights, observed, clean)
    result = MethodResult(size, "GTP from disk, fixed ridge", seconds, len(selection.indices), *judged)
    values: dict[str, Any] = {
        "row": vars(result),
        "peak_gib": memory.peak_gib,
        "rounds": len(selection.diagnostics["rows_by_round"]),
        "fill": selection.diagnostics["rows_by_fill"],
        "read": read,
        "again": again,
        "forgotten": forgotten,
        "passes": watch.calls.total(),
    }
    if size <= CHECKPOINTS * dim:
        values["omp"] = incremental_step_cost(gtp, asked, steps=min(60, size))
    return values


def incremental_step_cost(gtp: GTP, asked: SelectionProblem, steps: int) -> StepCost:
    """Measure the first steps of incremental OMP on the same store; only the passes count so early."""
    data = gtp.pursuit_data(asked)
    target, _ = gtp.target(asked, data)
    seconds = []
    for size in (1, steps):
        began = time.perf_counter()
        OMP().pursue(PursuitProblem(data.atoms, target, size, RIDGE))
        seconds.append(time.perf_counter() - began)
    step = (seconds[1] - seconds[0]) / max(1, steps - 1)
    return StepCost((step,), steps, 1.0)


class PeakMemory:
    """Largest anonymous memory of this process inside the block, beyond that at its start, in GiB."""

    def __enter__(self) -> PeakMemory:
        self._before = self._peak = _anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, _anonymous())

    @property
    def peak_gib(self) -> float:
        return (self._peak - self._before) / 2**30


def _anonymous() -> int:
    """Bytes; memory-mapped files are not counted. 0 where the system does not tell."""
    return process_memory("RssAnon") or 0


# --- the command ------------------------------------------------------------------------------------------


def run_interleaved(
    section: str, methods: dict[str, Callable[[], object]], repeats: int, report: Report, *, amount: float
) -> dict[str, Timing]:
    """Measure methods in turns with a progress bar, and keep the repeats in the report."""
    with tqdm(total=repeats * len(methods), desc=section, unit="run", file=sys.stderr) as bar:
        timings = interleaved(
            methods,
            repeats,
            amount=amount,
            started=lambda name: bar.set_postfix_str(name),
            finished=lambda: bar.update(),
        )
    report.repeats[section] = timings
    return timings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", type=int, default=100_000, help="pool rows of the parts in memory")
    parser.add_argument("--dim", type=int, default=2048, help="dimension m of an atom")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000], help="budgets inside the rank")
    parser.add_argument("--beyond", type=int, default=5000, help="budget beyond the rank")
    parser.add_argument("--disk-rows", type=int, default=270_000)
    parser.add_argument("--disk-sizes", type=int, nargs="+", default=[1350, 13_500])
    parser.add_argument("--repeats", type=int, default=5, help="of GTP; the slow references run once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"))
    parser.add_argument("--scratch", type=Path, help="folder for the store on disk; removed at the end")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    setup, report = machine(options.threads), Report()
    pool = Clustered(options.rows, options.dim, seed=0)
    report.notes.append(
        f"The observed target lies {pool.noise} from the clean one. Residual and clean: distance of the "
        "chosen rows' weighted sum to the observed and the clean target, over its norm, at the best scale."
    )
    measures: dict[str, Callable[[], None]] = {
        "pass": lambda: measure_pass(pool, options.repeats, report),
        "inside": lambda: measure_inside(pool, options.sizes, options.repeats, report),
        "beyond": lambda: measure_beyond(pool, options.beyond, options.repeats, report),
        "storage": lambda: measure_storage(pool, min(options.sizes), report),
        "disk": lambda: _measure_disk(options, report),
    }
    text = ""
    for part in (part for part in PARTS if part in options.parts):
        print(f"{part}: begins", file=sys.stderr)
        start = time.perf_counter()
        measures[part]()
        text = _write(options, argv, setup, report)  # what is stopped keeps what it has
        took = time.perf_counter() - start
        print(f"{part}: done in {took:.0f} s, written to {options.output}", file=sys.stderr)
    print(text)
    return 0


def _measure_disk(options: argparse.Namespace, report: Report) -> None:
    """Measure selections from a store on disk, which is removed afterwards."""
    with scratch_folder(options.scratch) as scratch:
        measure_disk(options.disk_rows, options.dim, options.disk_sizes, scratch, report)


def _write(
    options: argparse.Namespace, argv: Sequence[str] | None, setup: Mapping[str, Any], report: Report
) -> str:
    """Write the report of the parts that are done, and return its text."""
    text = write_report(
        options.output,
        "selection",
        command="python -m gtp_benchmarks.performance.selection " + " ".join(argv or sys.argv[1:]),
        setup=setup,
        figures=report.figures,
        notes=report.notes,
        repeats=report.repeats,
        details={"rows": [vars(row) for row in report.rows]},
    )
    methods = "\n".join([HEAD, *(row.line() for row in report.rows)])
    text = "\n\n".join([text, methods, *report.tables, ""])
    (options.output / "selection.md").write_text(text)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
