"""Charts as SVG, the same bytes for the same numbers.

Drawn in marker colours, which become CSS variables (light and dark) or, for PDF, plain colours.
"""

import io
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recovery_pipelines.reporting.model import Trend, TrendPoint
from recovery_pipelines.reporting.words import seconds, short_month

_WIDTH_INCHES, _HEIGHT_INCHES = 5.0, 2.1
_RTO_SHOWN_WITHIN = 3.0
"""An objective further above the largest value would leave nothing of the values to see."""


@dataclass(frozen=True)
class _Colour:
    marker: str
    """What is drawn; no other colour may be equal."""
    variable: str
    printed: str


INK = _Colour("#010203", "--ink", "#1b2430")
MUTED = _Colour("#010204", "--muted", "#536071")
LINE = _Colour("#010205", "--line", "#d9dfe6")
ACCENT = _Colour("#010206", "--accent", "#1c5d8c")
BAND = _Colour("#010207", "--band", "#d5e5f1")
BAD = _Colour("#010208", "--bad", "#a8201a")
PAPER = _Colour("#010209", "--paper", "#ffffff")
_COLOURS = (INK, MUTED, LINE, ACCENT, BAND, BAD, PAPER)

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recovery_pipelines",
    "font.family": "DejaVu Sans",
    "font.size": 8,
}


def trend_chart(trend: Trend, *, for_print: bool) -> str:
    """The recovery times of one drill, the band that was expected, and what is not as usual."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES))
        axes = figure.add_axes((0.1, 0.15, 0.84, 0.8))
        _draw(axes, trend)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    name = f"trend-{trend.drill}"
    return _embed(
        text.getvalue(), name, f"Recovery time of {trend.drill}", _in_words(trend), for_print
    )


def _draw(axes: Axes, trend: Trend) -> None:
    places = [_place(point.month) for point in trend.points]
    first, last = places[0], places[-1]
    unit_seconds, unit = _unit(trend.points)
    banded = [
        (place, point.low_seconds / unit_seconds, point.high_seconds / unit_seconds)
        for place, point in zip(places, trend.points, strict=True)
        if point.low_seconds is not None and point.high_seconds is not None
    ]
    typical = [
        (place, point.typical_seconds / unit_seconds)
        for place, point in zip(places, trend.points, strict=True)
        if point.typical_seconds is not None
    ]
    measured = [
        (place, point.seconds / unit_seconds, point.flagged)
        for place, point in zip(places, trend.points, strict=True)
        if point.seconds is not None
    ]
    if banded:
        at, low, high = zip(*banded, strict=True)
        axes.fill_between(at, low, high, color=BAND.marker, linewidth=0)
    if typical:
        axes.plot(*zip(*typical, strict=True), color=MUTED.marker, linewidth=0.9, dashes=(4, 3))
    for run in _without_gaps([(place, value) for place, value, _ in measured]):
        axes.plot(*zip(*run, strict=True), color=ACCENT.marker, linewidth=1.5)
    usual = [(place, value) for place, value, flagged in measured if not flagged]
    flagged = [(place, value) for place, value, flagged in measured if flagged]
    edge: Any = {"markeredgecolor": PAPER.marker, "markeredgewidth": 0.8, "linestyle": "none"}
    if usual:
        axes.plot(*zip(*usual, strict=True), marker="o", markersize=5, color=ACCENT.marker, **edge)
    if flagged:
        axes.plot(*zip(*flagged, strict=True), marker="D", markersize=6, color=BAD.marker, **edge)
    top = max([value for _, value, _ in measured] + [high for _, _, high in banded])
    if _rto_is_near(trend, top * unit_seconds):
        assert trend.rto_seconds is not None
        limit = trend.rto_seconds / unit_seconds
        axes.axhline(limit, color=BAD.marker, linewidth=1, dashes=(2, 2))
        label = f"RTO {seconds(trend.rto_seconds)}"
        axes.annotate(
            label, (0, limit), xycoords=("axes fraction", "data"), xytext=(2, 2),
            textcoords="offset points", ha="left", va="bottom", color=BAD.marker,
        )  # fmt: skip
        top = max(top, limit)
    axes.set_ylim(0, top * 1.1)
    pad = max(0.5, (last - first) * 0.025)
    axes.set_xlim(first - pad, last + pad)
    shown = sorted({first, last, *range(last, first, -max(1, -(-(last - first) // 5)))})
    if len(shown) > 2 and shown[1] - first < (last - first) / 6:
        shown.remove(shown[1])
    axes.set_xticks(shown, [_label(place) for place in shown])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel(unit, color=MUTED.marker)
    axes.tick_params(colors=MUTED.marker, length=0, pad=4)
    axes.grid(axis="y", color=LINE.marker, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _rto_is_near(trend: Trend, top_seconds: float) -> bool:
    return trend.rto_seconds is not None and trend.rto_seconds <= _RTO_SHOWN_WITHIN * top_seconds


def _without_gaps(points: list[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Runs of months that follow one another: a missed month breaks the line."""
    runs: list[list[tuple[int, float]]] = []
    for point in points:
        if runs and point[0] == runs[-1][-1][0] + 1:
            runs[-1].append(point)
        else:
            runs.append([point])
    return runs


def _unit(points: tuple[TrendPoint, ...]) -> tuple[float, str]:
    longest = max((point.seconds or 0.0 for point in points), default=0.0)
    if longest >= 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest >= 300 else (1.0, "seconds")


def _place(month: str) -> int:
    return int(month[:4]) * 12 + int(month[5:7]) - 1


def _label(place: int) -> str:
    return short_month(f"{place // 12}-{place % 12 + 1:02}-01")


def _in_words(trend: Trend) -> str:
    """The chart for those who do not see it."""
    measured = [point for point in trend.points if point.seconds is not None]
    flagged = [short_month(point.month) for point in measured if point.flagged]
    values = [point.seconds for point in measured if point.seconds is not None]
    words = [
        f"{len(measured)} months from {short_month(measured[0].month)} "
        f"to {short_month(measured[-1].month)}",
        f"{seconds(min(values))} to {seconds(max(values))}, newest {seconds(values[-1])}",
        f"not as usual: {', '.join(flagged)}" if flagged else "no month is flagged",
    ]
    return "; ".join(words)


def _embed(svg: str, name: str, title: str, description: str, for_print: bool) -> str:
    """The bare `<svg>` with title and description, own ids, and colours for its place."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<=\bid=")', f"{name}-", svg)
    svg = re.sub(r'(?<=href="#)|(?<=url\(#)', f"{name}-", svg)
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box
    head = (
        f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-text" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>'
    )
    svg = head + svg[svg.index(">") + 1 :]
    for colour in _COLOURS:
        svg = svg.replace(colour.marker, colour.printed if for_print else f"var({colour.variable})")
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif" if for_print else "var(--font)")
