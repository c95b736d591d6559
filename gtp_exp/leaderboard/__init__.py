"""The leaderboard: from the results.json files of many runs to tables and one page. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gtp-exp-leaderboard`. Its libraries are imported here: a job reads the names of metrics alone."""
    from gtp_exp.leaderboard.command import main as command

    return command(argv)
