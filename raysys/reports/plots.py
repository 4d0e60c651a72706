"""Plots: lines in panels, for the suites' figures and the pages that are rendered from them.

A file carries a digest of what was drawn, so that it can be held against its data where another
version of matplotlib draws other bytes. Colours are those of Okabe and Ito, which colour-blind
readers tell apart.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysys.config import digest

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#555555"
_MARKERS = "osD^vPX"
_PANEL_WIDTH = 3.6  # inches
_LETTER_WIDTH, _HANDLE_WIDTH = 0.065, 0.6  # inches, of the legend
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "raysys",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one thing, joined by a line.

    Attributes:
        name: in the legend; empty: not there.
        points: (x, y).
        colour: number of a colour and marker; None: grey, without markers.
        style: of the line, `-`, `--`, `:` or `-.`; empty: markers alone.
        band: (low, high) of every point, empty: none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int | None = 0
    style: str = "-"
    band: Sequence[tuple[float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Panel:
    """Axes and what is drawn in them. An axis is logarithmic, or holds zero.

    Attributes:
        title: above.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis.
        lines: what is drawn.
        log: the logarithmic axes, of `x` and `y`.
        names: of the places 0, 1, ... on the vertical axis, from the top; empty: numbers.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log: str = ""
    names: Sequence[str] = ()


def fingerprint(panels: Sequence[Panel]) -> str:
    """Return a digest of all that panels show."""
    return digest(json.loads(json.dumps([dataclasses.asdict(panel) for panel in panels])))


def drawn_from(path: Path) -> str | None:
    """Return the fingerprint that an SVG file carries; None: it carries none."""
    found = re.search(r"<dc:description>(\w+)</dc:description>", path.read_text())
    return found and found[1]


def draw(panels: Sequence[Panel], path: Path, *, height: float = 3.4) -> None:
    """Draw panels beside each other, with the same axes and one legend, to a PNG or SVG.

    Args:
        panels: the first one's scales and names count for all.
        path: its ending names the format.
        height: in inches.
    """
    import matplotlib  # not before it is needed
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        width = max(_PANEL_WIDTH * len(panels), 1.6 * _PANEL_WIDTH)
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        _scale(axes[0], panels)
        shown: dict[Any, Any] = {}
        for axis, panel in zip(axes, panels, strict=True):
            axis.set(title=panel.title, xlabel=panel.x)
            axis.grid(alpha=0.3)
            for line in panel.lines:
                mark = _line(axis, line)
                if line.name:
                    shown.setdefault((line.name, line.colour, line.style), mark)
        axes[0].set_ylabel(panels[0].y)
        if len(shown) > 1:
            names = [name for name, *_ in shown]
            columns = _legend_columns(names, width)
            figure.legend([*shown.values()], names, loc="outside lower center", ncols=columns)
        made: dict[str, str | None] = {"Description": fingerprint(panels)}
        made["Date" if path.suffix == ".svg" else "Software"] = None  # no moment, no version
        figure.savefig(path, dpi=150, metadata=made)


def _line(axis: Any, line: Line) -> Any:
    """Draw one line; return what stands for it in the legend."""
    x, y = zip(*line.points, strict=True)
    colour = _GREY if line.colour is None else _COLOURS[line.colour % len(_COLOURS)]
    marker = "" if line.colour is None else _MARKERS[line.colour % len(_MARKERS)]
    width = 1 if line.colour is None else 1.8
    if line.band:
        low, high = zip(*line.band, strict=True)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    [mark] = axis.plot(
        x,
        y,
        line.style or " ",
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=width,
        clip_on=False,
    )
    return mark


def _scale(axis: Any, panels: Sequence[Panel]) -> None:
    """Set scales, limits and ticks of the axes that all panels share."""
    names, log = panels[0].names, panels[0].log
    lines = [*itertools.chain.from_iterable(panel.lines for panel in panels)]
    points = [*itertools.chain.from_iterable(line.points for line in lines)]
    points += [
        (x, end)
        for line in lines
        for (x, _), ends in zip(line.points, line.band, strict=False)
        for end in ends
    ]
    for side, values in zip("xy", zip(*points, strict=True), strict=True):
        if side == "y" and names:
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
        elif side in log:
            _log_ticks(axis, side, max(values) / min(values))
        else:
            axis.set(**{f"{side}lim": (1.05 * min(0, *values), 1.05 * max(values))})
            getattr(axis, f"{side}axis").set_major_formatter(lambda value, _: plain(value))


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many columns of names fit a width in inches, in lines of like lengths."""
    fitting = max(1, int(width / (_LETTER_WIDTH * max(map(len, names)) + _HANDLE_WIDTH)))
    n_lines = -(-len(names) // fitting)
    return -(-len(names) // n_lines)


def _log_ticks(axis: Any, side: str, span: float) -> None:
    """Make an axis logarithmic, with ticks at powers of ten, and between over few of them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set(**{f"{side}scale": "log"})
    ruler = getattr(axis, f"{side}axis")
    subs = (1.0,) if span > 300 else (1.0, 3.0) if span > 30 else (1.0, 2.0, 5.0)
    ruler.set_major_locator(LogLocator(subs=subs))
    ruler.set_major_formatter(lambda value, _: plain(value))
    ruler.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """Return a tick's number in a few letters: 0.05, 20, 3 k, 1 M."""
    for size, letter in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
