"""Sections of a run's page: what prepare saw of the log, and how it is split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysys.reports.html import charts
from raysys.reports.html.content import Block, Cell, Figure, Folded, Mark, Note, Section, Table
from raysys.reports.html.text import count, moment, percent, value

Record = Mapping[str, Any]
WINDOWS = {
    "FIT": "fit",
    "VAL": "validation",
    "TEST": "test",
    "VAL_IN": "validation, history",
    "TEST_IN": "test, history",
}
_REPEATS, _EVENTS = "repeats, merged", "events left out"


def section(record: Record) -> Section:
    """Return what became of the log's rows and how they lie in time."""
    builds, title = record["builds"], "Data"
    facts = (builds.get("interactions") or {}).get("facts")
    blocks: list[Block] = []
    lead = ""
    if facts:
        lead = (
            f"Of {count(facts['rows_in'])} rows of the log {count(facts['rows'])} are interactions "
            f"of {count(facts['n_users'])} users."
        )
    profile = record.get("profile") or {}
    split = (builds.get("profiles") or {}).get("facts") or {}
    if profile.get("counts"):
        blocks.append(_timeline(profile, split))
    if facts:
        blocks.append(_rows(facts, split))
    if profile.get("levels"):
        blocks.append(_levels(profile, split))
    if profile.get("lengths"):
        blocks.append(_lengths(profile["lengths"], split))
    if facts:
        blocks.append(Folded("Columns and lines of the log", _columns(facts)))
    return Section(title, blocks, lead=lead)


def _timeline(profile: Record, split: Record) -> Figure:
    edges = profile["edges"]
    names = {window: WINDOWS.get(window, window) for window in profile["counts"]}
    counts = {names[window]: found for window, found in profile["counts"].items()}
    cuts = {
        float(second): f"{WINDOWS.get(name.upper(), name)} begins"
        for name, second in sorted((split.get("cutoffs") or {}).items(), key=lambda cut: cut[1])
    }
    totals = {name: sum(found) for name, found in counts.items()}
    said = ", ".join(f"{count(total)} {name}" for name, total in totals.items())
    cut = ", ".join(f"{name} {charts.day(second)}" for second, name in sorted(cuts.items()))
    title = "Interactions over time"
    text = (
        f"{title}, {charts.day(edges[0])} to {charts.day(edges[-1])}: {said}. "
        f"{cut or 'The log is not cut in time'}."
    )
    panel = charts.timeline("timeline", title, edges, counts, cuts, text)
    rows = [
        [charts.day(edges[at]), *(count(found[at]) for found in counts.values())]
        for at in range(len(edges) - 1)
    ]
    table = Table(f"{title}, from", ["from", *counts], rows)
    legend = [Mark(name, number, style="area") for number, name in enumerate(counts)]
    note = "" if profile["shards"] == profile["of"] else (
        f"From the first {profile['shards']} of {profile['of']} shards of users."
    )  # fmt: skip
    return Figure(title, [panel], table, legend=legend, note=note)


def _rows(facts: Record, split: Record) -> Table:
    """Return what became of every row: the counts add up to the log's."""
    total = facts["rows_in"]
    rows: list[list[Cell | str]] = []

    def add(what: str, n: int) -> None:
        share = n / total if total else 0.0
        rows.append([what, Cell(count(n), share=share), percent(share)])

    for reason, n in sorted((facts.get("quarantined") or {}).items()):
        add(f"set aside: {reason}", n)
    for what, n in ((_REPEATS, facts.get("duplicates")), (_EVENTS, facts.get("filtered"))):
        if n:
            add(what, n)
    for reason, n in sorted((split.get("filtered") or {}).items()):
        add(f"filtered: {reason.replace('_', ' ')}", n)
    cells = split.get("n_cells") or {}
    for window in WINDOWS:
        if n := cells.get(window):
            add(f"kept: {WINDOWS.get(window, window)}", n)
    if not split:
        add("kept", facts["rows"])
    return Table(f"What became of {count(total)} rows", ["", "rows", "of the log"], rows)


def _levels(profile: Record, split: Record) -> Table:
    windows = profile["levels"]
    names = split.get("levels") or [str(n) for n in range(len(next(iter(windows.values()))))]
    totals = {window: sum(found) or 1 for window, found in windows.items()}
    rows: list[list[Cell | str]] = [
        [
            str(name),
            *(
                Cell(percent(found[at] / totals[w]), share=found[at] / totals[w])
                for w, found in windows.items()
            ),
        ]
        for at, name in enumerate(names)
    ]
    head = ["level", *(WINDOWS.get(window, window) for window in windows)]
    return Table("Levels: share of the interactions of each window", head, rows)


def _lengths(lengths: Record, split: Record) -> Table:
    words = {"0.1": "a tenth", "0.5": "half", "0.9": "nine tenths", "0.99": "99 of 100", "1": "all"}
    rows = [[f"{words.get(q, q)} of the users: at most", count(n)] for q, n in lengths.items()]
    catalogue = split.get("catalogue") or {}
    known = {"val": "known at the validation cut", "test": "known at the test cut", "all": "in all"}
    rows += [[f"items {known.get(period, period)}", count(n)] for period, n in catalogue.items()]
    return Table("Interactions of a user, and items", ["", "n"], rows)


def _columns(facts: Record) -> list[Table | Note | Figure]:
    used = [
        [
            name,
            use["source"],
            count(use["rows"]),
            percent(use["rows"] / use["of"] if use["of"] else 0),
        ]
        for name, use in (facts.get("columns") or {}).items()
    ]
    blocks: list[Table | Note | Figure] = [
        Table("Columns that are read", ["ours", "the log's", "with a value", "share"], used, (0, 1))
    ]
    out = [[name, reason] for name, reason in (facts.get("left_out") or {}).items()]
    if out:
        blocks.append(Table("Columns that are not read", ["column", "reason"], out, (0, 1)))
    lines = [[name.replace("_", " "), count(n)] for name, n in (facts.get("lines") or {}).items()]
    if lines:
        blocks.append(Table("Lines of text", ["", "lines"], lines))
    if facts.get("time_range"):
        first, last = facts["time_range"]
        units = ", ".join(facts.get("timestamp_units") or {})
        blocks.append(
            Note(f"Times from {moment(first)} to {moment(last)}, read as {value(units)}.")
        )
    return blocks
