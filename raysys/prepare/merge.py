"""Rows of some user buckets -> one sorted part, repeats removed.

The result depends on the rows alone, not on their order: ties are broken by the rows' content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.prepare.clean import (
    QUARANTINE_SCHEMA,
    TEXT_VALUES,
    LogTraits,
    as_text,
    one_array,
    quarantine_table,
    user_buckets,
)


@dataclasses.dataclass(frozen=True)
class Merged:
    """What `merge` made of the rows of some buckets.

    Attributes:
        rows: sorted by (bucket, user_id, timestamp, item_id, event, rating).
        bad: rows without a time in a log that has times, `QUARANTINE_SCHEMA`.
        n_duplicates: rows removed as repeats.
        n_users: distinct users.
    """

    rows: pa.Table
    bad: pa.Table
    n_duplicates: int
    n_users: int


def merge(tables: Sequence[pa.Table], *, traits: LogTraits, keep: str) -> Merged:
    """Sort the rows of some buckets and keep one row per (user, item, kind).

    In rated logs the kinds are rated and unrated, in event logs the events; a fold, where there
    is one, is part of the kind.

    Args:
        tables: all rows of these buckets, in any order.
        traits: what the log holds.
        keep: `first` or `last` in time, or `count`: the first, and how many there were in a column
            `count` (rows may come with one).
    """
    if keep == "count":
        tables = [_with_count(table) for table in tables]
    table = pa.concat_tables(tables)
    bad = QUARANTINE_SCHEMA.empty_table()
    if traits.has_time and table["timestamp"].null_count:
        bad = _without_time(table.filter(pc.is_null(table["timestamp"])))
        table = table.filter(pc.is_valid(table["timestamp"]))
    users, user = sorted_codes(table["user_id"], first_by=user_buckets)
    items, item = sorted_codes(table["item_id"])
    events, event = sorted_codes(table["event"])
    folds, fold = sorted_codes(table["fold"]) if traits.has_folds else ([], np.zeros_like(user))
    rating = table["rating"].to_numpy()
    time = pc.fill_null(table["timestamp"], 0).to_numpy()
    order = _order(user, time, [fold, np.nan_to_num(rating, nan=-np.inf), event, item])
    kind = ~np.isnan(rating) if traits.has_ratings else event + 1
    kind = kind * (len(folds) + 1) + fold + 1
    key = (user * np.int64(len(items)) + item) * (int(kind.max(initial=0)) + 1) + kind
    repeated = pd.Series(key[order]).duplicated(keep="last" if keep == "last" else "first")
    n_rows = _counts(table)
    if keep == "count":
        group = pd.factorize(key[order])[0]  # numbered by first appearance, as what stays
        total = np.bincount(group, weights=n_rows[order]).astype(np.int64)
    order = order[~repeated.to_numpy()]
    texts = {"user_id": (users, user), "item_id": (items, item), "event": (events, event)}
    texts |= {"fold": (folds, fold)} if traits.has_folds else {}
    rows = _take(table, order, texts)
    if keep == "count":
        rows = rows.set_column(rows.column_names.index("count"), "count", pa.array(total))
    return Merged(
        rows=rows,
        bad=bad,
        n_duplicates=int(repeated.sum()),
        n_users=len(users),
    )


def sorted_codes(
    column: pa.ChunkedArray, *, first_by: Any = None
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the distinct values in order and the number of each row's value, -1 for null.

    Args:
        column: [M] strings.
        first_by: function of the distinct values whose result [n] goes before their own order.
    """
    distinct, codes = _distinct(column)
    keys = {"value": distinct}
    by = [("value", "ascending")]
    if first_by is not None:
        keys["first"] = pa.array(first_by(distinct))
        by.insert(0, ("first", "ascending"))
    order = pc.sort_indices(pa.table(keys), sort_keys=by).to_numpy()
    rank = np.empty(len(distinct) + 1, dtype=np.int64)
    rank[order] = np.arange(len(distinct))
    rank[-1] = -1
    return distinct.take(pa.array(order)), rank[codes]


def _distinct(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the distinct values and each row's position among them, -1 for null.

    Of encoded chunks only the values that occur are looked at.
    """
    if not pa.types.is_dictionary(column.type):
        encoded = one_array(column).dictionary_encode()
        return encoded.dictionary, pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
    values, codes, n_values = [], [], 0
    for chunk in column.chunks:
        indices = pc.fill_null(chunk.indices, -1).to_numpy()
        used = np.zeros(len(chunk.dictionary) + 1, dtype=bool)
        used[indices] = True
        used[-1] = False  # the place of nulls
        place = np.cumsum(used) + (n_values - 1)
        place[-1] = -1
        values.append(chunk.dictionary.take(pa.array(np.flatnonzero(used))))
        codes.append(place[indices])
        n_values += len(values[-1])
    together = pa.concat_arrays([pa.array([], pa.string()), *values]).dictionary_encode()
    rank = np.append(together.indices.to_numpy(), -1)
    return together.dictionary, rank[np.concatenate([np.zeros(0, np.int64), *codes])]


def _take(
    table: pa.Table,
    order: NDArray[np.int64],
    texts: Mapping[str, tuple[pa.Array, NDArray[np.int64]]],
) -> pa.Table:
    """Return the rows in `order`, text encoded by its sorted distinct values (-1: null)."""
    columns = []
    for name in table.column_names:
        if name in texts:
            values, codes = texts[name]
            taken = codes[order].astype(np.int32)
            indices = pa.array(taken, mask=taken < 0)
            columns.append(pa.DictionaryArray.from_arrays(indices, values))
        else:
            columns.append(one_array(table[name]).take(pa.array(order)))
    return pa.table(columns, names=table.column_names)


def _order(
    user: NDArray[np.int64], time: NDArray[np.int64], ties: list[NDArray[Any]]
) -> NDArray[np.int64]:
    """Return the order by (user, time, reversed ties); only tied rows meet the slow sort."""
    if not len(user):
        return np.zeros(0, dtype=np.int64)
    start = int(time.min())
    span = int(time.max()) - start + 1
    primary = user * span + (time - start)
    order = np.argsort(primary, kind="stable")
    ranked = primary[order]
    same = ranked[1:] == ranked[:-1]
    tied = np.zeros(len(order), dtype=bool)
    tied[1:] = same
    tied[:-1] |= same
    rows = order[tied]
    order[tied] = rows[np.lexsort([*(tie[rows] for tie in ties), primary[rows]])]
    return order


def _with_count(table: pa.Table) -> pa.Table:
    if "count" in table.column_names:
        return table
    return table.append_column("count", pa.array(np.ones(len(table), dtype=np.int64)))


def _counts(table: pa.Table) -> NDArray[np.int64]:
    if "count" not in table.column_names:
        return np.zeros(0, dtype=np.int64)
    counts: NDArray[np.int64] = table["count"].to_numpy()
    return counts


def _without_time(rows: pa.Table) -> pa.Table:
    texts = {name: as_text(rows[name]) for name in TEXT_VALUES}
    return quarantine_table({"reason": ["missing timestamp"] * len(rows)} | texts)
