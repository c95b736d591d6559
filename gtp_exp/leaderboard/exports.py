"""The tables as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gtp_exp.leaderboard.board import Board, BoardLine
from gtp_exp.leaderboard.diagnostics import facts, labels_covered, pool_shares
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.page.charts import duration
from gtp_exp.leaderboard.records import Loaded, shortfall
from gtp_exp.leaderboard.verdict import sentences

VERSION = 1  # of leaderboard.json
FEW_LEFT = 3  # runs outside the tables that the terminal names
COLUMNS = (
    *("benchmark", "selector", "budget", "metric", "mean_over", "higher_is_better", "n_seeds", "seeds"),
    *("mean", "sd"),
    *("ci_low", "ci_high", "ci_method", "rank", "best", "difference", "difference_low", "difference_high"),
    *("p", "p_holm", "win_rate", "n_selected", "choosing_seconds", "total_seconds"),
)


def markdown(boards: Sequence[Board], loaded: Loaded, baseline: str) -> str:
    """Return all tables as one Markdown document."""
    out = ["# Leaderboard", ""]
    for board in boards:
        out += [f"## {_md(board.table.label)}", ""]
        if not board.metrics:
            out += ["Not evaluated; selections only.", ""]
        heads = ["", "selector", "budget", "seeds"]
        for i, metric in enumerate(board.metrics):
            heads.append(f"{_md(metric.label)} ({metric.direction})" if i == 0 else _md(metric.label))
        heads += [f"difference to {_md(baseline)}", "p (Holm)", "wins", *_last_heads(board)]
        out += [_row(heads), _row(["---"] * len(heads))]
        for line in board.lines:
            out.append(_row([*_cells(line, board.metrics, _md), *_last_cells(board, line)]))
        for label, numbers in board.reference_lines:
            shown = [m.show(numbers[m.name]) if m.name in numbers else "" for m in board.metrics]
            out.append(_row(["", f"*{_md(label)}*", "", "", *shown, *[""] * (3 + len(_last_heads(board)))]))
        out.append("")
        if board.metrics:
            out += [f"* {_md(board.ranked_by)}"] if board.ranked_by else []
            for block in board.blocks:
                out.append(
                    f"* {_md(block.budget)}: {_md(' '.join(sentences(block, board.metrics[0], baseline)))}"
                )
        out += [f"* Note: {_md(note)}" for note in board.notes]
        out += [f"* Not ranked: {_md(run.name)}, {_md(reason)}" for run, reason in board.unranked]
        out.append("")
    if left := _outside(loaded):
        out += ["## Not in the tables", "", *(f"* {_md(name)}: {_md(why)}" for name, why in left), ""]
    out.append(
        "Brackets hold 95% intervals over seeds and test rows (rows resampled, seeds by Student's t), over "
        "seeds alone where runs kept no results of single rows. Differences are paired at equal seeds and on "
        "equal rows, p likewise, Holm-corrected over the selectors of a budget."
    )
    return "\n".join(out) + "\n"


def plain(boards: Sequence[Board], loaded: Loaded, baseline: str) -> str:
    """The tables for a terminal, aligned."""
    out: list[str] = []
    for board in boards:
        heads = ["#", "selector", "budget", "seeds", *(metric.label for metric in board.metrics)]
        heads += [f"minus {baseline}", "p (Holm)", "wins", *_last_heads(board)]
        rows = [heads]
        for block in board.blocks:
            rows += [[*_cells(line, board.metrics, str), *_last_cells(board, line)] for line in block.lines]
        for label, numbers in board.reference_lines:
            shown = [m.show(numbers[m.name]) if m.name in numbers else "" for m in board.metrics]
            rows.append(["", label, "", "", *shown, *[""] * (3 + len(_last_heads(board)))])
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        out.append(board.table.label)
        out += [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        if board.metrics:
            out += [board.ranked_by] if board.ranked_by else []
            for block in board.blocks:
                out.append(f"{block.budget}: {' '.join(sentences(block, board.metrics[0], baseline))}")
        out += [f"Note: {note}" for note in board.notes]
        out += [f"Not ranked: {run.name}, {reason}" for run, reason in board.unranked]
        out.append("")
    left = _outside(loaded)
    out += [f"Not in the tables: {name}, {why}" for name, why in left[:FEW_LEFT]]
    if len(left) > FEW_LEFT:
        out.append(f"Not in the tables: {len(left) - FEW_LEFT} more; leaderboard.md and the page name them")
    # A control character in an error or a name must not steer the reader's terminal.
    return "\n".join("".join(c for c in line if c.isprintable()) for line in out).rstrip()


def _outside(loaded: Loaded) -> list[tuple[str, str]]:
    """Return the name of each run that is in no table, and why."""
    told = [(run.name, run.record.state.value, shortfall(run.record)) for run in loaded.incomplete]
    left = [(name, f"{state}: {why}" if why else state) for name, state, why in told]
    return left + [(item.name, item.reason) for item in loaded.unreadable]


def csv_table(boards: Sequence[Board]) -> str:
    """One line per row and metric: the long form that every tool can pivot."""
    records = [
        _record(board, line, metric)
        for board in boards
        for line in board.lines
        for metric in board.metrics
        if metric.name in line.summary
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    return buffer.getvalue()


def json_document(boards: Sequence[Board], loaded: Loaded, *, metric: str | None, baseline: str) -> str:
    """Return all tables with every number in full, as JSON text. metric: what was asked to rank."""
    document = {
        "version": VERSION,
        "metric": metric,
        "baseline": baseline,
        "tables": [
            {
                "benchmark": board.table.benchmark,
                "differing_settings": dict(board.table.differing),
                "tasks": board.tasks,
                "metrics": [asdict(kind) for kind in board.metrics],
                "ranked_by": board.ranked_by,
                "untuned": dict(board.untuned),
                "references": {label: dict(numbers) for label, numbers in board.references.items()},
                "notes": board.notes,
                "pool_shares": pool_shares(board),
                "rows": [_json_row(board, line) for line in board.lines],
                "unranked": [{"run": run.name, "reason": reason} for run, reason in board.unranked],
            }
            for board in boards
        ],
        "incomplete": [
            {"run": run.name, "state": run.record.state.value, "error": shortfall(run.record) or None}
            for run in loaded.incomplete
        ],
        "unreadable": [asdict(item) for item in loaded.unreadable],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _json_row(board: Board, line: BoardLine) -> dict[str, Any]:
    chosen = facts(line.row)
    return {
        "selector": line.row.label,
        "budget": line.row.budget,
        "runs": [run.name for run in line.row.runs],
        "tracked_at": [run.tracked_at for run in line.row.runs],
        "rank": line.rank,
        "best": line.best,
        "metrics": {
            kind.name: {
                **asdict(line.summary[kind.name]),
                "by_seed": {str(seed): value for seed, value in line.values[kind.name].items()},
            }
            for kind in board.metrics
            if kind.name in line.summary
        },
        "versus_baseline": {**asdict(line.versus), "p_holm": line.p_holm} if line.versus else None,
        "seconds": dict(line.seconds),
        "selection": asdict(chosen),
    }


def _record(board: Board, line: BoardLine, metric: Metric) -> dict[str, Any]:
    summary, ranking = line.summary[metric.name], metric is board.metrics[0]
    interval, versus = summary.interval, line.versus if ranking else None
    between = versus.interval if versus else None
    return {
        "benchmark": board.table.label,
        "selector": line.row.label,
        "budget": line.row.budget,
        "metric": metric.name,
        "mean_over": metric.over,
        "higher_is_better": metric.higher_is_better,
        "n_seeds": summary.n,
        "seeds": " ".join(str(seed) for seed in sorted(line.values[metric.name])),
        "mean": summary.mean,
        "sd": summary.sd,
        "ci_low": interval.low if interval else None,
        "ci_high": interval.high if interval else None,
        "ci_method": interval.method if interval else None,
        "rank": line.rank if ranking else None,
        "best": line.best if ranking else None,
        "difference": versus.difference if versus else None,
        "difference_low": between.low if between else None,
        "difference_high": between.high if between else None,
        "p": versus.p if versus else None,
        "p_holm": line.p_holm if versus else None,
        "win_rate": versus.win_rate if versus else None,
        "n_selected": facts(line.row).n_selected,
        "choosing_seconds": line.choosing_seconds,
        "total_seconds": line.total_seconds,
    }


def _cells(line: BoardLine, metrics: Sequence[Metric], escape: Callable[[str], str]) -> list[str]:
    cells = [str(line.rank or ""), escape(line.row.label), escape(line.row.budget), str(len(line.row.runs))]
    for i, metric in enumerate(metrics):
        summary = line.summary.get(metric.name)
        if summary is None:
            cells.append("")
            continue
        text = metric.show(summary.mean)
        if i == 0 and line.best:
            text += " (best)"
        if summary.interval:
            text += f" [{metric.show(summary.interval.low)}, {metric.show(summary.interval.high)}]"
        else:
            text += " (one seed)" if summary.n == 1 else " (no spread)"
        cells.append(text)
    versus = line.versus
    if versus and metrics:
        text = metrics[0].show_difference(versus.difference)
        if versus.interval:
            low, high = versus.interval.low, versus.interval.high
            text += f" [{metrics[0].show_difference(low)}, {metrics[0].show_difference(high)}]"
        p = "" if line.p_holm is None else show_p(line.p_holm)
        cells += [text, p, f"{versus.win_rate:.0%} of {versus.n}"]
    else:
        cells += ["baseline" if line.is_baseline else "", "", ""]
    return cells


def _last_heads(board: Board) -> list[str]:
    return ["labels covered"] * _has_labels(board) + ["choosing", "total"]


def _last_cells(board: Board, line: BoardLine) -> list[str]:
    labels = [labels_covered(line.row)] if _has_labels(board) else []
    return [*labels, duration(line.choosing_seconds), duration(line.total_seconds)]


def _has_labels(board: Board) -> bool:
    return any(labels_covered(line.row) for line in board.lines)


def show_p(p: float) -> str:
    """Return a p-value as tables show it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """Untrusted text on one line, without a meaning in Markdown or HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"([\\`*\[\]|#~$])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\_", text)  # inside a word it is only a letter


def _cell(value: Any) -> Any:
    """A spreadsheet runs text that starts like a formula: a quote keeps it text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
