"""What the refreshes of a run decided, as a section of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.content import Block, Figure, Folded, Mark, Section, Table
from raysys.reports.html.text import count, number, seconds, signed, span
from raysys.reports.refreshes import DONE, PUBLISHED

Record = Mapping[str, Any]


def section(record: Record) -> Section:
    """Return the section: a figure of what was judged, and a row for every decision."""
    decisions = record.get("refreshes") or []
    if not decisions:
        return Section("Refreshes", ())
    blocks: list[Block] = [_figure(decisions, name) for name in _metrics(decisions)]
    head = ["refresh", "at", "decision", "new rows", "difference", "95 % interval", "time", "why"]
    rows = [_row(decision) for decision in reversed(decisions)]
    blocks.append(Table("Decisions, the newest first", head, rows, left=(0, 1, 2, 7)))
    guards = [
        [count(d["number"]), each["name"], number(each["value"]), number(each["limit"])]
        for d in decisions
        for each in d["guards"]
        if not each["passed"] and each["key"] not in d["accepted"]
    ]
    if guards:
        names = ["refresh", "what was looked at", "found", "limit"]
        blocks.append(Folded("What was stopped", [Table("Failed", names, guards, left=(0, 1))]))
    n_published = sum(d["decision"] == PUBLISHED and d["state"] == DONE for d in decisions)
    return Section("Refreshes", blocks, lead=f"{n_published} of {len(decisions)} were published.")


def _metrics(decisions: list[Record]) -> list[str]:
    return list(dict.fromkeys(name for d in decisions for name in d["metrics"]))


def _figure(decisions: list[Record], name: str) -> Figure:
    judged = [d for d in decisions if name in d["metrics"]]
    ticks = [str(d["number"]) for d in judged]
    series = [
        charts.Series([(at, d["metrics"][name][side]) for at, d in enumerate(judged)], colour)
        for side, colour in (("served", 1), ("candidate", 0))
    ]
    axes = charts.Axes("refresh", name, ticks=ticks)
    text = f"{name} of the served model and of the candidate at {len(judged)} refreshes."
    panel = charts.points(f"refresh-{name}", name, series, axes, text)
    rows = [
        [d["decision"], *(number(d["metrics"][name][side]) for side in ("served", "candidate"))]
        for d in judged
    ]
    rows = [[tick, *row] for tick, row in zip(ticks, rows, strict=True)]
    table = Table(name, ["refresh", "decision", "served", "candidate"], rows, left=(0, 1))
    legend = [Mark("served", 1, "s"), Mark("candidate", 0, "o")]
    note = "On the newest window, which neither of them saw."
    return Figure(f"{name} by refresh", [panel], table, legend=legend, note=note)


def _row(decision: Record) -> list[str]:
    pair = next(iter(decision["metrics"].values()), None)
    judged, state = ["", ""], decision["state"]
    if pair is not None:
        judged = [signed(pair["difference"]), span(pair["ci_low"], pair["ci_high"])]
    return [
        count(decision["number"]),
        str(decision["at"])[:16].replace("T", " "),
        str(decision["decision"]) + (f", {state}" if state != DONE else ""),
        count(decision["rows"]["new"]) if "new" in decision["rows"] else "",
        *judged,
        seconds(sum(decision["seconds"].values())) if decision["seconds"] else "",
        str(decision["reason"]),
    ]
