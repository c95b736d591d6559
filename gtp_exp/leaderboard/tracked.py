"""Report a leaderboard to Weights & Biases, beside the runs that it ranks: gtp-exp-leaderboard --wandb."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gtp_exp.errors import first_line
from gtp_exp.leaderboard.board import Board
from gtp_exp.records.address import public_address
from gtp_exp.tracking.wandb import WandbTracking, end_run, log_table, start_run

COLUMNS = ("table", "rank", "selector", "budget", "seeds", "metric", "mean", "low", "high", "runs")
SUMMARY = "leaderboard"  # of a ranked run: where the leaderboard is


def report(boards: Sequence[Board], page: str, out: Path) -> str:
    """Log the page and the ranking as a run of the job type `leaderboard`, and return what to tell.

    It is online or offline, and in a project, as the environment says for runs (WANDB_MODE, WANDB_PROJECT).
    Where it is online, the summary of each ranked run that is online gets its address.
    """
    addresses = run_addresses(boards)
    about = {"name": "leaderboard", "job_type": "leaderboard", "config": {"runs": addresses}}
    run = start_run(WandbTracking(), out, **about)
    if run is None:
        return "W&B: not reported; the warning above says why"
    import wandb

    run.log({"page": wandb.Html(page, inject=False)})
    log_table(run, "ranking", COLUMNS, ranking(boards))
    here, folder = public_address(run.url), Path(run.settings.sync_dir)
    end_run(run, out)
    if here is None:
        return f"W&B: offline; send it by wandb sync {shlex.quote(str(folder))}"
    return f"W&B: {here}{linked_back(wandb.Api(), addresses, here)}"


def run_addresses(boards: Sequence[Board]) -> list[str]:
    """Return where the ranked runs are in W&B, of those that were tracked online."""
    runs = [run for board in boards for line in board.lines for run in line.row.runs]
    return list(dict.fromkeys(run.tracked_at for run in runs if run.tracked_at))


def ranking(boards: Sequence[Board]) -> list[list[Any]]:
    """Return a row of `COLUMNS` for each line, by the metric that ranks; W&B makes links of the addresses."""
    rows = []
    for board in boards:
        for line in board.lines:
            metric = board.metrics[0] if board.metrics else None
            summary = line.summary.get(metric.name) if metric else None
            between = summary.interval if summary else None
            numbers = [summary and summary.mean, between and between.low, between and between.high]
            runs = " ".join(run.tracked_at or run.name for run in line.row.runs)
            name = [board.table.label, line.rank, line.row.label, line.row.budget, len(line.row.runs)]
            rows.append([*name, metric.label if metric else "", *numbers, runs])
    return rows


def linked_back(api: Any, addresses: Sequence[str], here: str) -> str:
    """Write the leaderboard's address into the summaries of runs at HOST/ENTITY/PROJECT/runs/ID; return what
    to tell of it.

    api: a wandb.Api. A run on another host, or one that cannot be changed, is left as it is.
    """
    linked, failed = 0, ""
    for address in addresses:
        parts = urlsplit(address)
        path = parts.path.strip("/").split("/")
        if parts.netloc != urlsplit(here).netloc or len(path) != 4:
            continue
        try:
            run = api.run(f"{path[0]}/{path[1]}/{path[3]}")
            run.summary[SUMMARY] = here
            run.summary.update()
            linked += 1
        except Exception as error:  # of the network, or of rights
            failed = f"; {first_line(error)}"
    return f", linked from {linked} of {len(addresses)} online runs{failed}"
