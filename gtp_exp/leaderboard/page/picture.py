"""Draw the curve over budgets as an SVG file of its own, for light and for dark pages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gtp_exp.leaderboard.board import Board
from gtp_exp.leaderboard.page.charts import LinePlot, budget_plot, spaced, styles
from gtp_exp.leaderboard.page.templates import HERE, templates

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 590, 44, 328  # of the plot, in pixels


def pictures(boards: Sequence[Board], baseline: str) -> dict[str, str]:
    """Return `curve-light.svg` and `curve-dark.svg`: the first metric of the first table that has a curve.

    {} where no table has one.
    """
    style = styles(boards, baseline)
    for board in boards:
        plot = budget_plot(board, board.metrics[0], style) if board.metrics else None
        if plot is not None:
            inks = palettes((HERE / "page.css").read_text(encoding="utf-8"))
            return {f"curve-{name}.svg": draw(plot, board.table.label, ink) for name, ink in inks.items()}
    return {}


def draw(plot: LinePlot, heading: str, ink: Mapping[str, str]) -> str:
    """Return one plot as SVG in the colours of a palette."""

    def x(per_cent: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * per_cent / 100, 1)

    def y(per_cent: float) -> float:
        return round(TOP + (BOTTOM - TOP) * per_cent / 100, 1)

    def path(points: str) -> str:
        pairs = (pair.split(",") for pair in points.split())
        return " ".join(f"{x(float(across))},{y(float(down))}" for across, down in pairs)

    return (
        templates()
        .get_template("picture.svg.j2")
        .render(
            **{"plot": plot, "heading": heading, "ink": ink, "x": x, "y": y, "path": path},
            **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
            labels=spaced([series.points[-1].y for series in plot.series], apart=5.5),
        )
    )


def palettes(css: str) -> dict[str, dict[str, str]]:
    """Return the page's colours by name, for light and for dark."""
    light, dark = (
        dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", css[match.start() : css.index("}", match.start())]))
        for match in list(re.finditer(r":root \{", css))[:2]
    )
    named = {"light": light, "dark": {**light, **dark}}
    return {
        name: {**colours, "text": colours["ink"], "paper": colours["panel"]}
        for name, colours in named.items()
    }
