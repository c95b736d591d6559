"""Geometry of the page's charts: numbers to positions in per cent of the drawing area.

The template draws them as SVG with per cent coordinates, so that text keeps its size on a phone and colours
follow the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gtp_exp.leaderboard.board import Board, BoardBlock, BoardLine, is_choosing
from gtp_exp.leaderboard.diagnostics import Curve
from gtp_exp.leaderboard.metrics import Metric
from gtp_exp.leaderboard.statistics import CONFIDENCE, RankComparison, Summary

PALETTE = 9  # colour classes k0..k8 of the style sheet; k0 is the method of this project, k8 the baseline
DASHES = ("", "6 4", "2 3")  # a second and third round through the palette stays distinguishable


@dataclass(frozen=True)
class Tick:
    """Place one mark on an axis, in the axis' own units."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Map values to positions between 0 and 100 per cent, on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Position in per cent."""
        if self.log:
            value, low, high = math.log(value), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return round(100 * (value - low) / (high - low), 2)


@dataclass(frozen=True)
class Style:
    """Tell one selector's line from the others by colour and dash."""

    colour: str  # class of the style sheet
    dash: str


@dataclass(frozen=True)
class Dot:
    """Place one seed's value on a line."""

    x: float
    title: str


@dataclass(frozen=True)
class DotLine:
    """Draw one row of a dot plot: its seeds, their mean and its interval."""

    label: str
    style: Style
    dots: tuple[Dot, ...]
    mean: float
    low: float | None  # of the interval, cut at the edge of the scale
    high: float | None
    text: str
    cut: bool = False  # whether the interval goes on beyond the scale


@dataclass(frozen=True)
class Reference:
    """Draw a value to compare with across the whole plot."""

    label: str
    at: float


@dataclass(frozen=True)
class DotPlot:
    """Hold every seed of every row of one table, on one scale."""

    title: str
    subtitle: str
    lines: tuple[DotLine, ...]
    axis: Axis
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class CurvePoint:
    """Place one mean on a curve, in per cent of the plot."""

    x: float
    y: float  # from the top, as SVG counts
    title: str
    label_y: float = 0.0  # of the text beside it, where there is one


@dataclass(frozen=True)
class Series:
    """Hold one selector's curve over budgets, with the band of its intervals."""

    label: str
    style: Style
    points: tuple[CurvePoint, ...]
    band: str  # SVG polygon points in per cent, empty without intervals
    cut: bool = False  # whether the band goes on beyond the scale

    @property
    def path(self) -> str:
        return " ".join(f"{p.x},{p.y}" for p in self.points)


@dataclass(frozen=True)
class LinePlot:
    """Hold curves over a shared horizontal axis."""

    title: str
    subtitle: str
    x_label: str
    series: tuple[Series, ...]
    x: Axis
    y: Axis
    references: tuple[Reference, ...]  # horizontal, `at` from the top


@dataclass(frozen=True)
class Segment:
    """Draw one stage's share of a bar."""

    width: float
    stage: int  # colour class s0..
    title: str


@dataclass(frozen=True)
class Bar:
    """Show the seconds of one row, stage after stage."""

    label: str
    segments: tuple[Segment, ...]
    text: str


@dataclass(frozen=True)
class BarPlot:
    """Hold what each row has cost, on one scale."""

    bars: tuple[Bar, ...]
    stages: tuple[str, ...]  # legend, in the order of the colours


def styles(boards: Sequence[Board], baseline: str) -> dict[str, Style]:
    """Row label -> colour, the same all over the page."""
    labels = sorted({(line.row.selector, line.row.label) for board in boards for line in board.lines})
    style_of: dict[str, Style] = {}
    free = 0
    for selector, label in labels:
        if selector == baseline and label == selector:
            style_of[label] = Style("k8", "")
        elif label == "gtp":
            style_of[label] = Style("k0", "")
        else:
            colour, dash = 1 + free % (PALETTE - 2), free // (PALETTE - 2) % len(DASHES)
            style_of[label] = Style(f"k{colour}", DASHES[dash])
            free += 1
    return style_of


def _references(board: Board, metric: Metric) -> list[tuple[str, float]]:
    """Return the values of a metric to compare with, by label."""
    known = {"untuned": board.untuned, **board.references}
    return [(label, numbers[metric.name]) for label, numbers in known.items() if metric.name in numbers]


def dot_plot(board: Board, block: BoardBlock, metric: Metric, style: Mapping[str, Style]) -> DotPlot | None:
    """Return the plot of every seed at one budget; None where no row has the metric."""
    lines = [line for line in block.lines if metric.name in line.summary]
    if not lines:
        return None
    spread = _spread(lines, metric)
    references = [(label, value) for label, value in _references(board, metric) if _near(value, spread)]
    off_scale = [pair for pair in _references(board, metric) if pair not in references]
    references += [(line.row.label, line.summary[metric.name].mean) for line in lines if line.is_baseline]
    axis = linear_axis([*spread, *(value for _, value in references)], metric)
    return DotPlot(
        title=metric.label,
        subtitle=metric.direction
        + "".join(f"; {label} {metric.show(value)} is off the scale" for label, value in off_scale),
        lines=tuple(_dot_line(line, metric, axis, style[line.row.label]) for line in lines),
        axis=axis,
        references=tuple(Reference(label, axis.at(value)) for label, value in references),
    )


def rank_plot(block: BoardBlock, style: Mapping[str, Style]) -> DotPlot | None:
    """Mean ranks with Nemenyi's critical difference as bar: two methods differ if their bars do not meet."""
    ranks: RankComparison | None = block.ranks
    if ranks is None:
        return None
    half = ranks.critical_difference / 2
    lines = [line for line in block.lines if line.rank is not None]
    axis = linear_axis([0.5, len(lines) + 0.5], None)
    return DotPlot(
        title="mean rank",
        subtitle=f"1 is best; over {ranks.blocks} seeds",
        lines=tuple(
            DotLine(
                label=line.row.label,
                style=style[line.row.label],
                dots=(),
                mean=axis.at(rank),
                low=max(0.0, axis.at(rank - half)),
                high=min(100.0, axis.at(rank + half)),
                text=f"{rank:.2f}",
            )
            for line, rank in sorted(zip(lines, ranks.mean_ranks, strict=True), key=lambda pair: pair[1])
        ),
        axis=axis,
        references=(),
    )


def budget_plot(board: Board, metric: Metric, style: Mapping[str, Style]) -> LinePlot | None:
    """A curve for every row that was run at two budgets or more."""
    by_label: dict[str, list[tuple[float, str, BoardLine]]] = {}
    for block in board.blocks:
        for line in block.lines:
            if metric.name in line.summary and line.n_selected > 0:
                by_label.setdefault(line.row.label, []).append((line.n_selected, block.budget, line))
    curves = {label: points for label, points in by_label.items() if len({x for x, _, _ in points}) > 1}
    if not curves:
        return None
    blocks = [block for block in board.blocks if block.n_selected > 0]
    values = [v for points in curves.values() for _, _, line in points for v in _extent(line, metric)]
    # A far one must not squeeze what the plot is about.
    compared = [(label, value) for label, value in _references(board, metric) if _near(value, values)]
    y = linear_axis([*values, *(value for _, value in compared)], metric)
    sizes = [b.n_selected for b in blocks] + [n for points in curves.values() for n, _, _ in points]
    low, high = min(sizes), max(sizes)
    x = Axis(low / 1.12, high * 1.12, True, ())
    x = Axis(x.low, x.high, True, tuple(Tick(x.at(b.n_selected), b.budget) for b in blocks))

    series: list[Series] = []
    for label, points in curves.items():
        drawn, upper, lower = [], [], []
        for n, budget, line in sorted(points, key=lambda point: point[0]):
            summary = line.summary[metric.name]
            title = f"{label}, {budget}: {metric.show(summary.mean)}{_interval_text(line, metric)}"
            drawn.append(CurvePoint(x.at(n), _down(y.at(summary.mean)), title))
            if summary.interval:
                upper.append(f"{x.at(n)},{_clamped(_down(y.at(summary.interval.high)))}")
                lower.append(f"{x.at(n)},{_clamped(_down(y.at(summary.interval.low)))}")
        band = " ".join([*upper, *reversed(lower)]) if len(upper) == len(points) else ""
        cut = any(_beyond(line.summary[metric.name], y) for _, _, line in points)
        series.append(Series(label, style[label], tuple(drawn), band, cut))
    references = tuple(Reference(label, _down(y.at(value))) for label, value in compared)
    return LinePlot(
        title=metric.label,
        subtitle=metric.direction,
        x_label="rows chosen (log scale)",
        series=tuple(series),
        x=x,
        y=y,
        references=references,
    )


def residual_plot(label: str, curves: Sequence[Curve], style: Style) -> LinePlot | None:
    """Return the curves of what is left of the target after each iteration; None without any."""
    if not curves:
        return None
    longest = max(len(curve.values) for curve in curves)
    x = linear_axis([1, longest], None, whole=True)
    y = linear_axis([0.0, *(v for curve in curves for v in curve.values)], None)
    return LinePlot(
        title=label,
        subtitle="what of the target is left to explain; lower is closer",
        x_label="iteration",
        series=tuple(
            Series(
                curve.label.replace("_", " "),
                Style(style.colour if len(curves) == 1 else f"k{i % (PALETTE - 1)}", ""),
                tuple(
                    CurvePoint(x.at(step), _down(y.at(v)), f"{curve.label} {step}: {v:.4g}")
                    for step, v in enumerate(curve.values, 1)
                ),
                "",
            )
            for i, curve in enumerate(curves)
        ),
        x=x,
        y=y,
        references=(),
    )


def cost_plot(block: BoardBlock, metric: Metric, style: Mapping[str, Style]) -> LinePlot | None:
    """Seconds for choosing against the metric: one point per row."""
    lines = [line for line in block.lines if metric.name in line.summary and line.choosing_seconds > 0]
    if len(lines) < 2:
        return None
    x = log_axis([line.choosing_seconds for line in lines])
    y = linear_axis([line.summary[metric.name].mean for line in lines], metric)
    at = [(x.at(li.choosing_seconds), _down(y.at(li.summary[metric.name].mean))) for li in lines]
    return LinePlot(
        title=metric.label,
        subtitle=metric.direction,
        x_label="time for choosing (log scale)",
        series=tuple(
            Series(
                line.row.label,
                style[line.row.label],
                (CurvePoint(*point, f"{line.row.label}: {_cost_text(line, metric)}", label_y),),
                "",
            )
            for line, point, label_y in zip(lines, at, spaced([down for _, down in at]), strict=True)
        ),
        x=x,
        y=y,
        references=(),
    )


def _cost_text(line: BoardLine, metric: Metric) -> str:
    return f"{duration(line.choosing_seconds)}, {metric.show(line.summary[metric.name].mean)}"


def spaced(positions: Sequence[float], apart: float = 6.5) -> list[float]:
    """Positions of labels beside points, moved down just enough not to lie on each other, per cent."""
    moved = list(positions)
    last = -math.inf
    for i in sorted(range(len(positions)), key=lambda i: positions[i]):
        moved[i] = last = max(positions[i], last + apart)
    return [round(position, 2) for position in moved]


def stage_bars(block: BoardBlock) -> BarPlot | None:
    """Choosing stages first, then training and testing, so that what the methods differ in starts at zero."""
    stages = tuple(dict.fromkeys(stage for line in block.lines for stage in line.seconds))
    stages = tuple(sorted(stages, key=lambda stage: not is_choosing(stage)))
    longest = max((line.total_seconds for line in block.lines), default=0.0)
    if longest == 0:
        return None
    return BarPlot(
        bars=tuple(
            Bar(
                label=line.row.label,
                segments=tuple(
                    Segment(
                        width=round(100 * line.seconds[stage] / longest, 2),
                        stage=i % 8,
                        title=f"{line.row.label}, {stage}: {duration(line.seconds[stage])}",
                    )
                    for i, stage in enumerate(stages)
                    if line.seconds.get(stage, 0.0) > 0
                ),
                text=duration(line.total_seconds),
            )
            for line in block.lines
        ),
        stages=stages,
    )


def linear_axis(values: Sequence[float], metric: Metric | None, *, whole: bool = False) -> Axis:
    """Room around the values and three to six round ticks inside."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = abs(low) * 0.05 or 0.5
    else:
        margin = 0.06 * (high - low)
    if metric is None:
        low, high = low, high + (margin if high == low else 0.0)
    else:
        low, high = low - margin, high + margin
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    if whole:
        step = max(1, step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9) - (2 if metric and metric.percent else 0))
    axis = Axis(low, high, False, ())
    first = math.ceil(low / step - 1e-9)
    ticks = []
    for i in range(first, math.floor(high / step + 1e-9) + 1):
        value = i * step
        label = f"{100 * value:.{digits}f}%" if metric and metric.percent else f"{value:.{digits}f}"
        ticks.append(Tick(axis.at(value), label))
    return Axis(low, high, False, tuple(ticks))


def log_axis(values: Sequence[float]) -> Axis:
    """Seconds on a log scale with ticks people know: the coarse ones where there are enough of them."""
    low, high = min(values) / 1.6, max(values) * 1.6
    axis = Axis(low, high, True, ())
    coarse = [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36_000, 360_000, 3_600_000]
    fine = [0.002, 0.005, 0.02, 0.05, 0.2, 0.5, 2, 5, 20, 30, 120, 300, 1200, 1800, 7200, 18_000, 72_000]
    marks = [s for s in coarse if low <= s <= high]
    if len(marks) < 3:
        marks = [s for s in sorted(coarse + fine) if low <= s <= high] or [math.sqrt(low * high)]
    apart: list[float] = []  # labels need some 14% of the width
    for mark in marks:
        if not apart or axis.at(mark) - axis.at(apart[-1]) >= 14:
            apart.append(mark)
    return Axis(low, high, True, tuple(Tick(axis.at(s), duration(s)) for s in apart))


def duration(seconds: float) -> str:
    """Return seconds as a short text in the unit that fits."""
    if seconds < 0.995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _spread(lines: Sequence[BoardLine], metric: Metric) -> list[float]:
    """All seeds, and the intervals' ends up to one range of the seeds beyond them: a t interval of two seeds
    is many times wider than what it is about, and would press all dots into one."""
    seeds = [value for line in lines for value in line.values[metric.name].values()]
    reach = max(seeds) - min(seeds)
    intervals = [line.summary[metric.name].interval for line in lines]
    ends = [end for interval in intervals if interval for end in (interval.low, interval.high)]
    return seeds + [min(max(end, min(seeds) - reach), max(seeds) + reach) for end in ends]


def _dot_line(line: BoardLine, metric: Metric, axis: Axis, style: Style) -> DotLine:
    summary = line.summary[metric.name]
    interval = summary.interval
    return DotLine(
        label=line.row.label,
        style=style,
        dots=tuple(
            Dot(axis.at(value), f"{line.row.label}, seed {seed}: {metric.show(value)}")
            for seed, value in sorted(line.values[metric.name].items())
        ),
        mean=axis.at(summary.mean),
        low=_clamped(axis.at(interval.low)) if interval else None,
        high=_clamped(axis.at(interval.high)) if interval else None,
        text=metric.show(summary.mean),
        cut=_beyond(summary, axis),
    )


def _beyond(summary: Summary, axis: Axis) -> bool:
    """Tell whether the interval goes on beyond the scale."""
    interval = summary.interval
    return interval is not None and not (axis.low <= interval.low and interval.high <= axis.high)


def _interval_text(line: BoardLine, metric: Metric) -> str:
    summary = line.summary[metric.name]
    if (interval := summary.interval) is None:
        return " (one seed)" if summary.n == 1 else " (no spread)"
    return f" ({CONFIDENCE:.0%} interval {metric.show(interval.low)} to {metric.show(interval.high)})"


def _extent(line: BoardLine, metric: Metric) -> list[float]:
    """The mean and its interval's ends, these no farther out than twice the spread of the seeds: a t interval
    of two seeds would otherwise flatten every curve."""
    summary = line.summary[metric.name]
    reach = 2 * (summary.sd or 0.0)
    ends = (summary.interval.low, summary.interval.high) if summary.interval else (summary.mean, summary.mean)
    return [summary.mean, max(ends[0], summary.mean - reach), min(ends[1], summary.mean + reach)]


def _near(value: float, others: Sequence[float]) -> bool:
    low, high = min(others), max(others)
    return low - 0.6 * (high - low) <= value <= high + 0.6 * (high - low)


def _down(at: float) -> float:
    return round(100 - at, 2)


def _clamped(at: float) -> float:
    return min(100.0, max(0.0, at))
