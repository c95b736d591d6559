"""One self-contained HTML page: no network, no outside file, every text escaped.

Prompts, ids and error messages are untrusted. Jinja escapes all of them, and a content security policy lets
only the page's own script run, by its hash, should an escape ever be missed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gtp_exp.leaderboard import diagnostics, verdict
from gtp_exp.leaderboard.board import Board, BoardBlock, BoardLine, TaskChange, is_choosing, task_changes
from gtp_exp.leaderboard.comparability import Grouped
from gtp_exp.leaderboard.diagnostics import ChoiceFacts, ChoiceOverlap, Mix
from gtp_exp.leaderboard.exports import show_p
from gtp_exp.leaderboard.metrics import CHOICE, error_over_rows, metric_named
from gtp_exp.leaderboard.page import charts
from gtp_exp.leaderboard.page.charts import BarPlot, DotPlot, LinePlot, Style, duration
from gtp_exp.leaderboard.page.examples import Examples
from gtp_exp.leaderboard.page.templates import HERE, templates
from gtp_exp.leaderboard.records import Loaded, Run, shortfall
from gtp_exp.leaderboard.statistics import ALPHA, CONFIDENCE, DRAWS, TWO_WAY
from gtp_exp.records.record import RunRecord


@dataclass(frozen=True)
class BlockView:
    """One budget, ready to draw."""

    block: BoardBlock
    sentences: tuple[str, ...]
    dots: tuple[DotPlot, ...]
    ranks: DotPlot | None
    costs: tuple[LinePlot, ...]
    bars: BarPlot | None
    facts: tuple[tuple[BoardLine, ChoiceFacts], ...]
    shares: tuple[str, ...]  # columns: facts that any row has
    reported: tuple[str, ...]  # the names of what the selectors report of themselves
    mixes: tuple[Mix, ...]
    overlap: ChoiceOverlap
    residuals: tuple[LinePlot, ...]
    labels: bool  # whether any row tells how many of the target's labels are chosen
    repeats: bool  # whether any row tells how many copies of other chosen rows are chosen


@dataclass(frozen=True)
class PageSection:
    """One table with all that belongs to it."""

    anchor: str
    board: Board
    blocks: tuple[BlockView, ...]
    budgets: tuple[LinePlot, ...]
    changes: tuple[tuple[BoardLine, tuple[TaskChange, ...]], ...]
    pool_shares: Mapping[str, float]
    test_error: str  # sampling error of the test sets, where the intervals do not hold it


def render_page(
    boards: Sequence[Board],
    grouped: Grouped,
    loaded: Loaded,
    examples: Examples,
    *,
    baseline: str,
    now: datetime,
) -> str:
    """Return the whole page as HTML that needs no other file and no network."""
    style = charts.styles(boards, baseline)
    anchors = {run.directory: f"run-{i}" for i, run in enumerate(loaded.runs, 1)}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = templates()
    environment.filters |= {
        "duration": duration,
        "p": show_p,
        "compact": _compact,
        "pretty": _pretty,
        "more": _more,
        "shortfall": shortfall,
    }
    return environment.get_template("page.html.j2").render(
        sections=[_section(i, board, style, baseline) for i, board in enumerate(boards, 1)],
        loaded=loaded,
        repeated=grouped.repeated,
        unranked=[item for board in boards for item in board.unranked],
        examples=examples,
        choosers=sorted({(c.selector, c.budget) for card in examples.cards for c in card.choices}),
        style=style,
        baseline=baseline,
        by_choice=any(CHOICE in board.tasks for board in boards),
        alpha=ALPHA,
        confidence=f"{CONFIDENCE:.0%}",
        draws=DRAWS,
        summary=_summary(boards, loaded),
        anchor=lambda run: anchors[run.directory],
        shell=shlex.join,
        is_choosing=is_choosing,
        now=now.strftime("%Y-%m-%d %H:%M UTC"),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(number: int, board: Board, style: Mapping[str, Style], baseline: str) -> PageSection:
    plots = [charts.budget_plot(board, metric, style) for metric in board.metrics]
    return PageSection(
        anchor=f"table-{number}",
        board=board,
        blocks=tuple(_block(board, block, style, baseline) for block in board.blocks),
        budgets=tuple(plot for plot in plots if plot),
        changes=tuple((line, task_changes(board, line)) for line in board.lines) if board.metrics else (),
        pool_shares=diagnostics.pool_shares(board),
        test_error="" if _over_test_rows(board) else _test_error(board),
    )


def _block(board: Board, block: BoardBlock, style: Mapping[str, Style], baseline: str) -> BlockView:
    facts = tuple((line, diagnostics.facts(line.row)) for line in block.lines)
    dots = [charts.dot_plot(board, block, metric, style) for metric in board.metrics]
    costs = [charts.cost_plot(block, metric, style) for metric in board.metrics[:1]]
    residuals = [
        charts.residual_plot(line.row.label, diagnostics.residual_curves(line), style[line.row.label])
        for line in block.lines
    ]
    return BlockView(
        block=block,
        sentences=verdict.sentences(block, board.metrics[0], baseline) if board.metrics else (),
        dots=tuple(plot for plot in dots if plot),
        ranks=charts.rank_plot(block, style),
        costs=tuple(plot for plot in costs if plot),
        bars=charts.stage_bars(block),
        facts=facts,
        shares=tuple(dict.fromkeys(name for _, fact in facts for name in fact.shares)),
        reported=tuple(dict.fromkeys(k for _, fact in facts for k in (*fact.numbers, *fact.texts))),
        mixes=diagnostics.mixes(block),
        overlap=diagnostics.overlap(block),
        residuals=tuple(plot for plot in residuals if plot),
        labels=any(fact.labels for _, fact in facts),
        repeats=any(fact.repeats is not None for _, fact in facts),
    )


def _summary(boards: Sequence[Board], loaded: Loaded) -> list[tuple[str, str]]:
    """(number, what it counts) for the head of the page."""
    names = [run.record.names for run in loaded.complete]
    counts = [
        (len(names), "complete run", "complete runs"),
        (len({line.row.label for board in boards for line in board.lines}), "selector", "selectors"),
        (len({name.benchmark for name in names}), "benchmark", "benchmarks"),
        (len({line.row.budget for board in boards for line in board.lines}), "budget", "budgets"),
        (len({run.record.seed for run in loaded.complete}), "seed", "seeds"),
    ]
    return [(str(n), one if n == 1 else many) for n, one, many in counts]


def _over_test_rows(board: Board) -> bool:
    """Whether every interval is one over seeds and test rows together."""
    intervals = [s.interval for line in board.lines for s in line.summary.values() if s.interval]
    return bool(intervals) and all(interval.method == TWO_WAY for interval in intervals)


def _test_error(board: Board) -> str:
    """Mean standard error of each headline metric as evaluation reported it."""
    errors_shown: list[str] = []
    for task in board.tasks:
        errors, headline = [], ""
        for run in board.table.runs:
            values = run.record.metrics.get(task, {})
            headline = str(values.get("headline", headline))
            error = error_over_rows(values, headline)
            if error is not None:
                errors.append(error)
        if errors:
            shown = metric_named(headline).show_difference(sum(errors) / len(errors)).lstrip("+")
            errors_shown.append(f"{shown} on {task}")
    return ", ".join(errors_shown)


def _compact(value: float) -> str:
    """Counts and scalar diagnostics of any size."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _pretty(record: RunRecord) -> str:
    return json.dumps(record.to_json()["config"], indent=2, ensure_ascii=False)


def _more(run: Run) -> list[tuple[str, str]]:
    """(name, text) of what a record says of its model and its rows, and of whatever else it holds that this
    version does not know."""
    record = run.record.to_json()
    known = {key: record[key] for key in ("model", "rows") if record.get(key)}
    return [(name, _told(value)) for name, value in {**known, **run.more}.items()]


def _told(value: Any) -> str:
    """Nested values on one line, without what is empty."""
    if isinstance(value, Mapping):
        parts = ((key, item) for key, item in value.items() if item is not None and item not in ({}, []))
        return "; ".join(
            f"{key}: {_told(item)}" if isinstance(item, Mapping) else f"{key} {_told(item)}"
            for key, item in parts
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
