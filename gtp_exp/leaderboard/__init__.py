"""The leaderboard: from the results.json files of many runs to tables and one page. Imports no torch."""

from gtp_exp.leaderboard.command import main

__all__ = ["main"]
