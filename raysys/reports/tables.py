"""Tables as aligned text: any cells, and the methods of an evaluation beside their metrics."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from raysys.evaluation.evaluator import Metrics
from raysys.evaluation.headlines import HEADLINES


def headline(found: Metrics) -> Metrics:
    """Return the metrics that stand in the table."""
    return {name: found[name] for name in HEADLINES if name in found}


def table(methods: Mapping[str, Metrics]) -> list[str]:
    """Lay out the methods' headline metrics, one line each, as mean ± half the 95 % interval."""
    return aligned(cells(methods))


def cells(methods: Mapping[str, Metrics]) -> list[list[str]]:
    """Return the cells of `table`."""
    columns = [name for name in HEADLINES if any(name in found for found in methods.values())]
    rows = [["", *columns]]
    for method, found in methods.items():
        rows.append([method, *(_cell(found, name) for name in columns)])
    return rows


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Pad the cells of a table, columns of `left` (by number) to the left, others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def size(n_bytes: float) -> str:
    """Return a size in words: `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its head."""
    rule = ["---"] * len(rows[0])
    return [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]


def of_records(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    """Return the cells of a table: a line of names, then one a record.

    Absent values are dashes; lists and mappings stand as JSON.
    """
    return [list(columns), *([_value(record.get(name)) for name in columns] for record in records)]


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _cell(found: Metrics, name: str) -> str:
    entry = found.get(name, {})
    mean, low, high = entry.get("mean"), entry.get("ci_low"), entry.get("ci_high")
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if low is None or high is None else f" ±{(high - low) / 2:.4f}")
