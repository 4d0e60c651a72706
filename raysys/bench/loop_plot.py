"""The plot of the loop suite: what becomes of lists over weeks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysys.reports.plots import Line, Panel

CONDITIONS = ("frozen", "events", "refreshed")
_SHOWN = {
    "conversion": "share of visits that click",
    "recall": "recall@10 of what is taken elsewhere",
}


def loop_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return a panel of conversion and one of recall, by week; none without such rows."""
    weeks = [row for row in rows if row.get("part") == "weeks"]
    if not weeks:
        return []
    panels = []
    for key, title in _SHOWN.items():
        lines = []
        for colour, condition in enumerate(CONDITIONS):
            own = [row for row in weeks if row["condition"] == condition]
            points = [(float(row["week"]), float(row[key])) for row in own]
            lines += [Line(condition, points, colour)] if points else []
        panels.append(Panel(title=title, x="week", y=key, lines=lines))
    return panels
