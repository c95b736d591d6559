"""What a reader must know before believing a table, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gtp_exp.leaderboard.baseline import is_baseline
from gtp_exp.leaderboard.board import BoardBlock
from gtp_exp.leaderboard.choices import judged_by_labels
from gtp_exp.leaderboard.comparability import TRAJECTORY_SEED, Table
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.records import Run
from gtp_exp.leaderboard.trajectories import fixed_trajectories


def notes_on(
    table: Table, blocks: Sequence[BoardBlock], metrics: tuple[Metric, ...], baseline: str
) -> list[str]:
    """Return what limits a table: a missing baseline, mixed code or packages, a shared trajectory."""
    notes = [*_what_was_tested(table.runs, metrics)]
    if metrics:
        notes += _what_is_compared(table, blocks, baseline)
    notes += [*_code(table.runs), *_devices(table.runs), *_packages(table.runs)]
    if metrics:
        notes += [*_trajectories(table), *_seeds(blocks, metrics[0]), *_missing_values(blocks, metrics[1:])]
    return notes


def _what_was_tested(runs: Sequence[Run], metrics: tuple[Metric, ...]) -> Iterator[str]:
    if not metrics:
        yield "These runs were not evaluated: only the selections can be compared."
    by_labels = judged_by_labels(runs)
    if by_labels:
        yield (
            "No test of a model counts here: the choices are judged by labels of the rows that no selector "
            "has seen. A row on target need not be the better one to train on."
        )
    elif by_labels is False:
        yield (
            "No test of a model counts here, and the rows have no labels: copies among the chosen rows say "
            "little of what a choice is worth. until=validation trains a model and measures it, and so does "
            "a job without until."
        )


def _what_is_compared(table: Table, blocks: Sequence[BoardBlock], baseline: str) -> Iterator[str]:
    """Tell a baseline that there is not, that may be several rows, or that some rows have no seeds of."""
    meant = dict.fromkeys(row.label for row in table.rows if is_baseline(row, baseline))
    lines = [line for block in blocks for line in block.lines]
    alone = [
        f"{line.row.label} at {line.row.budget}"
        for line in lines
        if line.rank is not None and line.versus is None and not line.is_baseline
    ]
    if not meant:
        yield f"No run of the baseline {baseline}: nothing is compared to it."
    elif len(meant) > 1 and not any(line.versus for line in lines):
        yield (
            f"Nothing is compared to {baseline}, which stands in {len(meant)} rows; name one of them: "
            f'--baseline "{next(iter(meant))}".'
        )
    elif alone:
        yield f"Without a run of {baseline} of the same settings and seeds: {', '.join(alone)}."


def _code(runs: Sequence[Run]) -> Iterator[str]:
    commits = {run.record.git_sha or "unknown" for run in runs}
    if len(commits) > 1:
        shown = ", ".join(sorted(commit[:10] for commit in commits))
        yield f"The runs come from {len(commits)} commits of the code ({shown})."


def _devices(runs: Sequence[Run]) -> Iterator[str]:
    devices = {str(run.record.model["device"]) for run in runs if "device" in run.record.model}
    if len(devices) > 1:
        yield (
            f"The runs computed on different devices ({', '.join(sorted(devices))}), whose rounding differs: "
            "equal seeds need not share a trajectory."
        )


def _packages(runs: Sequence[Run]) -> Iterator[str]:
    versions: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run.record.packages.items():
            versions.setdefault(package, set()).add(version)
    mixed = {package: used for package, used in sorted(versions.items()) if len(used) > 1}
    if mixed:
        shown = "; ".join(f"{package} {', '.join(sorted(used))}" for package, used in mixed.items())
        yield f"The runs used different package versions: {shown}."


def _trajectories(table: Table) -> Iterator[str]:
    if fixed := fixed_trajectories(table.rows):
        yield (
            f"The seeds share one warm-up trajectory ({', '.join(fixed)}): intervals and p-values hold for "
            "that trajectory only, and a selector that draws nothing itself chooses the same rows at every "
            f"seed. Run with {TRAJECTORY_SEED}=${{seed}}, or a store for each seed, to vary it with the seed."
        )


def _seeds(blocks: Sequence[BoardBlock], first: Metric) -> Iterator[str]:
    for block in blocks:
        seeds = {tuple(sorted(line.values.get(first.name, {}))) for line in block.lines}
        if len(seeds - {()}) > 1:  # a row without a value is not ranked
            yield (
                f"At {block.budget} the rows have different seeds, so their means cover different runs; "
                "differences are taken over the common seeds only."
            )


def _missing_values(blocks: Sequence[BoardBlock], beside: Sequence[Metric]) -> Iterator[str]:
    """Tell means over fewer seeds. beside: the metrics but the first, without which no run is ranked."""
    for kind in beside:
        short = [
            f"{line.row.label} at {line.row.budget} ({summary.n} of {len(line.row.runs)})"
            for block in blocks
            for line in block.lines
            if (summary := line.summary.get(kind.name)) and summary.n < len(line.row.runs)
        ]
        if short:
            yield f"Some runs do not tell {kind.label}: it is a mean over fewer seeds for {', '.join(short)}."
