"""What became of a log: its columns, its lines, the values that do not fit."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raysys.log.columns import NOT_ASKED_FOR, SWITCHED_OFF, Mapped
from raysys.log.formats.contract import Tally

log = logging.getLogger(__name__)


def add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counts by name, sorted by name."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))


def add_tallies(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def unfit_defaults(
    mapped: Mapped, odd: Mapping[str, int], n_rows: int, *, share: float
) -> dict[str, str]:
    """Return optional columns that nobody named and that hold other things, with the reason.

    Args:
        mapped: the columns read.
        odd: {our column: rows whose value is neither text nor a number}.
        n_rows: rows read.
        share: of rows that may be so; where more are, the column is meant for something else.
    """
    return {
        name: f"{odd[name]} of {n_rows} values are neither text nor numbers"
        for name in mapped.defaults
        if odd.get(name, 0) > share * n_rows
    }


def column_facts(
    mapped: Mapped, present: Mapping[str, int], *, n_rows: int, tally: Tally
) -> dict[str, Any]:
    """Return what a build records of the columns and lines of its log."""
    return {
        "columns": {
            name: {"from": column, "rows": present.get(name, 0), "of": n_rows}
            for name, column in mapped.columns.items()
        },
        "left_out": mapped.left_out,
        "lines": dataclasses.asdict(tally) if tally.lines else None,
    }


def add_column_facts(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of two logs together; where columns had other names, those of the new."""
    columns = {name: dict(fact) for name, fact in new["columns"].items()}
    for name, fact in base.get("columns", {}).items():
        column = columns.setdefault(name, {**fact, "rows": 0, "of": 0})
        column["rows"] += fact["rows"]
        column["of"] += fact["of"]
    lines = Counter(base.get("lines") or {})
    lines.update(new["lines"] or {})
    return {
        "columns": columns,
        "left_out": base.get("left_out", {}) | new["left_out"],
        "lines": dict(lines) if lines else None,
    }


def log_account(facts: Mapping[str, Any]) -> None:
    """Log the columns and lines of an interactions build, a line each."""
    for name, fact in facts.get("columns", {}).items():
        level = logging.INFO if fact["rows"] else logging.WARNING
        if fact["from"] != name or fact["rows"] or name in ("user_id", "item_id"):
            message = "prepare column name=%s from=%s rows=%d of %d"
            log.log(level, message, name, fact["from"], fact["rows"], fact["of"])
    for name, reason in facts.get("left_out", {}).items():
        level = logging.INFO if reason in (NOT_ASKED_FOR, SWITCHED_OFF) else logging.WARNING
        log.log(level, "prepare column left out name=%s reason=%s", name, reason)
    if facts.get("lines"):
        log.info("prepare lines %s", " ".join(f"{k}={v}" for k, v in facts["lines"].items()))
    keys = ("rows_in", "rows", "duplicates", "quarantined", "filtered")
    log.info("prepare rows %s", " ".join(f"{key}={facts[key]}" for key in keys))
