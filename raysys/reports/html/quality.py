"""What else an evaluation says of lists and probabilities: coverage, calibration, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.content import Block, Cell, Figure, Mark, Section, Table
from raysys.reports.html.text import count, number, percent

Record = Mapping[str, Any]
Bins = Sequence[Mapping[str, Any]]
_STYLES = ("-", "--", ":")


def coverage_section(record: Record) -> Section:
    """Return how much of the catalogue the lists hold, and how evenly."""
    rows = []
    for name, entry in record["methods"].items():
        found, metrics = entry.get("coverage") or {}, entry.get("metrics") or {}
        share = found.get("items_in_lists@20", _mean(metrics, "coverage@20"))
        gini = found.get("gini@20", _mean(metrics, "gini@20"))
        if share is None and gini is None:
            continue
        covered = Cell(percent(share), share=share) if share is not None else "–"
        rows.append([name, covered, number(gini, 3), number(_mean(metrics, "novelty@20"), 2)])
    if not rows:
        return Section("Coverage", ())
    table = Table(
        "First 20 items of all users evaluated",
        ["", "of the catalogue in some list", "Gini of how often", "novelty, bits"],
        rows,
    )
    lead = (
        "How much of the catalogue anybody is shown. A Gini of 1 shows one item to everybody, of 0 "
        "all items equally often."
    )
    return Section("Coverage", [table], lead=lead)


def calibration_section(record: Record) -> Section:
    """Return predicted against observed frequencies, of being consumed and of rating levels."""
    found = record["methods"][record["via"]].get("calibration") or {}
    blocks: list[Block] = []
    consume = _present(found.get("consume") or [])
    if consume:
        blocks.append(_consume(consume))
    levels = {name: _present(bins or []) for name, bins in (found.get("levels") or {}).items()}
    levels = {name: bins for name, bins in levels.items() if bins}
    if levels:
        blocks.append(_levels(levels))
    lead = "On the diagonal, what was predicted to happen in 3 of 100 cases happened in 3 of 100."
    return Section("Calibration", blocks, lead=lead)


def _consume(bins: Bins) -> Figure:
    points = [(float(b["predicted"]), float(b["observed"])) for b in bins]
    seen = [(x, y) for x, y in points if x > 0 and y > 0]
    log, points = ("xy", seen) if len(seen) > 1 else ("", points)
    axes = charts.Axes("predicted probability", "observed share", log=log, diagonal=True)
    title = "Probability of being consumed"
    total = sum(b.get("n") or 0 for b in bins)
    text = (
        f"{title}: observed share against prediction in {len(bins)} bins of {count(total)} cases."
    )
    panel = charts.points("calibration-consume", title, [charts.Series(points)], axes, text)
    legend = [Mark("a bin of predictions", 0, "o"), Mark("as predicted", None, style="--")]
    table = Table(title, _HEAD, [_row(b) for b in bins])
    unseen = len(bins) - len(points)
    note = (
        f"{unseen} bins in which nothing was observed stand in the table alone." if unseen else ""
    )
    return Figure(title, [panel], table, legend=legend, note=note)


def _levels(levels: Mapping[str, Bins]) -> Figure:
    series, legend = [], []
    for place, (name, bins) in enumerate(levels.items()):
        style = _STYLES[place // 7 % len(_STYLES)]
        points = [(float(b["predicted"]), float(b["observed"])) for b in bins]
        series.append(charts.Series(points, place % 7, style))
        legend.append(Mark(f"level {name}", place % 7, charts.MARKERS[place % 7], style))
    axes = charts.Axes("predicted probability", "observed share", diagonal=True, zero=True)
    title = "Probability of each level"
    text = f"{title}: observed share against prediction, one line for each of {len(levels)} levels."
    panel = charts.points("calibration-levels", title, series, axes, text, height=260)
    rows = [[name, *_row(b)] for name, bins in levels.items() for b in bins]
    table = Table(title, ["level", *_HEAD], rows)
    return Figure(title, [panel], table, legend=legend)


def confusion_section(record: Record) -> Section:
    """Return true against most likely levels, as a table that is its own picture."""
    found = record["methods"][record["via"]].get("confusion") or {}
    names, counts = found.get("levels") or [], found.get("counts") or []
    if not names or not counts:
        return Section("Rating confusion", ())
    rows: list[list[Cell | str]] = []
    right = total = 0
    for place, (name, row) in enumerate(zip(names, counts, strict=True)):
        n_row = sum(row)
        cells: list[Cell | str] = [
            Cell(count(n), share=n / n_row if n_row else 0.0, strong=False) for n in row
        ]
        rows.append([str(name), *cells, count(n_row)])
        right, total = right + row[place], total + n_row
    table = Table(
        "Rows: the true level; columns: the level held most likely; darker: more of the row",
        ["true level", *(f"as {name}" for name in names), "cases"],
        rows,
    )
    share = percent(right / total if total else None)
    lead = f"The most likely level was the true one in {share} of the cases."
    return Section("Rating confusion", [table], lead=lead)


_HEAD = ("from", "to", "predicted", "observed", "cases")


def _row(entry: Mapping[str, Any]) -> list[str]:
    numbers = [f"{entry[key]:.4g}" for key in ("low", "high", "predicted", "observed")]
    return [*numbers, count(entry.get("n"))]


def _present(bins: Bins) -> Bins:
    """Return the bins that hold cases."""
    return [b for b in bins if b.get("predicted") is not None and b.get("observed") is not None]


def _mean(metrics: Mapping[str, Any], name: str) -> float | None:
    value: float | None = (metrics.get(name) or {}).get("mean")
    return value
