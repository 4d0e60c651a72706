"""Raw rows -> clean interactions: typed, bad rows set aside with a reason, duplicates removed.

Pure functions on Arrow tables; the prepare stage runs them in tasks:

    rows of a piece --clean--> good rows + quarantine --partition--> one batch per user bucket
    batches of some buckets --merge--> rows sorted by (user, time, item), duplicates removed

The result depends on the rows alone, not on their order: ties are broken by the rows' content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.data.schema import INTERACTION_SCHEMA
from raysys.data.values import encoded_ids, to_ratings
from raysys.log.formats.contract import Chunk
from raysys.log.timestamps import ABSURD, to_seconds
from raysys.prepare.hashing import hash_ids
from raysys.store.erasures import Erasures

N_BUCKETS = 256
FOLDS = ("train", "val", "test", "val_in", "val_out", "test_in", "test_out")
TEXT_VALUES = ("user_id", "item_id", "rating", "timestamp", "event")
QUARANTINE_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),  # of Parquet, from 0; null where merging found it
        ("line", pa.int64()),  # of text, from 1
        *((name, pa.string()) for name in TEXT_VALUES),
        ("text", pa.string()),  # of a line that holds no row
    ]
)


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """What `clean` made of a chunk.

    Attributes:
        rows: good rows, of `encoded_schema`.
        bad: quarantined rows, `QUARANTINE_SCHEMA`.
        units: rows per timestamp unit.
        n_ignored: rows of ignored events and erased users.
        n_erased: rows of erased users.
    """

    rows: pa.Table
    bad: pa.Table
    units: dict[str, int]
    n_ignored: int = 0
    n_erased: int = 0


@dataclasses.dataclass(frozen=True)
class LogTraits:
    """What a log holds; known once all rows were cleaned."""

    has_ratings: bool
    has_events: bool
    has_time: bool
    has_folds: bool


@dataclasses.dataclass(frozen=True)
class EventRules:
    """Which events a log may hold.

    Attributes:
        accepted: None accepts all.
        ignored: left out without being bad.
    """

    accepted: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()

    def masks(self, event: pa.Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which rows [M] are ignored and which have an event that is not accepted."""
        names = event.dictionary.to_pylist()
        accepted = None if self.accepted is None else {*self.accepted, *self.ignored}
        ignored = [name in self.ignored for name in names]
        unknown = [accepted is not None and name not in accepted for name in names]
        codes = pc.fill_null(event.indices, -1).to_numpy()
        return (
            np.array([*ignored, False])[codes],
            np.array([*unknown, accepted is not None])[codes],
        )


def clean(
    chunk: Chunk,
    *,
    file: str,
    columns: Mapping[str, str],
    rating_range: tuple[float | None, float | None] = (None, None),
    events: EventRules | None = None,
    time_form: str | None = None,
    erasures: Erasures | None = None,
) -> Cleaned:
    """Type the columns of a chunk and set the rows aside that break a rule.

    Args:
        chunk: raw rows.
        file: the file's name, for the quarantine.
        columns: {our name: the file's name}.
        rating_range: lowest and highest rating accepted.
        events: which events are accepted and ignored.
        time_form: how times are written, in strptime's notation.
        erasures: users whose rows are left out, good or bad.

    Raises:
        DataError: a column has a type that cannot be understood.
    """
    raw = {
        name: one_array(chunk.table[column])
        for name, column in columns.items()
        if column in chunk.table.column_names
    }
    size = chunk.table.num_rows
    for name in {"user_id", "item_id", "fold"} & {"user_id", "item_id", *columns}:
        raw.setdefault(name, pa.nulls(size, pa.string()))  # one of several files may lack it
    user, user_faults = encoded_ids(raw["user_id"], "user")
    item, item_faults = encoded_ids(raw["item_id"], "item")
    odd = {name: chunk.odd[column] for name, column in columns.items() if column in chunk.odd}
    rules = [(f"{name} is neither text nor a number", mask) for name, mask in odd.items()]
    rules += [*user_faults, *item_faults]
    rules += [("missing user", _null(user)), ("missing item", _null(item))]
    rating: pa.Array = pa.nulls(size, pa.float32())
    time: pa.Array = pa.nulls(size, pa.int64())
    event: pa.Array = pa.nulls(size, pa.string()).dictionary_encode()
    units: dict[str, int] = {}
    if "rating" in raw:
        rating, wrong, outside = to_ratings(raw["rating"], rating_range)
        rules += [("rating is not a number", wrong), ("rating out of range", outside)]
    if "timestamp" in raw:
        time, absurd, units = to_seconds(raw["timestamp"], form=time_form)
        rules.append((ABSURD, absurd))
        if time.null_count < size:  # else the log may have no times at all: merging knows
            rules.append(("missing timestamp", _null(time) & ~absurd))
    if "event" in raw:
        event, event_faults = encoded_ids(raw["event"], "event")
        rules += event_faults
    ignored = np.zeros(size, dtype=bool)
    if events is not None:
        ignored, unknown = events.masks(event)
        rules.append(("unknown event", unknown))
    arrays = [user, item, rating, time, event]
    if "fold" in raw:
        fold, _ = encoded_ids(raw["fold"], "fold")
        is_fold = pc.is_in(fold.dictionary, value_set=pa.array(FOLDS)).take(fold.indices)
        rules.append(("unknown fold", ~np.asarray(pc.fill_null(is_fold, False))))
        arrays.append(fold)
    broken = np.zeros(size, dtype=np.uint8)
    for number, (_, mask) in enumerate(rules, start=1):
        broken[mask & (broken == 0)] = number
    rows = pa.Table.from_arrays(arrays, schema=encoded_schema("fold" in raw))
    ignored &= broken == 0
    n_erased = 0
    if erasures is not None:
        erased = erasures.forbidden(user, time)
        broken[erased], n_erased = 0, int(erased.sum())
        ignored |= erased
    if not broken.any() and not chunk.malformed and not ignored.any():
        return Cleaned(rows, QUARANTINE_SCHEMA.empty_table(), units)
    bad = _quarantine(chunk, raw, broken, [reason for reason, _ in rules], file)
    good = rows.filter(pa.array((broken == 0) & ~ignored))
    return Cleaned(good, bad, units, int(ignored.sum()), n_erased)


def encoded_schema(has_folds: bool) -> pa.Schema:
    """Return the schema of rows on their way: `INTERACTION_SCHEMA` with encoded text."""
    kinds = dict(zip(TEXT_VALUES, INTERACTION_SCHEMA.types, strict=True))
    kinds |= {"fold": pa.string()} if has_folds else {}
    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(n, text if pa.types.is_string(k) else k) for n, k in kinds.items()])


def partition(rows: pa.Table) -> list[pa.RecordBatch]:
    """Return the rows of each of the `N_BUCKETS` user buckets, one batch each."""
    encoded = one_array(rows["user_id"])
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    buckets = user_buckets(encoded.dictionary)[encoded.indices.to_numpy()]
    order = np.argsort(buckets, kind="stable")
    ends = np.cumsum(np.bincount(buckets, minlength=N_BUCKETS))
    batch = rows.take(pa.array(order)).combine_chunks().to_batches()
    whole = batch[0] if batch else pa.RecordBatch.from_pylist([], schema=rows.schema)
    starts = np.concatenate(([0], ends[:-1]))
    return [whole.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def user_buckets(users: pa.Array) -> NDArray[np.uint8]:
    """Return the bucket of each distinct user id, independent of seeds and other users."""
    return (hash_ids(users, key="raysys user bucket") >> np.uint64(56)).astype(np.uint8)


def _quarantine(
    chunk: Chunk,
    raw: Mapping[str, pa.Array],
    broken: NDArray[np.uint8],
    reasons: list[str],
    file: str,
) -> pa.Table:
    """Return the broken rows as text, with reason and place, and the lines that hold no row."""
    rows = np.flatnonzero(broken)
    texts = {name: as_text(raw[name].take(pa.array(rows))) for name in TEXT_VALUES if name in raw}
    table: dict[str, Any] = {
        "reason": [reasons[broken[row] - 1] for row in rows],
        "file": [file] * len(rows),
        "row" if chunk.lines is None else "line": (
            rows + chunk.first_row if chunk.lines is None else chunk.lines.take(rows)
        ),
    }
    lines = {
        "reason": [bad.reason for bad in chunk.malformed],
        "file": [file] * len(chunk.malformed),
        "line": [bad.line for bad in chunk.malformed],
        "text": [bad.text for bad in chunk.malformed],
    }
    return pa.concat_tables([quarantine_table(table | texts), quarantine_table(lines)])


def quarantine_table(columns: Mapping[str, Any]) -> pa.Table:
    """Return quarantined rows; `columns` has `reason` and any others of `QUARANTINE_SCHEMA`."""
    size = len(columns["reason"])
    return pa.table(
        [columns.get(name, [None] * size) for name in QUARANTINE_SCHEMA.names],
        schema=QUARANTINE_SCHEMA,
    )


def as_text(column: pa.Array) -> pa.Array:
    """Return the values as text, for the quarantine."""
    return pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if hasattr(combined, "chunks") else combined


def _null(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.is_null(nan_is_null=False))
