"""What became of a log: its columns, its lines, the values that do not fit."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from raysys.data.interactions import ColumnUse, InteractionsFacts
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


def column_uses(mapped: Mapped, present: Mapping[str, int], *, n_rows: int) -> dict[str, ColumnUse]:
    """Return what a build records of the columns of its log."""
    return {
        name: ColumnUse(column, present.get(name, 0), n_rows)
        for name, column in mapped.columns.items()
    }


def line_counts(tally: Tally) -> dict[str, int] | None:
    """Return what a build records of the lines of its log; None where it has none."""
    return dataclasses.asdict(tally) if tally.lines else None


def with_earlier(
    new: InteractionsFacts, base: InteractionsFacts
) -> tuple[dict[str, ColumnUse], dict[str, int] | None]:
    """Return columns and lines of two logs together; other names of columns are those of `new`."""
    columns = dict(new.columns)
    for name, before in base.columns.items():
        now = columns.get(name, ColumnUse(before.source, 0, 0))
        rows, of = now.rows + before.rows, now.of + before.of
        columns[name] = ColumnUse(now.source, rows, of)
    lines = Counter(base.lines or {})
    lines.update(new.lines or {})
    return columns, dict(lines) if lines else None


def log_account(facts: InteractionsFacts) -> None:
    """Log the columns and lines of an interactions build, a line each."""
    for name, use in facts.columns.items():
        level = logging.INFO if use.rows else logging.WARNING
        if use.source != name or use.rows or name in ("user_id", "item_id"):
            message = "prepare column name=%s from=%s rows=%d of %d"
            log.log(level, message, name, use.source, use.rows, use.of)
    for name, reason in facts.left_out.items():
        level = logging.INFO if reason in (NOT_ASKED_FOR, SWITCHED_OFF) else logging.WARNING
        log.log(level, "prepare column left out name=%s reason=%s", name, reason)
    if facts.lines:
        log.info("prepare lines %s", " ".join(f"{k}={v}" for k, v in facts.lines.items()))
    names = ("rows_in", "rows", "duplicates", "quarantined", "filtered")
    log.info("prepare rows %s", " ".join(f"{name}={getattr(facts, name)}" for name in names))
