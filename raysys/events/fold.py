"""Folding: what stands in the journal goes to Parquet, each record once; and erasure of users.

    journal/<table>/*.jsonl  ->  <table>/2026-11-30-000.parquet

A file is replaced by one that holds more until it is large, in one step, and only then the segments
go. So a reader sees each record at most once, and a fold that was killed is done again: what is
there already is left out by its key. One process folds at a time.

An erasure stands in `journal/erased/` until everything that came before it has been folded. Rows of
its user that were received before it never come back.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from raysys.errors import CorruptBuildError, told
from raysys.events.journal import is_complete, whole_lines
from raysys.events.records import TABLES, Table
from raysys.store.leases import leased
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

ERASED = "journal/erased"
SETTLED_S = 10.0  # a segment rests before it is folded: every process has read it by then
_FILE_BYTES = 32 << 20
_GROUP_BYTES = 128 << 20  # of segments that are folded together
_KNOWN_DAYS = 2  # in which a record that comes again is known by its key
_SLACK_MS = 600_000  # between the clocks of hosts, and until whoever slept has read it
_RECEIVED = "received_ms"


@dataclasses.dataclass(frozen=True)
class Folded:
    """What a fold did, in rows.

    Attributes:
        added: to the Parquet files.
        repeated: that were there already.
        erased: of users who were erased.
    """

    added: int = 0
    repeated: int = 0
    erased: int = 0

    def plus(self, other: Folded) -> Folded:
        """Return both together."""
        return Folded(
            self.added + other.added, self.repeated + other.repeated, self.erased + other.erased
        )


@dataclasses.dataclass(frozen=True)
class Erasure:
    """An order to forget what a user did.

    Attributes:
        user_id: of the user.
        at_ms: rows received by then go, UTC milliseconds.
    """

    user_id: str
    at_ms: int

    @property
    def name(self) -> str:
        """Its file in `ERASED`."""
        return f"{self.at_ms:013d}-{hashlib.sha256(self.user_id.encode()).hexdigest()[:16]}.json"

    def order(self, storage: Storage) -> None:
        """Write it down; `fold` carries it out."""
        storage.write_atomic(f"{ERASED}/{self.name}", json.dumps(dataclasses.asdict(self)))


def erasures(storage: Storage) -> list[Erasure]:
    """Return the erasures that are not yet done with, oldest first."""
    orders = []
    for name in storage.files(ERASED):
        record = storage.read_json(f"{ERASED}/{name}") if name.endswith(".json") else None
        if record is not None:
            orders.append(Erasure(**record))
    return orders


def fold(storage: Storage, *, settled_s: float = SETTLED_S) -> dict[str, Folded]:
    """Fold every table of a run.

    Args:
        storage: of the run.
        settled_s: seconds that a segment must have rested.

    Returns:
        {table: what was done}.

    Raises:
        BuildError: the storage cannot be read or written.
    """
    if not has_work(storage):
        return {table.name: Folded() for table in TABLES}
    with leased(storage, "fold"):
        orders = erasures(storage)
        done = {
            table.name: _fold(storage, table, orders, settled_ms=int(1000 * settled_s))
            for table in TABLES
        }
        for order in orders:
            until = order.at_ms + _SLACK_MS
            if until < time.time_ns() // 1_000_000 and not segments(storage, until_ms=until):
                storage.remove(f"{ERASED}/{order.name}")
    return done


def has_work(storage: Storage) -> bool:
    """Tell whether there is anything in the journal."""
    return bool(storage.files("journal"))


def segments(storage: Storage, *, until_ms: int) -> list[str]:
    """Return the segments of all tables that began by a time, in UTC milliseconds."""
    names = [f"{table.journal}/{name}" for table in TABLES for name in storage.files(table.journal)]
    return [name for name in names if int(name.rpartition("/")[2].split("-")[0]) <= until_ms]


def files_of(storage: Storage, table: Table, *, since: str = "") -> list[str]:
    """Return the Parquet files of a table, oldest first, from a day (`2026-11-30`) on."""
    names = [name for name in storage.files(table.name) if name.endswith(".parquet")]
    return [f"{table.name}/{name}" for name in names if name >= since]


def read_file(storage: Storage, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return rows of a Parquet file of the run.

    Raises:
        CorruptBuildError: it is damaged.
    """
    content = storage.read(name)
    try:
        return pq.read_table(io.BytesIO(content or b""), columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptBuildError(f"{storage.run}/{name} is no Parquet file: {error}") from error


# -- internals -----------------------------------------------------------------------------


def _fold(storage: Storage, table: Table, orders: Sequence[Erasure], *, settled_ms: int) -> Folded:
    marks = storage.files(table.journal)
    before_ns = time.time_ns() - settled_ms * 1_000_000
    rested = [name for name, mark in marks.items() if mark.mtime_ns <= before_ns]
    complete = [name for name in rested if is_complete(storage, f"{table.journal}/{name}")]
    n_erased = _erase(storage, table, orders)
    added = repeated = 0
    for names in _groups({name: marks[name].size_bytes for name in complete}):
        parts = {name: _rows(storage, table, f"{table.journal}/{name}") for name in names}
        whole = [part for part in parts.values() if part is not None]
        rows = pa.concat_tables([table.schema.empty_table(), *whole])
        kept = _without(rows, orders)
        fresh = _unknown(storage, table, _firsts(kept, table.key))
        if len(fresh):
            _add(storage, table, fresh)
        for name in (name for name, part in parts.items() if part is not None):
            storage.remove(f"{table.journal}/{name}")
        added += len(fresh)
        repeated += len(kept) - len(fresh)
        n_erased += len(rows) - len(kept)
    return Folded(added, repeated, n_erased)


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield names whose files have a bounded size together."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > _GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _rows(storage: Storage, table: Table, name: str) -> pa.Table | None:
    """Return the rows of a segment, None where it is damaged: it is left as it is.

    Half a line at its end was never acknowledged.
    """
    lines = whole_lines(storage.read(name) or b"")
    if not lines:
        return table.schema.empty_table()
    try:
        return pj.read_json(
            io.BytesIO(lines),
            parse_options=pj.ParseOptions(
                explicit_schema=table.schema, unexpected_field_behavior="ignore"
            ),
            read_options=pj.ReadOptions(block_size=len(lines)),
        )
    except pa.ArrowInvalid as error:
        log.warning("journal damaged path=%s/%s: %s", storage.run, name, told(error))
        return None


def _firsts(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Return the first row of each key, in order."""
    numbered = rows.append_column("row", pa.array(np.arange(len(rows))))
    firsts = numbered.group_by(list(key)).aggregate([("row", "min")])["row_min"]
    return rows.take(pa.array(np.sort(firsts.to_numpy())))


def _unknown(storage: Storage, table: Table, rows: pa.Table) -> pa.Table:
    """Return the rows whose keys no file of the last days has."""
    if not len(rows):
        return rows
    since = _day(time.time() - _KNOWN_DAYS * 86_400)
    key = list(table.key)
    for name in files_of(storage, table, since=since):
        known = read_file(storage, name, key)
        rows = rows.append_column("row", pa.array(np.arange(len(rows)))).join(
            known, keys=key, join_type="left anti"
        )
        rows = rows.sort_by("row").drop_columns("row").select(table.schema.names)
    return rows


def _add(storage: Storage, table: Table, rows: pa.Table) -> None:
    """Add rows to the newest file of today, or begin another."""
    today = _day(time.time())
    marks = {name: mark for name, mark in storage.files(table.name).items() if today in name}
    number = max((int(name.removesuffix(".parquet")[-3:]) for name in marks), default=0)
    name = f"{today}-{number:03d}.parquet"
    if name in marks and marks[name].size_bytes < _FILE_BYTES:
        earlier = read_file(storage, f"{table.name}/{name}")
        rows = pa.concat_tables([earlier.cast(table.schema), rows])
    elif name in marks:
        name = f"{today}-{number + 1:03d}.parquet"
    _write(storage, f"{table.name}/{name}", rows)


def _write(storage: Storage, name: str, rows: pa.Table) -> None:
    out = io.BytesIO()
    pq.write_table(rows, out, compression="zstd")
    storage.write_atomic(name, out.getvalue())


def _without(rows: pa.Table, orders: Iterable[Erasure]) -> pa.Table:
    """Return rows that no erasure forbids."""
    for order in orders:
        own = pc.equal(rows["user_id"], order.user_id)
        forbidden = pc.and_(own, pc.less_equal(rows[_RECEIVED], order.at_ms))
        rows = rows.filter(pc.invert(forbidden))
    return rows


def _erase(storage: Storage, table: Table, orders: Sequence[Erasure]) -> int:
    """Take erased rows out of the files; return how many there were."""
    gone = 0
    users = pa.array([order.user_id for order in orders], pa.string())
    for name in files_of(storage, table) if orders else ():
        own = read_file(storage, name, ["user_id"])["user_id"]
        if not pc.any(pc.is_in(own, users)).as_py():
            continue
        rows = read_file(storage, name)
        kept = _without(rows, orders)
        if len(kept) < len(rows):
            _write(storage, name, kept)
            gone += len(rows) - len(kept)
    return gone


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d")
