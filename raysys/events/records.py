"""What a service writes down: events of users, and impressions of lists that were shown.

journal/<table>/*.jsonl    what was written last, by each process its own (`journal.py`)
<table>/*.parquet          all else, each record once (`fold.py`)
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

log = logging.getLogger(__name__)

RECEIVED = "received_ms"  # column of every table: when a record came, UTC milliseconds


@dataclasses.dataclass(frozen=True)
class Table:
    """One kind of record.

    Attributes:
        name: of its folders.
        key: columns that tell one record from another; of equal ones the first counts.
        schema: of its Parquet files. All tables have a `user_id`.
    """

    name: str
    key: tuple[str, ...]
    schema: pa.Schema

    @property
    def journal(self) -> str:
        """Folder of its journal."""
        return f"journal/{self.name}"


EVENTS = Table(
    "events",
    ("user_id", "event_id"),
    pa.schema(
        [
            ("event_id", pa.string()),
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("event", pa.string()),
            ("rating", pa.float64()),
            ("timestamp", pa.int64()),
            (RECEIVED, pa.int64()),
        ]
    ),
)
IMPRESSIONS = Table(
    "impressions",
    ("impression_id",),
    pa.schema(
        [
            ("impression_id", pa.string()),
            ("experiment", pa.string()),
            ("arm", pa.string()),
            ("user_id", pa.string()),
            ("timestamp", pa.int64()),
            ("item_ids", pa.list_(pa.string())),
            ("ranking", pa.string()),
            ("build_id", pa.string()),
            ("weight", pa.float64()),
            (RECEIVED, pa.int64()),
        ]
    ),
)
TABLES = (EVENTS, IMPRESSIONS)


class Event(NamedTuple):
    """What a user did with an item.

    Attributes:
        event_id: one that the user has already says the same again.
        user_id, item_id: who and what.
        event: its kind, in logs that have events.
        rating: in rating units, in logs that have ratings.
        timestamp: UTC seconds.
        received_ms: when it came, UTC milliseconds.
    """

    event_id: str
    user_id: str
    item_id: str
    event: str | None
    rating: float | None
    timestamp: int
    received_ms: int


def lines_of(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows of a table as JSON lines."""
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def events_in(lines: bytes) -> list[Event]:
    """Return the events of complete JSON lines; what is none is left out with a warning."""
    try:
        return [_event(row) for row in json.loads(b"[" + b",".join(lines.splitlines()) + b"]")]
    except (ValueError, LookupError, TypeError):
        events = []
        for line in lines.splitlines():
            try:
                events.append(_event(json.loads(line)))
            except (ValueError, LookupError, TypeError):
                log.warning("journal damaged: a line of %d bytes is no event", len(line))
        return events


def _event(row: Mapping[str, Any]) -> Event:
    event = Event(*(row[name] for name in Event._fields))
    if not isinstance(event.user_id, str) or not isinstance(event.timestamp, int):
        raise TypeError("no event")
    return event
