"""Folding: what stands in the journal goes to Parquet, each record once; and erasure of users.

    journal/<table>/*.jsonl  ->  <table>/2026-11-30-1796020036008-5f2c9a01.parquet

Every fold writes a file of a name of its own, in one step, and only then the segments go. So
nothing that is written is ever replaced by less. A fold that was killed is done again: what is
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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from raysys.errors import CorruptBuildError
from raysys.events.journal import is_complete, segments, start_of, whole_lines
from raysys.events.records import RECEIVED, TABLES, Table
from raysys.store.leases import Lease, leased
from raysys.store.storage import FileMark, Storage

log = logging.getLogger(__name__)

ERASED = "journal/erased"
DAMAGED = "journal/damaged"
SETTLED_S = 10.0  # a segment rests before it is folded: every process has read it by then
_GROUP_BYTES = 128 << 20  # of segments that are folded together
_KNOWN_DAYS = 2  # in which a record that comes again is known by its key
SLACK_MS = 600_000  # between the clocks of hosts, and until whoever slept has read it
_DUE_S = 600.0  # journals that are older, or larger, are to be folded
_DUE_BYTES = 64 << 20
_DUE_SEGMENTS = 300


@dataclasses.dataclass(frozen=True)
class Folded:
    """What a fold did, in rows.

    Attributes:
        added: to the Parquet files.
        repeated: that were there already.
        erased: of users who were erased.
        damaged: lines that are no records; they are kept in `DAMAGED`.
    """

    added: int = 0
    repeated: int = 0
    erased: int = 0
    damaged: int = 0

    def plus(self, other: Folded) -> Folded:
        """Return both together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Folded(*(own + more for own, more in pairs))


@dataclasses.dataclass(frozen=True)
class Erasure:
    """An order to forget what a user did.

    Attributes:
        user_id: of the user.
        at_ms: rows received by then go, UTC milliseconds.
        done: the files that were there have been gone through.
    """

    user_id: str
    at_ms: int
    done: bool = False

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
        shown = name.endswith(".json") and not name.startswith(".")
        record = storage.read_json(f"{ERASED}/{name}") if shown else None
        if record is not None:
            orders.append(Erasure(**record))
    return orders


def remove_orders(storage: Storage, user_ids: Collection[str]) -> int:
    """Remove orders to forget users where the journal is empty; return how many orders stay.

    They stay where a segment may hold a user still, and where what is there was not gone through.
    """
    if not storage.files(ERASED):
        return 0
    with leased(storage, "fold"):
        orders = erasures(storage)
        if any(segments(storage, table) for table in TABLES):
            return len(orders)
        gone = [order for order in orders if order.done and order.user_id in user_ids]
        for order in gone:
            storage.remove(f"{ERASED}/{order.name}")
        return len(orders) - len(gone)


def is_due(storage: Storage) -> bool:
    """Tell whether so much stands in the journal, or for so long, that it is to be folded."""
    if any(not order.done for order in erasures(storage)):
        return True
    for table in TABLES:
        marks = segments(storage, table)
        if not marks:
            continue
        age_s = time.time() - start_of(next(iter(marks))) / 1e3
        size = sum(mark.size_bytes for mark in marks.values())
        if age_s > _DUE_S or size > _DUE_BYTES or len(marks) > _DUE_SEGMENTS:
            return True
    return False


def fold(storage: Storage, *, settled_s: float = SETTLED_S) -> dict[str, Folded]:
    """Fold every table of a run.

    Args:
        storage: of the run.
        settled_s: seconds that a segment must have rested.

    Returns:
        {table: what was done}.

    Raises:
        BuildError: the storage cannot be read or written, or another process took over.
    """
    if not storage.files("journal"):
        return {table.name: Folded() for table in TABLES}
    with leased(storage, "fold") as lease:
        orders = erasures(storage)
        done = {
            table.name: _fold(storage, lease, table, orders, settled_s=settled_s)
            for table in TABLES
        }
        for order in orders:
            until = order.at_ms + SLACK_MS
            lease.confirm()
            if until < time.time_ns() // 1_000_000 and not began(storage, until_ms=until):
                storage.remove(f"{ERASED}/{order.name}")
            elif not order.done:
                dataclasses.replace(order, done=True).order(storage)
    return done


def began(storage: Storage, *, until_ms: int) -> list[str]:
    """Return the segments of all tables that began by a time, in UTC milliseconds."""
    names = [f"{table.journal}/{name}" for table in TABLES for name in segments(storage, table)]
    return [name for name in names if start_of(name) <= until_ms]


def files_of(storage: Storage, table: Table, *, since: str = "") -> list[str]:
    """Return the Parquet files of a table, oldest first, from a day (`2026-11-30`) on."""
    names = storage.files(table.name)
    parquet = [name for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return [f"{table.name}/{name}" for name in parquet if name >= since]


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


def day_of(seconds: float) -> str:
    """Return the UTC day of a time, as names of files begin with it."""
    return datetime.datetime.fromtimestamp(max(seconds, 0), datetime.UTC).strftime("%Y-%m-%d")


# -- internals -----------------------------------------------------------------------------


def _fold(
    storage: Storage, lease: Lease, table: Table, orders: Sequence[Erasure], *, settled_s: float
) -> Folded:
    marks = segments(storage, table)
    before_ns = time.time_ns() - int(settled_s * 1e9)
    rested = [name for name, mark in marks.items() if mark.mtime_ns <= before_ns]
    complete = [name for name in rested if is_complete(storage, f"{table.journal}/{name}")]
    total = Folded(erased=_erase(storage, lease, table, orders))
    for names in _groups({name: marks[name] for name in complete}):
        rows, n_damaged = _rows(storage, table, names)
        kept = _without(rows, orders)
        fresh = _unknown(storage, table, _firsts(kept, table.key))
        lease.confirm()  # what follows is safe beside a successor, but would be done twice
        if len(fresh):
            name = f"{day_of(time.time())}-{start_of(names[0])}-{lease.token}.parquet"
            storage.write_atomic(f"{table.name}/{name}", _parquet(fresh))
        for name in names:
            storage.remove(f"{table.journal}/{name}")
        total = total.plus(
            Folded(len(fresh), len(kept) - len(fresh), len(rows) - len(kept), n_damaged)
        )
    return total


def _groups(marks: Mapping[str, FileMark]) -> Iterator[list[str]]:
    """Yield names of segments that have a bounded size together."""
    group: list[str] = []
    total = 0
    for name, mark in marks.items():
        if group and total + mark.size_bytes > _GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += mark.size_bytes
    if group:
        yield group


def _rows(storage: Storage, table: Table, names: Sequence[str]) -> tuple[pa.Table, int]:
    """Return the rows of segments, and how many lines are none; those are kept elsewhere.

    Half a line at the end of a segment was never acknowledged.
    """
    parts, n_damaged = [table.schema.empty_table()], 0
    for name in names:
        lines = whole_lines(storage.read(f"{table.journal}/{name}") or b"")
        try:
            parts.append(_parsed(table, lines))
        except (pa.ArrowException, ValueError):
            good, bad = _told_apart(table, lines)
            parts.append(_parsed(table, b"".join(good)))
            storage.write_atomic(f"{DAMAGED}/{table.name}-{name}", b"".join(bad))
            log.warning("journal damaged segment=%s lines=%d kept=%s", name, len(bad), DAMAGED)
            n_damaged += len(bad)
    return pa.concat_tables(parts), n_damaged


def _parsed(table: Table, lines: bytes) -> pa.Table:
    if not lines:
        return table.schema.empty_table()
    rows = pj.read_json(
        io.BytesIO(lines),
        parse_options=pj.ParseOptions(
            explicit_schema=table.schema, unexpected_field_behavior="ignore"
        ),
        read_options=pj.ReadOptions(block_size=len(lines)),
    )
    if any(rows[name].null_count for name in (*table.key, "user_id", RECEIVED)):
        raise ValueError("a record has no key")
    return rows


def _told_apart(table: Table, lines: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the lines that are records of a table, and those that are not."""
    good, bad = [], []
    for line in lines.splitlines(keepends=True):
        try:
            _parsed(table, line)
            good.append(line)
        except (pa.ArrowException, ValueError):
            bad.append(line)
    return good, bad


def _firsts(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Return the first row of each key, in order."""
    numbered = rows.append_column("row", pa.array(np.arange(len(rows))))
    firsts = numbered.group_by(list(key)).aggregate([("row", "min")])["row_min"]
    return rows.take(pa.array(np.sort(firsts.to_numpy())))


def _unknown(storage: Storage, table: Table, rows: pa.Table) -> pa.Table:
    """Return the rows whose keys no file has, of those since two days before they were received."""
    if not len(rows):
        return rows
    oldest = min(time.time(), pc.min(rows[RECEIVED]).as_py() / 1e3)
    key = list(table.key)
    left = rows.select(key).append_column("row", pa.array(np.arange(len(rows))))
    for name in files_of(storage, table, since=day_of(oldest - _KNOWN_DAYS * 86_400)):
        left = left.join(read_file(storage, name, key), keys=key, join_type="left anti")
    return rows.take(pa.array(np.sort(left["row"].to_numpy())))


def _parquet(rows: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(rows, out, compression="zstd")
    return out.getvalue()


def _without(rows: pa.Table, orders: Iterable[Erasure]) -> pa.Table:
    """Return rows that no erasure forbids."""
    for order in orders:
        own = pc.equal(rows["user_id"], order.user_id)
        forbidden = pc.and_(own, pc.less_equal(rows[RECEIVED], order.at_ms))
        rows = rows.filter(pc.invert(forbidden))
    return rows


def _erase(storage: Storage, lease: Lease, table: Table, orders: Sequence[Erasure]) -> int:
    """Take rows that are to be erased out of the files; return how many there were."""
    orders = [order for order in orders if not order.done]
    users = pa.array([order.user_id for order in orders], pa.string())
    gone = 0
    for name in files_of(storage, table) if orders else ():
        own = read_file(storage, name, ["user_id"])["user_id"]
        if not pc.any(pc.is_in(own, users)).as_py():
            continue
        rows = read_file(storage, name)
        kept = _without(rows, orders)
        if len(kept) < len(rows):
            lease.confirm()
            storage.write_atomic(name, _parquet(kept))
            gone += len(rows) - len(kept)
    return gone
