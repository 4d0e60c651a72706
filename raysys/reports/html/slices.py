"""Recall in parts: by how popular the targets are, how long the profiles, how far the days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.content import Figure, Mark, Panel, Section, Table
from raysys.reports.html.text import number, span
from raysys.reports.page import LEAD

_METRIC = "recall@20"
_KINDS = {
    "popularity": ("by popularity of the target", "tenth of the catalogue, 1 = most popular"),
    "history": ("by length of the profile", "interactions in the profile"),
    "level": ("by level of the target", "level"),
}
_DAYS = {
    "days_after": ("by days after the cut", "days from the cut to the target"),
    "days_away": ("by days since the last visit", "days from the last event to the cut"),
}

Record = Mapping[str, Any]


def buckets(record: Record, metric: str, kind: str) -> list[str]:
    """Return the names of a slice's parts that anybody has a value in, in their order."""
    start = f"{metric}|{kind}="
    names: dict[str, None] = {}
    for entry in record["methods"].values():
        for name, found in (entry.get("slices") or {}).items():
            if name.startswith(start) and (found or {}).get("mean") is not None:
                names.setdefault(name.removeprefix(start))
    return list(names)


def section(record: Record) -> Section:
    """Return recall by popularity, profile length and level."""
    figures = [_figure(record, _METRIC, kind, *words) for kind, words in _KINDS.items()]
    shown = [figure for figure in figures if figure is not None]
    lead = "A mean hides who is served: recall in parts, the model beside the best baseline."
    return Section("Where the recall comes from", shown, lead=lead)


def by_time(record: Record) -> Section:
    """Return recall by days after the cut and since the last visit."""
    metrics = [LEAD, "recall@20^0.3", _METRIC]
    shown = []
    for kind, words in _DAYS.items():
        metric = next((name for name in metrics if buckets(record, name, kind)), None)
        figure = metric and _figure(record, metric, kind, *words)
        if figure:
            shown.append(figure)
    lead = "A list that is right for tomorrow may be wrong for next season."
    return Section("By time", shown, lead=lead)


def _figure(record: Record, metric: str, kind: str, title: str, x: str) -> Figure | None:
    names = buckets(record, metric, kind)
    if not names:
        return None
    values = {
        method: [(entry.get("slices") or {}).get(f"{metric}|{kind}={name}") or {} for name in names]
        for method, entry in record["methods"].items()
    }
    values = {m: v for m, v in values.items() if any(e.get("mean") is not None for e in v)}
    own = record["via"]
    others = [method for method in values if method != own]
    means = {m: (record["methods"][m]["metrics"].get(metric) or {}).get("mean") for m in others}
    best = max(others, key=lambda method: means[method] or 0.0, default=None)
    series = [_series(values[method], None) for method in others if method != best]
    legend = [Mark(own, 0, "o")]
    if best is not None:
        series.append(_series(values[best], 1))
        legend.append(Mark(f"{best}, the best baseline in {metric}", 1, "s"))
    if series[1:]:
        legend.append(Mark("other baselines", None))
    if own in values:
        series.append(_series(values[own], 0))
        legend[0] = Mark(f"{own}, with its 95 % interval", 0, "o")
    panel = _panel(kind, f"{metric} {title}", series, names, metric, x)
    rows = []
    for place, name in enumerate(names):
        found = values.get(own, [{}] * len(names))[place]
        between = span(found.get("ci_low"), found.get("ci_high"), sign=False)
        rest = [number(values[method][place].get("mean")) for method in others]
        rows.append([name, number(found.get("mean")), between, *rest])
    table = Table(f"{metric} {title}", [x, own, "95 % interval", *others], rows)
    return Figure(f"{metric} {title}", [panel], table, legend=legend)


def _panel(
    kind: str, title: str, series: list[charts.Series], names: Sequence[str], metric: str, x: str
) -> Panel:
    axes = charts.Axes(x, metric, ticks=names, zero=True)
    text = f"{title}: one line a method over {len(names)} parts, the model with its interval."
    return charts.points(f"slice-{kind.replace('_', '-')}", title, series, axes, text)


def _series(entries: Sequence[Mapping[str, Any]], colour: int | None) -> charts.Series:
    points, band = [], []
    for place, entry in enumerate(entries):
        mean = entry.get("mean")
        if mean is None:
            continue
        points.append((place, mean))
        low, high = entry.get("ci_low"), entry.get("ci_high")
        band.append((mean if low is None else low, mean if high is None else high))
    return charts.Series(points, colour, band=band if colour == 0 else ())
