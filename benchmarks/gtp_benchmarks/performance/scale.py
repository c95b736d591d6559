"""How the cost of a selection grows with the pool, and what that says of ten million examples.

    python -m gtp_benchmarks.performance.scale                     # ten minutes on two cores

One thing at a time is changed around a small base point: rows N, dimension d of a checkpoint's sketch, budget
M, checkpoints T, processes. Every selection reads a store on disk at every pass, in processes of one thread.
A formula is fitted to what was measured (cost_model.py) and says what a pool would cost that is not here:
a projection, no measurement.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

from tqdm import tqdm

from gtp_benchmarks.performance import cost_model
from gtp_benchmarks.performance.clustered import BLOCK, COPIES
from gtp_benchmarks.performance.clustered_store import write_clustered
from gtp_benchmarks.performance.cost_model import (
    Fit,
    MeasuredSelection,
    Point,
    ProjectedCost,
    Scenario,
    numbers_sent,
    project,
)
from gtp_benchmarks.performance.measuring import Figure, machine, scratch_folder, write_report
from gtp_benchmarks.performance.selection_points import (
    in_processes,
    measure_point,
    pool_of,
    under_a_limit,
    without_a_limit,
)
from gtp_exp.selection.gtp import Regularisation

FACTORS = {
    "n": (0.5, 1, 2, 4),
    "dim": (0.5, 1, 2, 4),
    "wanted": (0.25, 0.5, 1, 2, 4),
    "checkpoints": (0.5, 1, 2),
    "processes": (1, 2),
}
MANY, SHORT = 25, 32  # so many times as many rows, and as short
PARTITIONS = (1, 2, 4, 8)
LIMIT_SIZES = (1, 2, 4)  # of stores, over the limit of memory
LIMIT_DIM = 1024  # wide rows: the few numbers kept per row are small beside them


def around(base: Point) -> dict[str, list[Point]]:
    """Return, for each curve, the points that differ from the base in one thing; and one of many short rows,
    which shows what a row costs whatever its length.
    """
    curves = {
        name: [replace(base, **{name: max(1, int(factor * getattr(base, name)))}) for factor in factors]
        for name, factors in FACTORS.items()
    }
    short = replace(base, n=MANY * base.n, dim=max(1, base.dim // SHORT))
    return curves | {"short rows": [short]}


@contextmanager
def stored(point: Point, scratch: Path) -> Iterator[Path]:
    """Keep the pool of a point on disk for as long as the block lasts."""
    with scratch_folder(scratch) as folder:
        write_clustered(folder / "store", pool_of(point), progress=False)
        yield folder / "store"


def measure_curves(base: Point, scratch: Path, repeats: int) -> dict[Point, MeasuredSelection]:
    """Measure every point of the curves around the base."""
    wanted = dict.fromkeys(point for points in around(base).values() for point in points)
    measured: dict[Point, MeasuredSelection] = {}
    with tqdm(total=len(wanted), desc="curves", unit="point", file=sys.stderr) as bar:
        while left := [point for point in wanted if point not in measured]:
            shape = (left[0].n, left[0].dim, left[0].checkpoints)
            with stored(left[0], scratch) as folder:
                for point in left:
                    if (point.n, point.dim, point.checkpoints) == shape:
                        bar.set_postfix_str(f"N={point.n:,} m={point.m:,} M={point.wanted}")
                        measured[point] = measure_point(folder, point, repeats)
                        bar.update()
    return measured


def measure_modes(base: Point, scratch: Path) -> tuple[MeasuredSelection, list[MeasuredSelection]]:
    """Measure the base point with a cross-validated ridge, and chosen in parts."""
    with stored(base, scratch) as folder:
        validated = measure_point(folder, base, 1, regularisation=Regularisation.CROSS_VALIDATION, folds=4)
        parts = [
            measure_point(folder, base, 1, partitions=count) if count > 1 else measure_point(folder, base, 1)
            for count in tqdm(PARTITIONS, desc="partitions", file=sys.stderr)
        ]
    return validated, parts


def measure_limits(limit: int, scratch: Path) -> list[dict[str, float | bool]]:
    """Measure under a limit of memory, with stores as large as the limit and larger."""
    rows = []
    for size in tqdm(LIMIT_SIZES, desc="under a limit", file=sys.stderr):
        point = Point(size * limit // (2 * 2 * LIMIT_DIM), LIMIT_DIM, 24, 2)
        with stored(point, scratch) as folder:
            (limited,) = in_processes(1, under_a_limit, folder, point, limit)
            (free,) = in_processes(1, without_a_limit, folder, point)
        same = limited["indices"] == free
        rows.append(
            {
                "n": point.n,
                "store": size * limit,
                "peak": limited["peak"],
                "same": same,
                "held": limited["held"],
            }
        )
    return rows


# --- the report -------------------------------------------------------------------------------------------


def megabytes(bytes_: float) -> str:
    """Return bytes as MB or GB."""
    return f"{bytes_ / 1e6:,.1f} MB" if bytes_ < 1e9 else f"{bytes_ / 1e9:,.1f} GB"


def projected_time(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


CURVES = """| N | d | M | T | P | cpu | by the formula | wall | passes | rounds | memory | on disk | sent |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def curve_table(measured: dict[Point, MeasuredSelection], time: Fit) -> str:
    """Return the measured points as a Markdown table."""
    lines = [CURVES]
    for point, one in measured.items():
        fitted = time.value(cost_model.time_terms(point, one.passes, one.rounds))
        lines.append(
            f"| {point.n:,} | {point.dim:,} | {point.wanted} | {point.checkpoints} | {point.processes} "
            f"| {one.cpu:.2f} s | {fitted:.2f} s | {one.wall:.2f} s | {one.passes} | {one.rounds} "
            f"| {megabytes(one.peak)} | {megabytes(one.disk)} | {one.sent / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def fit_table(time: Fit, memory: Fit) -> str:
    """Return the fitted coefficients as a Markdown table."""
    rates = {
        "scan": ("N m / P", "number"),
        "sort": ("N", "row"),
        "pass": ("K N m / P", "number"),
        "step": ("K T N / P", "row of a checkpoint"),
        "fetch": ("I T F", "file"),
        "row": ("I N", "row and iteration"),
        "solve": ("I r^2 m", "product"),
        "refit": ("M^2 m", "product"),
    }
    lines = ["| term | coefficient |", "|---|---|"]
    lines += [
        f"| {term} ({name}) | {time[name] * 1e9:.3g} ns per {of} |" for name, (term, of) in rates.items()
    ]
    lines.append(f"| fixed | {time['fixed']:.2g} s |")
    lines.append(f"| memory: N | {4 * memory['per_row']:.0f} bytes per row |")
    lines.append(f"| memory: r m | {4 * memory['looked_at']:.0f} bytes |")
    lines.append(f"| memory: M m | {4 * memory['chosen']:.0f} bytes |")
    return "\n".join(lines)


def limit_table(rows: Sequence[dict], limit: int) -> str:
    """Return the runs under a limit of memory as a Markdown table."""
    lines = [
        f"Under a limit of {megabytes(limit)} (RLIMIT_DATA) beyond imports, maps and the problem itself:",
        "",
        "| N | store | peak memory | same rows as without a limit | held in memory instead |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['n']:,} | {megabytes(row['store'])} | {megabytes(row['peak'])} "
            f"| {'yes' if row['same'] else '**no**'} | {'fails' if row['held'] else '**fits**'} |"
        )
    return "\n".join(lines)


def partition_table(parts: Sequence[MeasuredSelection], base: Point) -> str:
    """Return the choices in parts as a Markdown table."""
    lines = [
        f"Chosen in parts (`selector.partitions`), N = {base.n:,}, M = {base.wanted}, one process:",
        "",
        "| parts | residual | over that of one part | clean | cpu |",
        "|---|---|---|---|---|",
    ]
    for count, one in zip(PARTITIONS, parts, strict=True):
        ratio = one.residual / parts[0].residual
        lines.append(f"| {count} | {one.residual:.4f} | {ratio:.3f} | {one.clean:.4f} | {one.cpu:.2f} s |")
    return "\n".join(lines)


def projection_table(s: Scenario, p: ProjectedCost, pool: str) -> str:
    """Return the projected costs as a Markdown table."""
    seconds = {"gradients, all GPUs": (p.gradients, p.gradients)}
    seconds |= {f"selection: {name}": (p.parts[name], p.on_gpu[name]) for name in p.parts}
    seconds[f"selection, in all ({p.passes:.0f} passes)"] = (p.seconds, p.seconds_on_gpu)
    sizes = {
        "store on disk, bf16": p.disk,
        "the share of each process: mapped, or in its GPU": p.share,
        "memory of each process beyond its share": p.memory,
        "sent per iteration, each process": p.sent_per_pass,
        "sent in all, each process": p.sent,
    }
    lines = [
        f"**Projection, no measurement**: {pool}. Assumed: {assumptions(s)}.",
        "",
        "| what | as the code is: on CPUs beside the GPUs | were the store held in the GPUs' memory |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {projected_time(here)} | {projected_time(there)} |"
        for name, (here, there) in seconds.items()
    ]
    lines += [f"| {name} | {megabytes(size)} | {megabytes(size)} |" for name, size in sizes.items()]
    return "\n".join(lines)


def assumptions(s: Scenario) -> str:
    """Return the assumptions of a scenario as a sentence."""
    return (
        f"a model of {s.parameters / 1e9:g} billion parameters, {s.tokens:g} tokens an example, 4 FLOP per "
        f"parameter and token at {s.utilisation:.0%} of {s.gpu_flops / 1e12:g} TFLOP/s, so "
        f"{s.examples_per_s:.0f} examples/s a GPU and checkpoint; storage that reads "
        f"{s.storage_bytes_per_s / 1e9:g} GB/s for all processes together, once, and then stays in the page "
        f"cache; {s.network_bytes_per_s / 1e9:g} GB/s of network per process; "
        f"{s.gpu_bytes_per_s / 1e12:g} TB/s of GPU memory; {s.copies:.0%} of the rows repeat another; the "
        "coefficients of one core of this machine for all else; a fixed ridge"
    )


def report_figures(
    base: Point,
    measured: dict[Point, MeasuredSelection],
    limits: Sequence[dict],
    time: Fit,
    parts: Sequence[MeasuredSelection],
) -> list[Figure]:
    """Return the ratios that have a bar to pass."""
    errors = [abs(error) for error in time.errors]
    one, two = (measured[replace(base, processes=count)] for count in (1, 2))
    first, last = limits[0], limits[-1]
    formula = numbers_sent(two.point, two.passes, two.rounds, two.point.n * COPIES)
    return [
        Figure(
            "largest error of the formula for time, over the points",
            max(errors),
            f"median {statistics.median(errors):.1%}, {len(errors)} points",
        ),
        Figure(
            "processor time of one process / of each of two",
            one.cpu / two.cpu,
            f"{one.cpu:.2f} : {two.cpu:.2f} s",
        ),
        Figure(
            "numbers sent by each of two processes / by the formula",
            two.sent / formula,
            f"{two.sent / 1e6:.2f} : {formula / 1e6:.2f} million",
        ),
        Figure(
            "growth of peak memory / of the store, from one to four times the limit",
            (last["peak"] - first["peak"]) / (last["store"] - first["store"]),
            f"{megabytes(first['peak'])} to {megabytes(last['peak'])}, "
            f"{megabytes(first['store'])} to {megabytes(last['store'])}",
            0.1,
            at_most=True,
        ),
        Figure(
            f"residual in {PARTITIONS[-1]} parts / in one",
            parts[-1].residual / parts[0].residual,
            f"{parts[-1].residual:.4f} : {parts[0].residual:.4f}",
        ),
    ]


def scenario_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a scenario to the command line."""
    for field in fields(Scenario):
        if field.name != "point":
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=float, default=field.default, help="of the projection")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the curves, fit the formulas, project the scenario and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=20_000, help="N of the base point")
    parser.add_argument("--dim", type=int, default=1024, help="d")
    parser.add_argument("--budget", type=int, default=200, help="M")
    parser.add_argument("--checkpoints", type=int, default=2, help="T")
    parser.add_argument("--limit-mib", type=int, default=32, help="of memory, in the part about that")
    parser.add_argument("--repeats", type=int, default=3, help="of every selection; the quickest counts")
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"))
    parser.add_argument("--scratch", type=Path, help="folder for the stores on disk; removed at the end")
    scenario_options(parser)
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes started here
    setup, base = machine(1), Point(options.rows, options.dim, options.budget, options.checkpoints)
    with scratch_folder(options.scratch) as scratch:
        measured = measure_curves(base, scratch, options.repeats)
        validated, parts = measure_modes(base, scratch)
        limits = measure_limits(options.limit_mib << 20, scratch)
    points = list(measured.values())
    time, memory = cost_model.fit_time(points), cost_model.fit_memory(points)
    given = {f.name: getattr(options, f.name) for f in fields(Scenario) if f.name != "point"}
    scenario = Scenario(**given)
    per_round = statistics.median((one.passes - 1) / one.rounds for one in points)
    p = scenario.point
    pool = (
        f"{p.n:,} examples x {p.checkpoints} checkpoints x {p.dim:,} numbers, {p.wanted:,} rows chosen, "
        f"{p.processes} GPUs with a process each"
    )
    text = write_report(
        options.output,
        "scale",
        command="python -m gtp_benchmarks.performance.scale " + " ".join(argv or sys.argv[1:]),
        setup=setup,
        figures=report_figures(base, measured, limits, time, parts),
        notes=[
            f"A pool of clusters, {COPIES:.0%} of its rows exact copies, in shards of {BLOCK:,} rows.",
            "cpu: seconds of the processor of the process that took most, which other work on the machine "
            "does not lengthen as it does wall time. memory: anonymous, beyond that at the start. "
            "sent: numbers that a process hands to sums over all.",
            f"Passes per round: {per_round:.1f} in the median. With a cross-validated ridge the base point "
            f"takes {validated.passes} passes and {validated.cpu:.1f} s.",
        ],
        repeats={},
        details={
            "points": [asdict(one) for one in points],
            "time": asdict(time),
            "memory": asdict(memory),
            "cross_validated": asdict(validated),
            "partitions": [asdict(one) for one in parts],
            "limits": limits,
            "projection": asdict(project(scenario, time, memory, per_round)),
        },
    )
    formula = "\n".join((cost_model.__doc__ or "").splitlines()[2:]).rstrip()
    projected = projection_table(scenario, project(scenario, time, memory, per_round), pool)
    tables = [curve_table(measured, time), formula, fit_table(time, memory)]
    tables += [limit_table(limits, options.limit_mib << 20), partition_table(parts, base), projected]
    text = "\n\n".join([text, *tables, ""])
    (options.output / "scale.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
