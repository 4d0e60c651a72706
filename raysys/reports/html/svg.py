"""SVG that lies inside a page: drawn by matplotlib, coloured and set in type by the page's CSS.

What is drawn in one of the marker colours below becomes `currentColor` or a variable of the page,
so that one drawing serves light, dark and paper. Ids are those that something refers to, each with
the drawing's key before it: no two drawings of a page share one.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

INK, FAINT, GRID, GROUND = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0505{number:02x}" for number in range(1, 8))
_VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--muted)",
    GRID: "var(--line)",
    GROUND: "var(--surface)",
} | {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "path.simplify": True,
}
_ATTRIBUTES = re.compile(r'\s(?:version|xmlns(?::xlink)?|width|height|id)="[^"]*"')
_ID = re.compile(r'(?<=\s)id="([^"]*)"')
_POINTED = re.compile(r'(?:href="#|url\(#)([^")]+)')
_FONT = re.compile(r"font-family: [^;\"]+")
_COLOUR = re.compile("|".join(_VARIABLES))
_PLACES = re.compile(r'\s(?:d|x|y|transform)="[^"]*"')
_MARKERS = re.compile(r"<g([^>]*)> ((?:<use [^>]*/> ?)+)</g>")
_DIGITS = re.compile(r"(\d+\.\d{2})\d+")  # beyond hundredths of a pixel


def colour(number: int | None) -> str:
    """Return the marker colour of a series; None: of what stands back."""
    return FAINT if number is None else SERIES[number % len(SERIES)]


def drawn(
    paint: Callable[[Any], None], *, key: str, width: int, height: int, title: str, text: str
) -> str:
    """Return what `paint` puts on a figure as an SVG element.

    Args:
        paint: takes the matplotlib figure.
        key: of the drawing, of letters, digits and dashes; no other of the page has it.
        width: in pixels, at which its text has its size.
        height: in pixels.
        title: short name, for those who cannot see it.
        text: what it shows, for those who cannot see it.
    """
    import matplotlib  # not before something is drawn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": key}), warnings.catch_warnings():
        # The page's font draws what matplotlib's own has no letter for.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        paint(figure)
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=empty)
    return _inlined(out.getvalue(), key=key, width=width, title=title, text=text)


def _once(group: re.Match[str]) -> str:
    """Return markers of one style with that style at their group, not at each of them."""
    styles = set(re.findall(r' style="[^"]*"', group[2]))
    if len(styles) != 1:
        return group[0]
    [style] = styles
    return f"<g{group[1]}{style}>{group[2].replace(style, '')}</g>"


def _inlined(svg: str, *, key: str, width: int, title: str, text: str) -> str:
    """Return the element alone, named, with ids of its own and the page's colours."""
    body = svg[svg.index("<svg") :].strip()
    head, _, rest = body.partition(">")
    head = _ATTRIBUTES.sub("", head)
    rest = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", rest, flags=re.S)
    rest = rest.replace("xlink:href", "href")
    pointed = set(_POINTED.findall(rest))
    rest = _ID.sub(lambda m: f'id="{key}-{m[1]}"' if m[1] in pointed else "", rest)
    rest = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", rest)
    rest = _FONT.sub("font-family: var(--sans)", rest)
    rest = re.sub(r"\bfont: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", rest)
    rest = _COLOUR.sub(lambda m: _VARIABLES[m[0]], rest)
    rest = re.sub(r"\s*\n\s*", " ", rest)
    rest = _PLACES.sub(lambda m: _DIGITS.sub(r"\1", m[0]), rest)
    rest = re.sub(r"<g\s+>", "<g>", rest)
    rest = _MARKERS.sub(_once, rest)
    named = f'role="img" aria-labelledby="{key}-title {key}-desc"'
    size = f'style="max-width: {1.5 * width:g}px"'
    told = f'<title id="{key}-title">{html.escape(title)}</title>'
    told += f'<desc id="{key}-desc">{html.escape(text)}</desc>'
    return f"{head} {named} {size}>{told}{rest}"
