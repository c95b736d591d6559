"""The tables as LaTeX, for the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from gtp_exp.leaderboard.board import Board, BoardLine
from gtp_exp.leaderboard.exports import show_p
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.statistics import CONFIDENCE, Interval

SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\u2212": "$-$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},  # else ¡, ¿ and a dash
}


def latex(boards: Sequence[Board], baseline: str) -> str:
    """Return every table that has a metric as a LaTeX table with intervals; needs \\usepackage{booktabs}."""
    tables = [_table(board, baseline) for board in boards if board.metrics]
    return "\n".join(["% \\usepackage{booktabs}", *tables]) + "\n"


def _table(board: Board, baseline: str) -> str:
    heads = ["selector", "budget", "seeds", *(metric.label for metric in board.metrics)]
    heads += [f"minus {baseline}", "p"]
    lines = [_row(map(_text, heads)), r"\midrule"]
    for i, block in enumerate(board.blocks):
        lines += [r"\midrule"] * (i > 0) + [_row(_cells(line, board.metrics)) for line in block.lines]
    if board.reference_lines:
        lines.append(r"\midrule")
    for label, numbers in board.reference_lines:
        shown = [_text(m.show(numbers[m.name])) if m.name in numbers else "" for m in board.metrics]
        lines.append(_row([_text(label), "", "", *shown, "", ""]))
    caption = _text(
        f"{board.table.label}. Means with {CONFIDENCE:.0%} intervals; differences to {baseline} are paired, "
        "p is Holm-corrected over the selectors of a budget."
    )
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", f"\\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}"),
            *(r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"),
            *(f"\\caption{{{caption}}}", r"\end{table}"),
        ]
    )


def _cells(line: BoardLine, metrics: Sequence[Metric]) -> list[str]:
    cells = [_text(line.row.label), _text(line.row.budget), str(len(line.row.runs))]
    for i, metric in enumerate(metrics):
        summary = line.summary.get(metric.name)
        if summary is None:
            cells.append("")
            continue
        mean = _text(metric.show(summary.mean))
        mean = f"\\textbf{{{mean}}}" if i == 0 and line.best else mean
        cells.append(mean + _interval(summary.interval, metric.show))
    versus = line.versus
    if versus is None:
        return [*cells, "", ""]
    difference = metrics[0].show_difference
    p = "" if line.p_holm is None else show_p(line.p_holm).replace("<", "$<$")
    return [*cells, _text(difference(versus.difference)) + _interval(versus.interval, difference), p]


def _interval(interval: Interval | None, show: Callable[[float], str]) -> str:
    if interval is None:
        return ""
    return f" {{\\scriptsize [{_text(show(interval.low))}, {_text(show(interval.high))}]}}"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _text(text: str) -> str:
    """Return untrusted text on one line, without a meaning in LaTeX."""
    return re.sub(r"[&%$#_{}\\~^\u2212<>|]", lambda found: SPECIAL[found.group()], " ".join(text.split()))
