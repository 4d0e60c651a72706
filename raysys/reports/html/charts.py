"""The drawings of the pages: lines, intervals, points, bars over time, parallel coordinates."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysys.reports.html import svg
from raysys.reports.html.content import Panel
from raysys.reports.plots import plain

NARROW, WIDE = 340, 720  # pixels
MARKERS = "osD^vPX"
_LETTER = 6.2  # pixels, of the axes' type
_BASE = 38  # pixels below the axes

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one thing.

    Attributes:
        points: (x, y).
        colour: number of a colour and marker; None: grey, behind the others, without markers.
        style: of the line; empty: markers alone.
        band: (low, high) of every point; empty: none.
        marker: at the points; None: that of the colour.
        labels: beside the points; empty: none.
    """

    points: Points
    colour: int | None = 0
    style: str = "-"
    band: Points = ()
    marker: str | None = None
    labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the axes of a drawing of points say.

    Attributes:
        x, y: labels.
        log: the logarithmic ones, of `x` and `y`.
        ticks: names of the places 0, 1, ... of the horizontal axis; empty: numbers.
        verticals: {x: name} of lines across.
        horizontals: {y: name} of lines across.
        diagonal: whether y = x is drawn.
        zero: whether the vertical axis holds zero.
    """

    x: str
    y: str
    log: str = ""
    ticks: Sequence[str] = ()
    verticals: Mapping[float, str] = dataclasses.field(default_factory=dict)
    horizontals: Mapping[float, str] = dataclasses.field(default_factory=dict)
    diagonal: bool = False
    zero: bool = False


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its interval; None where it has none."""

    name: str
    value: float
    low: float | None
    high: float | None
    colour: int | None = 0


def points(
    key: str,
    title: str,
    series: Sequence[Series],
    axes: Axes,
    description: str,
    *,
    wide: bool = False,
    height: int = 230,
) -> Panel:
    """Draw series of points in one pair of axes."""

    def paint(figure: Any) -> None:
        axis = _axis(figure, left=8 + _LETTER * 6, right=14 + _room(series), bottom=_BASE)
        axis.grid(axis="y")
        _limits(axis, axes, named=any(each.labels for each in series))
        for each in sorted(series, key=lambda one: one.colour is not None):
            _series(axis, each)
        for x, name in axes.verticals.items():
            axis.axvline(x, color=svg.FAINT, linewidth=1, linestyle=":")
            axis.annotate(
                name, (x, 1), xycoords=("data", "axes fraction"), xytext=(3, -9),
                textcoords="offset points", fontsize=9.5, color=svg.FAINT,
            )  # fmt: skip
        for y, name in axes.horizontals.items():
            axis.axhline(y, color=svg.FAINT, linewidth=1, linestyle="--")
            axis.annotate(
                name, (0, y), xycoords=("axes fraction", "data"), xytext=(3, 3),
                textcoords="offset points", fontsize=9.5, color=svg.FAINT,
            )  # fmt: skip
        if axes.diagonal:
            every = [value for each in series for point in each.points for value in point]
            ends = [min(every), max(every)]
            axis.plot(ends, ends, color=svg.FAINT, linewidth=1, linestyle="--")
        whole = all(float(x).is_integer() for each in series for x, _ in each.points)
        _finish(axis, axes, whole=whole)

    return _panel(key, title, paint, description, height=height, wide=wide)


def intervals(
    key: str, title: str, rows: Sequence[Interval], x: str, description: str, *, zero: bool = True
) -> Panel:
    """Draw values with their intervals, one a row, beside a line at zero."""
    longest = max((len(row.name) for row in rows), default=0)

    def paint(figure: Any) -> None:
        axis = _axis(figure, left=16 + _LETTER * longest, right=16, bottom=_BASE)
        axis.grid(axis="x")
        if zero:
            axis.axvline(0, color=svg.FAINT, linewidth=1)
        for place, row in enumerate(rows):
            colour = svg.colour(row.colour)
            if row.low is not None and row.high is not None:
                axis.plot([row.low, row.high], [place] * 2, color=colour, linewidth=2.2)
            marker = "o" if row.colour is None else MARKERS[row.colour % len(MARKERS)]
            axis.plot([row.value], [place], marker, color=colour, markersize=5.5)
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(x, fontsize=10)
        axis.spines["left"].set_visible(False)
        _few_numbers(axis, "x")

    return _panel(key, title, paint, description, height=_BASE + 14 + 22 * max(2, len(rows)))


def bars(key: str, title: str, values: Mapping[str, float], x: str, description: str) -> Panel:
    """Draw one horizontal bar a name."""
    longest = max(map(len, values), default=0)

    def paint(figure: Any) -> None:
        axis = _axis(figure, left=16 + _LETTER * longest, right=18, bottom=_BASE)
        axis.grid(axis="x")
        axis.barh(range(len(values)), list(values.values()), 0.6, color=svg.colour(0))
        axis.set_yticks(range(len(values)), list(values))
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.set_xlabel(x, fontsize=10)
        _few_numbers(axis, "x")

    return _panel(key, title, paint, description, height=_BASE + 14 + 24 * max(2, len(values)))


def timeline(
    key: str,
    title: str,
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    cuts: Mapping[float, str],
    description: str,
) -> Panel:
    """Draw counts over time, those of each name on top of those before, and where the cuts are.

    Args:
        key: of the drawing.
        title: above it.
        edges: [B + 1] UTC seconds.
        counts: {name: [B]}.
        cuts: {UTC second: name}.
        description: of the drawing.
    """

    def paint(figure: Any) -> None:
        axis = _axis(figure, left=8 + _LETTER * 6, right=14, bottom=_BASE - 12, top=34)
        axis.grid(axis="y")
        below = [0.0] * (len(edges) - 1)
        for number, values in enumerate(counts.values()):
            above = [a + b for a, b in zip(below, values, strict=True)]
            axis.stairs(
                above, edges, baseline=below, fill=True, color=svg.colour(number),
                alpha=0.85, hatch=("", "//", "..", "xx", "--")[number % 5],
                edgecolor=svg.GROUND, linewidth=0,
            )  # fmt: skip
            below = above
        for place, (second, name) in enumerate(cuts.items()):
            axis.axvline(second, color=svg.INK, linewidth=1, linestyle="--")
            late = second > edges[0] + 0.8 * (edges[-1] - edges[0])
            axis.annotate(
                name, (second, 1), xycoords=("data", "axes fraction"),
                xytext=(-3 if late else 3, 4 + 13 * (place % 2)), textcoords="offset points",
                fontsize=9.5,
                ha="right" if late else "left",
            )  # fmt: skip
        axis.set_xlim(edges[0], edges[-1])
        axis.set_ylim(0, None)
        ticks = [edges[0] + part * (edges[-1] - edges[0]) for part in (0, 0.5, 1)]
        axis.set_xticks(ticks, [day(second) for second in ticks])
        for label, side in zip(axis.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_ha(side)
        _few_numbers(axis, "y")

    return _panel(key, title, paint, description, height=220, wide=True)


def parallel(
    key: str,
    title: str,
    names: Sequence[str],
    lines: Sequence[tuple[Sequence[float | None], int | None]],
    ends: Sequence[tuple[str, str]],
    description: str,
) -> Panel:
    """Draw parallel coordinates.

    Args:
        key: of the drawing.
        title: above it.
        names: [A] of the axes.
        lines: ([A] places from 0 to 1, None where not set, and number of a colour or None).
        ends: [A] what stands at 0 and at 1.
        description: of the drawing.
    """

    def paint(figure: Any) -> None:
        axis = _axis(figure, left=38, right=38, bottom=30, top=46)
        for place, (name, (low, high)) in enumerate(zip(names, ends, strict=True)):
            axis.axvline(place, color=svg.FAINT, linewidth=1)
            kept = (
                name
                if len(names) < 5
                else _cut(
                    name.rpartition(".")[2] if "^" not in name else name, 100 // len(names) + 5
                )
            )
            lifted = 14 if place % 2 else 0  # neighbours' names do not meet
            side = {"textcoords": "offset points", "ha": "center", "fontsize": 9.5}
            axis.annotate(kept, (place, 1.04), xytext=(0, 13 + lifted), color=svg.INK, **side)
            axis.annotate(high, (place, 1.04), xytext=(0, 0), color=svg.FAINT, **side)
            axis.annotate(low, (place, -0.1), xytext=(0, -13), color=svg.FAINT, **side)
        for places, number in sorted(lines, key=lambda line: line[1] is not None):
            chosen = number is not None
            shown = [-0.08 if value is None else value for value in places]
            axis.plot(
                range(len(names)), shown, color=svg.colour(number),
                linewidth=2.4 if chosen else 0.9, alpha=1 if chosen else 0.55,
                marker=MARKERS[number % len(MARKERS)] if number is not None else "",
                markersize=5, linestyle="--" if number == 1 else "-",
            )  # fmt: skip
        axis.set(xlim=(-0.05, len(names) - 0.95), ylim=(-0.12, 1.04))
        axis.set_axis_off()

    return _panel(key, title, paint, description, height=300, wide=True)


def day(second: float) -> str:
    """Return the date of a UTC second."""
    return datetime.datetime.fromtimestamp(second, tz=datetime.UTC).strftime("%Y-%m-%d")


def _panel(
    key: str,
    title: str,
    paint: Callable[[Any], None],
    description: str,
    *,
    height: int,
    wide: bool = False,
) -> Panel:
    """Draw once for a place in a row of panels, or twice for one that takes the page's width."""
    text = {"title": title, "text": description}
    small = svg.drawn(paint, key=key, width=NARROW, height=height, **text)
    if not wide:
        return Panel(title, small, description)
    large = svg.drawn(paint, key=f"{key}-wide", width=WIDE, height=height, **text)
    return Panel(title, large, description, narrow=small)


def _axis(figure: Any, *, left: float, right: float, bottom: float, top: float = 10) -> Any:
    """Return axes with margins in pixels: what a layout engine finds in ten times the time."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    across, along = width - left - right, height - bottom - top
    return figure.add_axes((left / width, bottom / height, across / width, along / height))


def _series(axis: Any, each: Series) -> None:
    if not each.points:
        return
    x, y = zip(*each.points, strict=True)
    colour = svg.colour(each.colour)
    if each.band:
        low, high = zip(*each.band, strict=True)
        axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    marker = each.marker
    if marker is None:
        marker = "" if each.colour is None else MARKERS[each.colour % len(MARKERS)]
    axis.plot(
        x, y, each.style or " ", color=colour, marker=marker, markersize=4.5,
        linewidth=1 if each.colour is None else 2, alpha=0.7 if each.colour is None else 1,
        clip_on=False,
    )  # fmt: skip
    for (at, value), text in zip(each.points, each.labels, strict=False):
        axis.annotate(
            text, (at, value), xytext=(0, 6), textcoords="offset points", fontsize=9.5, ha="center"
        )


def _room(series: Sequence[Series]) -> float:
    """Return the pixels that labels take to the right of their points."""
    return _LETTER / 2 * max((len(text) for each in series for text in each.labels), default=0)


def _limits(axis: Any, axes: Axes, *, named: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    for side in axes.log:
        axis.set(**{f"{side}scale": "log"})
        ruler = getattr(axis, f"{side}axis")
        ruler.set_major_locator(LogLocator(numticks=6))
        ruler.set_minor_locator(NullLocator())
        ruler.set_minor_formatter(NullFormatter())
    axis.margins(0.12 if named else 0.04, 0.12)


def _finish(axis: Any, axes: Axes, *, whole: bool) -> None:
    axis.set_xlabel(axes.x, fontsize=10)
    axis.set_title(axes.y, loc="left", fontsize=10, color=svg.FAINT, x=0, pad=-2)
    axis.title.set_position((0, 1))
    if axes.zero:
        low, high = axis.get_ylim()
        axis.set_ylim(0 if high > 0 and low > -0.2 * high else low, max(0, 1.05 * high))
    if axes.ticks:
        every = -(-len(axes.ticks) // 12)
        places = range(0, len(axes.ticks), every)
        axis.set_xticks(places, [axes.ticks[place] for place in places])
        if sum(len(axes.ticks[place]) + 2 for place in places) * _LETTER > 280:
            axis.tick_params(axis="x", labelsize=8.5)
    else:
        _few_numbers(axis, "x", log="x" in axes.log, whole=whole)
    _few_numbers(axis, "y", log="y" in axes.log)


def _few_numbers(axis: Any, side: str, *, log: bool = False, whole: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator

    ruler = getattr(axis, f"{side}axis")
    if not log:
        ruler.set_major_locator(MaxNLocator(5 if side == "y" else 4, integer=whole))
    ruler.set_major_formatter(lambda value, _: plain(value).replace("-", "\N{MINUS SIGN}"))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"
