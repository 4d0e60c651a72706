"""What the plots of the page show: a suite's newest rows as panels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from raysys.bench.codes_plot import codes_panel
from raysys.bench.loop_plot import loop_panels
from raysys.bench.records import Record
from raysys.bench.recovery import recovery_panel
from raysys.reports.plots import Line, Panel

Row = dict[str, Any]

_SEARCH_COLOURS = (
    "raysys ivf",
    "hnswlib float32",
    "usearch i8",
    "faiss IVF-OPQ",
    "faiss IVF-RaBitQ",
    "raysys graph",
    "raysys flat",
)
_PROTOCOLS = ("cutoff", "lloo", "loo")


def charts(records: Sequence[Record]) -> dict[str, list[Panel]]:
    """Return {suite: panels}, of the suites that were measured and have a plot."""
    panels = {}
    for suite, chart in _CHARTS.items():
        rows = [
            row | {"_gpu": record.machine.gpu}
            for record in sorted(records, key=lambda record: record.date)
            for row in record.rows
            if record.suite == suite
        ]
        shown = chart(rows)
        if shown:
            panels[suite] = shown
    return panels


def _newest(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """Return the last row of every key, in the order of the keys' first rows."""
    return [*{key(row): row for row in rows}.values()]


def _codes(rows: list[Row]) -> list[Panel]:
    rows = [row for row in rows if "bytes_per_item" in row]
    rows = _newest(rows, lambda row: (row["data"], row["engine"], row["bytes_per_item"]))
    sets = dict.fromkeys(row["data"] for row in rows)
    return [codes_panel([row for row in rows if row["data"] == data]) for data in sets]


def _retrieval(rows: list[Row]) -> list[Panel]:
    rows = [row for row in rows if row["data"] == rows[-1]["data"]]
    rows = _newest(rows, lambda row: (row["engine"], row["n_items"]))
    lines = []
    for colour, engine in enumerate(_SEARCH_COLOURS):
        points = sorted((row["n_items"], row["p50_cpu_ms"]) for row in _of(rows, engine))
        style = "-" if engine.startswith("raysys") else "--"
        lines += [Line(engine, points, colour, style)] if points else []
    title = "every engine finds 95 % of its own exact top 10"
    return [_time_panel(title, lines)] if lines else []


def _scale(rows: list[Row]) -> list[Panel]:
    rows = sorted(_newest(rows, lambda row: row["n_items"]), key=lambda row: row["n_items"])
    if not rows:
        return []
    exact = [(row["n_items"], row["exact_cpu_ms"]) for row in rows if "exact_cpu_ms" in row]
    lines = [Line("raysys ivf", [(row["n_items"], row["p50_cpu_ms"]) for row in rows])]
    return [_time_panel("codes grown to millions of items", [*lines, Line("exact scan", exact, 6)])]


def _time_panel(title: str, lines: list[Line]) -> Panel:
    return Panel(title, "items", "median time of a query, CPU ms", lines, log="xy")


def _recovery(rows: list[Row]) -> list[Panel]:
    rows = _newest([row for row in rows if "draws" in row], lambda row: row["draws"])
    rows = sorted(rows, key=lambda row: row["draws"])
    return [recovery_panel(rows)] if len(rows) > 1 else []


def _train(rows: list[Row]) -> list[Panel]:
    rows = [row for row in rows if row["_gpu"] and "batch" in row]
    rows = [row for row in rows if row["_gpu"] == rows[-1]["_gpu"]]
    rows = _newest(rows, lambda row: (row["engine"], row["n_items"], row["batch"]))
    engines = [*dict.fromkeys(row["engine"].rpartition(", ")[0] for row in rows)]
    panels = []
    for n_items, batch in dict.fromkeys((row["n_items"], row["batch"]) for row in rows):
        measured = [
            (engines.index(row["engine"].rpartition(", ")[0]), row["bound_ms"], row["step_ms"])
            for row in rows
            if (row["n_items"], row["batch"]) == (n_items, batch) and "step_ms" in row
        ]
        spans = [Line("", [(low, y), (high, y)], None) for y, low, high in measured]
        bound = Line("bound", [(low, y) for y, low, _ in measured], 1, "")
        step = Line("step", [(high, y) for y, _, high in measured], 0, "")
        title = f"{n_items:,} items, {batch:,} profiles a step"
        panels.append(
            Panel(title, "ms of a step", "", [*spans, bound, step], log="x", names=engines)
        )
    return panels


def _prepare(rows: list[Row]) -> list[Panel]:
    rows = sorted(_newest(rows, lambda row: (row["engine"], row["rows"])), key=_size)
    if not rows:
        return []
    ours = _of(rows, "raysys prepare")
    lines = [
        Line("raysys prepare", [(row["rows"], row["rows_per_s"]) for row in ours]),
        Line(
            "with Ray's start",
            [(row["rows"], row["rows"] / row["seconds_with_ray"]) for row in ours],
            5,
            ":",
        ),
        Line("polars", [(row["rows"], row["rows_per_s"]) for row in _of(rows, "polars")], 1, "--"),
    ]
    return [Panel("", "rows of the log", "rows a second", lines, log="x")]


def _agreement(rows: list[Row]) -> list[Panel]:
    rows = [row for row in rows if row.get("sites") == "all" and "^" in row["metric"]]
    rows = _newest(rows, lambda row: row["metric"])
    if not rows:
        return []
    lines = []
    for colour, protocol in enumerate(_PROTOCOLS):
        own = [row for row in rows if row["metric"].startswith(f"{protocol}.")]
        points = [
            (float(row["metric"].rpartition("^")[2]), row["picked"] / row["cells"]) for row in own
        ]
        lines.append(Line(protocol, sorted(points), colour))
    chance = Line("chance", [(x, rows[0]["chance"]) for x, _ in lines[0].points], None, ":")
    axes = "penalty beta of recall@K^beta", "online winner picked (share)"
    return [Panel("", *axes, [*lines, chance])]


def _of(rows: list[Row], engine: str) -> list[Row]:
    return [row for row in rows if row["engine"] == engine]


def _size(row: Row) -> int:
    return int(row["rows"])


_CHARTS: dict[str, Callable[[list[Row]], list[Panel]]] = {
    "codes": _codes,
    "retrieval": _retrieval,
    "scale": _scale,
    "recovery": _recovery,
    "train": _train,
    "prepare": _prepare,
    "agreement": _agreement,
    "loop": loop_panels,
}
