"""Does a solver find what was planted, and does cross-validation bring a fit closer to the truth?

    python -m gtp_benchmarks.performance.recovery             # table and JSON
    python -m gtp_benchmarks.performance.recovery --picture docs/planted_recovery.svg    # needs '.[plots]'

Recovery: atoms in general position, the target a positive combination of M of them, with and without noise;
recall of the planted rows as M grows towards the dimension m. Truth: clusters and a noisy target whose clean
version is known (clustered.py); the distance of the fit to the clean target, at the best scale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gtp_benchmarks.performance.clustered import Clustered
from gtp_benchmarks.performance.measuring import in_words, machine
from gtp_benchmarks.performance.selection import judge, memory_features, problem, selector
from gtp_benchmarks.performance.sparse import sparse
from gtp_exp.errors import UserError, check_installed
from gtp_exp.selection.atoms.matrix import tensor_atoms
from gtp_exp.selection.gtp import Regularisation
from gtp_exp.selection.solvers.cosamp import CoSaMP
from gtp_exp.selection.solvers.elastic_net import ElasticNet
from gtp_exp.selection.solvers.omp import OMP, BlockOMP
from gtp_exp.selection.solvers.pursuit import PursuitProblem, Solver

Find = Callable[[torch.Tensor, torch.Tensor, int], set[int]]  # (atoms, target, M) -> rows
SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8)  # M / m
NOISES = (0.0, 0.3)  # norm of what is added, over that of the combination
RIDGE = 1e-3

FITS = {
    "no ridge to speak of": {"regularisation": Regularisation.FIXED, "ridge": 1e-3},
    "as shipped, a fixed ridge": {},
    "fixed ridge 1": {"regularisation": Regularisation.FIXED, "ridge": 1.0},
    "cross-validated": {"regularisation": Regularisation.CROSS_VALIDATION},
}


@dataclass(frozen=True)
class Recall:
    """Holds the share of planted rows that a solver found."""

    solver: str
    noise: float
    share: float  # M / m
    values: tuple[float, ...]  # one per seed


@dataclass(frozen=True)
class Truth:
    """Holds how far a fit is from the clean and from the observed target."""

    fit: str
    rows: int
    noise: float
    clean: tuple[float, ...]  # one per seed
    residual: tuple[float, ...]


def _pursuit(solver: Solver) -> Find:
    def find(atoms: torch.Tensor, target: torch.Tensor, size: int) -> set[int]:
        pursuit = solver.pursue(PursuitProblem(tensor_atoms(atoms), target[:, None], size, RIDGE))
        return set(pursuit.support.tolist())

    return find


def _sklearn_omp(atoms: torch.Tensor, target: torch.Tensor, size: int) -> set[int]:
    from sklearn.linear_model import orthogonal_mp

    weights: Any = orthogonal_mp(atoms.double().T.numpy(), target.numpy(), n_nonzero_coefs=size)
    return set(np.flatnonzero(weights).tolist())


SOLVERS: Mapping[str, Find] = {
    "cosamp (as shipped)": _pursuit(CoSaMP()),
    "cosamp, one prune (the paper's)": _pursuit(CoSaMP(prune_stages=1)),
    "elastic_net": _pursuit(ElasticNet()),
    "omp": _pursuit(OMP()),
    "block_omp": _pursuit(BlockOMP(steps=8)),
    "scikit-learn's OMP": _sklearn_omp,
    "top-M by correlation": lambda atoms, target, size: set(
        (atoms.double() @ target).topk(size).indices.tolist()
    ),
}


def recoveries(n: int, m: int, seeds: int) -> list[Recall]:
    """Measure for every solver, noise and size what share of the planted rows it finds."""
    rows = []
    with tqdm(total=len(NOISES) * len(SHARES) * seeds, desc="recovery", unit="problem") as bar:
        for noise in NOISES:
            for share in SHARES:
                size = max(1, round(share * m))
                values: dict[str, list[float]] = {name: [] for name in SOLVERS}
                for seed in range(seeds):
                    planted = sparse(n, m, size, noise, seed)
                    for name, find in SOLVERS.items():
                        support = find(planted.atoms, planted.target[:, 0], size)
                        values[name].append(len(support & planted.support) / size)
                    bar.update()
                rows += [Recall(name, noise, share, tuple(v)) for name, v in values.items()]
    return rows


def truths(n: int, m: int, sizes: Sequence[int], seeds: int) -> list[Truth]:
    """Measure how far fits with and without cross-validation are from the clean target."""
    rows = []
    noises = (0.28, 0.6)
    with tqdm(total=len(noises) * len(sizes) * seeds * len(FITS), desc="truth", unit="fit") as bar:
        for noise in noises:
            for size in sizes:
                clean: dict[str, list[float]] = {name: [] for name in FITS}
                residual: dict[str, list[float]] = {name: [] for name in FITS}
                for seed in range(seeds):
                    pool = Clustered(n, m, seed=seed, noise=noise)
                    atoms = pool.atoms()
                    observed, truth = pool.target_rows().double().mean(0), pool.clean()
                    asked = problem(memory_features(atoms), [pool.target_rows()], size)
                    for name, settings in FITS.items():
                        selection = selector(**settings).select(asked)
                        near, far, _ = judge(
                            lambda i, of=atoms: of[i], selection.indices, selection.weights, observed, truth
                        )
                        residual[name].append(near)
                        clean[name].append(far)
                        bar.update()
                rows += [Truth(name, size, noise, tuple(clean[name]), tuple(residual[name])) for name in FITS]
    return rows


def picture(rows: Sequence[Recall], path: Path) -> None:
    """Draw the recall over M / m as an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gtp-exp"  # the same numbers give the same file
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(NOISES), figsize=(10, 4), sharey=True)
    for panel, noise in zip(panels, NOISES, strict=True):
        for name in SOLVERS:
            line = [row for row in rows if row.solver == name and row.noise == noise]
            x = [row.share for row in line]
            panel.plot(x, [fmean(row.values) for row in line], marker="o", markersize=3, label=name)
            panel.fill_between(
                x, [min(r.values) for r in line], [max(r.values) for r in line], alpha=0.12, linewidth=0
            )
        panel.set_title("no noise" if noise == 0 else f"noise {noise:.0%} of the combination")
        panel.set_xlabel("planted rows / dimension (M / m)")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("share of the planted rows found")
    panels[1].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def tables(recalls: Sequence[Recall], fits: Sequence[Truth]) -> str:
    """Return all figures as Markdown tables."""
    text = []
    for noise in NOISES:
        text += [f"Recall of the planted rows, noise {noise:.0%}, by M / m:", ""]
        text.append("| solver | " + " | ".join(f"{share:.3g}" for share in SHARES) + " |")
        text.append("|---" * (len(SHARES) + 1) + "|")
        for name in SOLVERS:
            line = [r for r in recalls if r.solver == name and r.noise == noise]
            text.append(f"| {name} | " + " | ".join(f"{fmean(r.values):.2f}" for r in line) + " |")
        text.append("")
    text += ["Distance to the clean target (mean and standard deviation over seeds):", ""]
    text += ["| noise | M | fit | clean | residual to the observed target |", "|---|---|---|---|---|"]
    for fit in fits:
        text.append(
            f"| {fit.noise} | {fit.rows} | {fit.fit} | {fmean(fit.clean):.3f} ± {_deviation(fit.clean):.3f} "
            f"| {fmean(fit.residual):.3f} |"
        )
    return "\n".join(text)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and write its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=4000, help="atoms of the recovery problems")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--truth-rows", type=int, default=20_000)
    parser.add_argument("--truth-dim", type=int, default=1024)
    parser.add_argument("--truth-sizes", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("outputs/performance"))
    parser.add_argument("--picture", type=Path, help="SVG of the recovery curves")
    options = parser.parse_args(argv)
    if options.picture:
        try:
            check_installed("--picture", "matplotlib", extra="plots")
        except UserError as error:
            parser.error(str(error))
    torch.set_num_threads(options.threads)
    setup = machine(options.threads)
    recalls = recoveries(options.rows, options.dim, options.seeds)
    _write(options, argv, setup, recalls, [])  # the next part takes longer, and may be stopped
    fits = truths(options.truth_rows, options.truth_dim, options.truth_sizes, options.seeds)
    print(_write(options, argv, setup, recalls, fits))
    if options.picture:
        picture(recalls, options.picture)
    return 0


def _write(
    options: argparse.Namespace,
    argv: Sequence[str] | None,
    setup: dict[str, Any],
    recalls: Sequence[Recall],
    fits: Sequence[Truth],
) -> str:
    """Write what is measured so far, and return it as text."""
    command = "python -m gtp_benchmarks.performance.recovery " + " ".join(argv or sys.argv[1:])
    text = "\n\n".join([tables(recalls, fits), f"`{command.strip()}`", in_words(setup), ""])
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "recovery.md").write_text(text)
    values = {"command": command, "machine": setup}
    values |= {"recall": [asdict(r) for r in recalls], "truth": [asdict(t) for t in fits]}
    (options.output / "recovery.json").write_text(json.dumps(values, indent=1) + "\n")
    return text


if __name__ == "__main__":
    raise SystemExit(main())
