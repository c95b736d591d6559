"""What a block of the table says, in words: the sentence a careful reader would take away."""

from __future__ import annotations

from gtp_exp.leaderboard.board import BoardBlock, BoardLine
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.statistics import ALPHA
from gtp_exp.leaderboard.trajectories import fixed_trajectories


def sentences(block: BoardBlock, metric: Metric, baseline: str) -> tuple[str, ...]:
    """One to four sentences; nothing is called better without a corrected test, and what holds for one
    trajectory says so."""
    ranked = [line for line in block.lines if line.rank is not None]
    if not ranked:
        return ("No run at this budget has the ranking metric.",)
    leader = ranked[0]
    most = max(line.summary[metric.name].n for line in ranked)
    best = "highest" if metric.higher_is_better else "lowest"
    first = [line.row.label for line in ranked if line.rank == 1]
    said = [
        f"{_listed(first)} {'has' if len(first) == 1 else 'share'} the {best} mean {metric.label}, "
        f"{metric.show(leader.summary[metric.name].mean)}."
    ]
    if len(ranked) == 1:
        return (f"Only {leader.row.label} was run: there is nothing to compare it to.",)
    if most == 1:
        said.append("Every row is a single seed, so this order may be luck: run more seeds.")
        return tuple(said)
    if leader.best:
        said.append("It is better than every other row here, each difference tested at equal seeds.")
    elif len(block.close) == len(ranked) - 1:
        said.append(f"{leader.row.label} cannot be told from any of the others with these seeds.")
    else:
        said.append(f"{leader.row.label} cannot be told from {_listed(block.close)} with these seeds.")
    said.extend(_against_baseline(ranked, metric, baseline))
    if fixed := fixed_trajectories(line.row for line in ranked):
        said.append(f"All this holds for one warm-up trajectory ({', '.join(fixed)}).")
    return tuple(said)


def _against_baseline(lines: list[BoardLine], metric: Metric, baseline: str) -> list[str]:
    tested = [line for line in lines if line.versus and line.p_holm is not None]
    if not tested:
        return []
    better = [line.row.label for line in tested if line.better_than_baseline is True]
    worse = [line.row.label for line in tested if line.better_than_baseline is False]
    said: list[str] = []
    if better:
        said.append(f"Better than {baseline} (p < {ALPHA}): {_listed(better)}.")
    if worse:
        said.append(f"Worse than {baseline} (p < {ALPHA}): {_listed(worse)}.")
    if not better and not worse:
        said.append(f"No selector differs from {baseline} at p < {ALPHA} after correction.")
    return said


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
