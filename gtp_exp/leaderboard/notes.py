"""What a reader must know before believing a table, as sentences."""

from __future__ import annotations

from collections.abc import Sequence

from gtp_exp.leaderboard.baseline import is_baseline
from gtp_exp.leaderboard.board import BoardBlock
from gtp_exp.leaderboard.choices import judged_by_labels
from gtp_exp.leaderboard.comparability import TRAJECTORY_SEED, Table
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.trajectories import fixed_trajectories


def notes_on(
    table: Table, blocks: Sequence[BoardBlock], metrics: tuple[Metric, ...], baseline: str
) -> list[str]:
    """Return what limits a table: a missing baseline, mixed code or packages, a shared trajectory."""
    notes: list[str] = []
    if not metrics:
        notes.append("These runs were not evaluated: only the selections can be compared.")
    by_labels = judged_by_labels(table.runs)
    if by_labels:
        notes.append(
            "No model was tested: the choices are judged by labels of the rows that no selector has seen. "
            "A row on target need not be the better one to train on."
        )
    elif by_labels is False:
        notes.append(
            "No model was tested and the rows have no labels: copies among the chosen rows say little of "
            "what a choice is worth. until=validation trains a model and measures it, and so does a job "
            "without until."
        )
    meant = dict.fromkeys(row.label for row in table.rows if is_baseline(row, baseline))
    if metrics and not meant:
        notes.append(f"No run of the baseline {baseline}: nothing is compared to it.")
    elif metrics:
        alone = [
            f"{line.row.label} at {line.row.budget}"
            for block in blocks
            for line in block.lines
            if line.rank is not None and line.versus is None and not line.is_baseline
        ]
        if len(meant) > 1 and not any(line.versus for block in blocks for line in block.lines):
            notes.append(
                f"Nothing is compared to {baseline}, which stands in {len(meant)} rows; name one of them: "
                f'--baseline "{next(iter(meant))}".'
            )
        elif alone:
            notes.append(f"Without a run of {baseline} of the same settings and seeds: {', '.join(alone)}.")
    commits = {run.record.git_sha or "unknown" for run in table.runs}
    if len(commits) > 1:
        shown = ", ".join(sorted(commit[:10] for commit in commits))
        notes.append(f"The runs come from {len(commits)} commits of the code ({shown}).")
    devices = {str(run.record.model["device"]) for run in table.runs if "device" in run.record.model}
    if len(devices) > 1:
        notes.append(
            f"The runs computed on different devices ({', '.join(sorted(devices))}), whose rounding differs: "
            "equal seeds need not share a trajectory."
        )
    versions: dict[str, set[str]] = {}
    for run in table.runs:
        for package, version in run.record.packages.items():
            versions.setdefault(package, set()).add(version)
    mixed = sorted(package for package, versions_used in versions.items() if len(versions_used) > 1)
    if mixed:
        shown = "; ".join(f"{package} {', '.join(sorted(versions[package]))}" for package in mixed)
        notes.append(f"The runs used different package versions: {shown}.")
    if metrics and (fixed := fixed_trajectories(table.rows)):
        notes.append(
            f"The seeds share one warm-up trajectory ({', '.join(fixed)}): intervals and p-values hold for "
            "that trajectory only, and a selector that draws nothing itself chooses the same rows at every "
            f"seed. Run with {TRAJECTORY_SEED}=${{seed}}, or a store for each seed, to vary it with the seed."
        )
    for block in blocks if metrics else ():
        seeds = {tuple(sorted(line.values.get(metrics[0].name, {}))) for line in block.lines}
        if len(seeds - {()}) > 1:  # a row without a value is not ranked
            notes.append(
                f"At {block.budget} the rows have different seeds, so their means cover different runs; "
                "differences are taken over the common seeds only."
            )
    for kind in metrics[1:]:  # a run without the first is not ranked
        short = [
            f"{line.row.label} at {line.row.budget} ({summary.n} of {len(line.row.runs)})"
            for block in blocks
            for line in block.lines
            if (summary := line.summary.get(kind.name)) and summary.n < len(line.row.runs)
        ]
        if short:
            notes.append(
                f"Some runs do not tell {kind.label}: it is a mean over fewer seeds for {', '.join(short)}."
            )
    return notes
