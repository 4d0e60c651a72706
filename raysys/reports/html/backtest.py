"""The page of a backtest, `<run>/reports/backtest-<n>.html`, made from its record alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.charts import day
from raysys.reports.html.content import (
    BAD,
    EVEN,
    GOOD,
    Block,
    Figure,
    Folded,
    Mark,
    Note,
    Page,
    Section,
    Table,
)
from raysys.reports.html.pages import guarded
from raysys.reports.html.text import count, ends, number, signed, span, with_interval
from raysys.reports.html.verdicts import ORDER, WORDS

Record = Mapping[str, Any]


def page_of(record: Record, *, run: str) -> Page:
    """Return the page of a backtest.

    Args:
        record: what `backtest` writes as JSON.
        run: name of the run.
    """
    windows = record["backtest"]
    text, tone = _verdict(record)
    metric = _metric(record)
    shown = {
        "windows": (count(len(windows)), f"{len(record.get('left_out') or [])} left out"),
        "from": (day(windows[0]["test"]), "first day that is judged"),
        "to": (day(windows[-1]["end"]), "end of the last window"),
    }
    if metric is not None and metric in record["metrics"]:
        entry = record["metrics"][metric]
        between = span(*ends(entry), sign=False)
        shown = {f"{metric}, mean": (number(entry["mean"]), between)} | shown
    return Page(
        kicker="Backtest",
        title=f"{run}: the same settings on {len(windows)} windows of the past",
        verdict=f"{text}.",
        tone=tone,
        key_figures=shown,
        sections=[
            guarded("Against the best baseline", lambda: _against(record)),
            guarded("Window by window", lambda: _windows(record)),
        ],
        foot=[guarded("Windows", lambda: _foot(record))],
    )


def _metric(record: Record) -> str | None:
    return next((name for name in ORDER if name in (record.get("differences") or {})), None)


def _verdict(record: Record) -> tuple[str, str]:
    metric = _metric(record)
    if metric is None:
        return "No baseline was measured on all windows", EVEN
    entry = record["differences"][metric]["chosen"]
    low, high = ends(entry)
    n_windows = len(entry["differences"])
    over = "the baseline that validation would have chosen"
    ahead = f"ahead in {entry['ahead']} of {n_windows} windows"
    if low is None or high is None:
        difference = signed(entry["difference"])
        return f"One window decides nothing: the model is {difference} to {over} in {metric}", EVEN
    by = f"{signed(entry['difference'])} ({span(low, high)}), {ahead}"
    if low > 0:
        return f"Over time the model leads {over} in {metric}: {by}", GOOD
    if high < 0:
        return f"Over time {over} leads the model in {metric}: {by}", BAD
    return f"Over time the model does not differ beyond noise from {over} in {metric}: {by}", EVEN


def _against(record: Record) -> Section:
    panels, rows, gaps = [], [], []
    differences = record.get("differences") or {}
    for place, metric in enumerate(name for name in ORDER if name in differences):
        entry = differences[metric]["chosen"]
        names = [day(window["test"]) for window in record["backtest"]]
        lines = [
            charts.Interval(name, gap, None, None, None)
            for name, gap in zip(names, entry["differences"], strict=True)
        ]
        gaps += [[metric, line.name, signed(line.value), ""] for line in lines]
        gaps.append([metric, "mean", signed(entry["difference"]), span(*ends(entry))])
        lines.append(charts.Interval("mean", entry["difference"], *ends(entry), 0))
        text = (
            f"{metric}: difference of the model to the chosen baseline in {len(names)} windows, "
            f"and their mean {signed(entry['difference'])}."
        )
        panels.append(charts.intervals(f"gap-{place}", metric, lines, "model minus baseline", text))
        for way, said in (("chosen", "on validation"), ("on_mean", "on the mean of test")):
            found = differences[metric][way]
            who = ", ".join(f"{name} ×{n}" for name, n in Counter(found["baselines"]).items())
            rows.append([
                metric, f"{said}: {who}", number(differences[metric]["model"]),
                number(found["mean"]), signed(found["difference"]), span(*ends(found)),
                f"{found['ahead']} of {len(found['differences'])}",
            ])  # fmt: skip
    if not panels:
        return Section("Against the best baseline", ())
    head = ["metric", "best baseline", "model", "baseline", "difference", "95 % interval", "ahead"]
    table = Table("The model against the best baseline", head, rows, left=(0, 1))
    note = (
        "A window is one point; the interval of the mean is a t interval over windows, which share "
        "users: it speaks of this log's past, not of other logs."
    )
    by_window = ["metric", "window", "difference", "95 % interval"]
    told = Table("Model minus the chosen baseline", by_window, gaps, left=(0, 1))
    figure = Figure("Differences by window", panels, told, note=note)
    return Section("Against the best baseline", [figure, table])


def _windows(record: Record) -> Section:
    windows = record["backtest"]
    dates = [day(window["test"]) for window in windows]
    blocks: list[Block] = []
    for place, metric in enumerate(_metrics(record)):
        values = {
            method: [(found.get(metric) or {}).get("mean") for found in by_window]
            for method, by_window in _methods(windows).items()
        }
        values = {m: v for m, v in values.items() if any(x is not None for x in v)}
        series = [
            charts.Series(
                [(at, value) for at, value in enumerate(found) if value is not None],
                0 if method == "model" else None,
            )
            for method, found in values.items()
        ]
        axes = charts.Axes("first day of the window", metric, ticks=dates, zero=True)
        text = f"{metric} of {len(values)} methods over {len(dates)} windows."
        panel = charts.points(f"window-{place}", metric, series, axes, text)
        rows = [[method, *map(number, found)] for method, found in values.items()]
        table = Table(f"{metric} by window", ["", *dates], rows)
        legend = [Mark("model", 0, "o"), Mark("baselines", None)]
        blocks.append(Figure(f"{metric} by window", [panel], table, legend=legend))
    means = [[name, with_interval(entry)] for name, entry in record["metrics"].items()]
    blocks.append(
        Folded("Means over the windows", [Table("Of the model", ["", "mean of windows"], means)])
    )
    leading = _metric(record)
    lead = f"{leading} is {WORDS[leading]}." if leading else ""
    return Section("Window by window", blocks, lead=lead)


def _metrics(record: Record) -> list[str]:
    found = list(record.get("differences") or {}) or list(record["metrics"])
    return [name for name in ORDER if name in found]


def _methods(windows: list[Record]) -> dict[str, list[Record]]:
    names = dict.fromkeys(name for window in windows for name in window.get("baselines") or {})
    baselines = {
        name: [(window.get("baselines") or {}).get(name) or {} for window in windows]
        for name in names
    }
    return {"model": [window["metrics"] for window in windows]} | baselines


def _foot(record: Record) -> Section:
    rows = [
        [
            str(window["number"]),
            *(day(window[key]) for key in ("val", "test", "end")),
            count((window.get("evaluated") or {}).get("rows")),
        ]
        for window in record["backtest"]
    ]
    table = Table("Cuts of the windows", ["window", "validation", "test", "end", "users"], rows)
    notes = [
        Note(f"Window {entry.get('number')} is left out: {entry.get('reason')}")
        for entry in record.get("left_out") or []
    ]
    return Section("Windows", [table, *notes])
