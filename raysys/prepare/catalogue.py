"""Numbering: which items and users there are, in which order, counted part by part.

    part --statistics--> per part, merged into--> item table, levels
    part --number_part--> cells of its users, in user_num order

item_num follows (first period whose catalogue holds the item, first_seen, item_id), so that the
catalogue of a period is a prefix and later logs do not renumber it. user_num follows (bucket of the
user id, user_id).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.attributes import storable, titles_of
from raysys.data.cells import Cells
from raysys.data.schema import PERIODS, RatingLevels, Window
from raysys.prepare.levels import LevelCounts, assign_levels
from raysys.prepare.merge import sorted_codes
from raysys.prepare.splits import Rows, SplitPlan, assign_windows, fold_codes
from raysys.store.storage import open_filesystem

log = logging.getLogger(__name__)

OWN_COLUMNS = ("item_num", "item_id", "title", "first_seen", "n_fit")
TEXT_COLUMNS = ["user_id", "item_id", "event", "fold"]
_NO_IDS = pa.array([], pa.string())
_LATEST = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class PartStatistics:
    """What one part of the log adds to the catalogue.

    Attributes:
        items: item_id, period (0 val, 1 test, 2 later), first_seen, n_fit.
        levels: kinds of rows in the fit window.
        users: ids of the users kept, in order.
        n_rows: rows read.
        n_dropped: rows of users that were dropped.
        windows: rows per window, dropped users left out.
    """

    items: pa.Table
    levels: LevelCounts
    users: pa.Array
    n_rows: int
    n_dropped: int
    windows: list[int]


@dataclasses.dataclass(frozen=True)
class NumberedPart:
    """The cells of one part and the rows that became none.

    Attributes:
        cells: of the users kept, user_num from `first_user` on.
        users: ids of the users kept, in order.
        n_rare: rows of items that were dropped.
        n_unknown_level: rows whose level the fit window does not know.
    """

    cells: Cells
    users: pa.Array
    n_rare: int
    n_unknown_level: int


def read_rows(uri: str) -> Rows:
    """Read one part of an `interactions` build."""
    filesystem, path = open_filesystem(uri)
    table = pq.read_table(path, filesystem=filesystem, read_dictionary=TEXT_COLUMNS)
    users, user = _codes(table["user_id"])
    items, item = _codes(table["item_id"])
    events, event = sorted_codes(table["event"])
    has_folds = "fold" in table.column_names
    return Rows(
        users=users,
        user=user,
        items=items,
        item=item,
        rating=table["rating"].to_numpy(),
        timestamp=pc.fill_null(table["timestamp"], 0).to_numpy(),
        events=events.to_pylist(),
        event=event,
        fold=fold_codes(_one(table["fold"].unify_dictionaries())) if has_folds else None,
    )


def statistics(
    rows: Rows, plan: SplitPlan, *, has_time: bool, excluded: pa.Array | None = None
) -> PartStatistics:
    """Count what the catalogue, the levels and the numbering need, dropped users left out.

    Args:
        rows: the part.
        plan: the split.
        has_time: the log has times.
        excluded: ids of items whose rows do not count for their users.
    """
    window, keep_user = assign_windows(rows, plan, counted=_counted(rows, excluded))
    kept = keep_user[rows.user]
    fit = kept & (window == Window.FIT)
    counts = np.bincount(rows.item[fit], minlength=len(rows.items))
    period = _periods(window, plan.split)
    earliest = np.full(len(rows.items), 2, dtype=np.uint8)
    np.minimum.at(earliest, rows.item[kept], period[kept])
    first_seen = np.full(len(rows.items), _LATEST, dtype=np.int64)
    np.minimum.at(first_seen, rows.item[kept], rows.timestamp[kept])
    present = np.bincount(rows.item[kept], minlength=len(rows.items)) > 0
    values, n = np.unique(rows.rating[fit & ~np.isnan(rows.rating)], return_counts=True)
    events = Counter(rows.event[fit].tolist())
    names = [*rows.events, None]
    return PartStatistics(
        items=pa.table(
            {
                "item_id": rows.items,
                "period": earliest,
                "first_seen": pa.array(first_seen, mask=np.full(len(first_seen), not has_time)),
                "n_fit": counts.astype(np.int64),
            }
        ).filter(pa.array(present)),
        levels=LevelCounts(
            ratings=dict(zip(values.tolist(), n.tolist(), strict=True)),
            n_unrated=int(np.isnan(rows.rating[fit]).sum()),
            events={names[code]: count for code, count in events.items()},
        ),
        users=rows.users.filter(pa.array(keep_user)),
        n_rows=len(rows.user),
        n_dropped=int((~kept).sum()),
        windows=np.bincount(window[kept], minlength=len(Window)).tolist(),
    )


def merge_levels(parts: Sequence[LevelCounts]) -> LevelCounts:
    """Add up the counts of all parts."""
    ratings: Counter[float] = Counter()
    events: Counter[str | None] = Counter()
    for part in parts:
        ratings.update(part.ratings)
        events.update(part.events)
    return LevelCounts(ratings, sum(part.n_unrated for part in parts), events)


def _counted(rows: Rows, excluded: pa.Array | None) -> NDArray[np.bool_] | None:
    if excluded is None or not len(excluded):
        return None
    known = ~np.asarray(pc.is_in(rows.items, value_set=excluded))
    counted: NDArray[np.bool_] = known[rows.item]
    return counted


def rare_items(items: pa.Table, *, min_item_rows: int) -> pa.Array:
    """Return the ids of `merge_items` that have rows in the fit window, but too few."""
    n_fit = items["n_fit"]
    few = pc.and_(pc.greater(n_fit, 0), pc.less(n_fit, min_item_rows))
    return _one(items.filter(few)["item_id"])


def merge_items(parts: Sequence[pa.Table]) -> pa.Table:
    """Return item_id, period, first_seen and n_fit over all parts."""
    together = pa.concat_tables(parts).group_by("item_id", use_threads=False)
    merged = together.aggregate([("period", "min"), ("first_seen", "min"), ("n_fit", "sum")])
    return merged.rename_columns(["item_id", "period", "first_seen", "n_fit"])


def number_items(
    items: pa.Table, *, excluded: pa.Array | None = None, earlier: pa.Array | None = None
) -> pa.Table:
    """Order the items; the row number is the item_num.

    Args:
        items: of `merge_items`.
        excluded: ids of items to drop.
        earlier: [n] ids in the order of an earlier numbering, which they keep; those that are
            dropped now keep their number too, with n_fit 0 and no rows.

    Returns:
        item_num, item_id, first_seen, n_fit, period and dropped, sorted by item_num.
    """
    drop = pc.is_in(items["item_id"], value_set=excluded if excluded is not None else _NO_IDS)
    known = earlier if earlier is not None else _NO_IDS
    given = pc.index_in(items["item_id"], value_set=known)
    items = items.append_column("dropped", drop).append_column("given", given)
    items = items.filter(pc.or_(pc.invert(drop), pc.is_valid(given)))
    gone = known.filter(pc.invert(pc.is_in(known, value_set=_one(items["item_id"]))))
    if len(gone):
        size = len(gone)
        record = {"item_id": gone, "period": pa.array(np.full(size, len(PERIODS), np.uint8))}
        record |= {"first_seen": pa.nulls(size, pa.int64()), "n_fit": np.zeros(size, np.int64)}
        record |= {"dropped": np.ones(size, bool)}
        record |= {"given": pc.index_in(gone, value_set=known)}
        items = pa.concat_tables([items, pa.table(record, schema=items.schema)])
    order = ("given", "period", "first_seen", "item_id")  # nulls come last
    items = items.sort_by([(name, "ascending") for name in order])
    n_fit = pc.if_else(items["dropped"], 0, items["n_fit"])
    item_num = pa.array(np.arange(len(items), dtype=np.int32))
    columns = ["item_num", "item_id", "first_seen", "n_fit", "period", "dropped"]
    items = items.append_column("item_num", item_num)
    return items.set_column(items.column_names.index("n_fit"), "n_fit", n_fit).select(columns)


def catalogue_sizes(items: pa.Table) -> dict[str, int]:
    """Return how many items each period's catalogue holds: a prefix of item_num.

    Where rows arrived late, an item of an early period may have a late number: then the prefix
    that holds it also holds later items.
    """
    period = np.where(items["dropped"].to_numpy(), len(PERIODS), items["period"].to_numpy())
    sizes = {}
    for number, name in enumerate(PERIODS):
        inside = np.flatnonzero(period <= number)
        sizes[name] = int(inside[-1]) + 1 if len(inside) else 0
    return sizes | {"all": len(period)}


def join_attributes(items: pa.Table, attributes: pa.Table | None) -> tuple[pa.Table, int]:
    """Return the build's item table and how many items the item file describes.

    Args:
        items: of `number_items`.
        attributes: the item file with string `item_id`, or None. Its columns take the types of
            `attributes.storable`, titles are text.
    """
    title = pa.nulls(len(items), pa.string())
    extra: dict[str, Any] = {}
    described = 0
    if attributes is not None:
        row = pc.index_in(items["item_id"], value_set=_one(attributes["item_id"]))
        described = len(row) - row.null_count
        for name in attributes.column_names:
            if name == "title":
                title = titles_of(attributes[name]).take(row)
            elif name in OWN_COLUMNS:
                if name != "item_id":
                    log.warning("items column ignored name=%s reason=reserved", name)
            else:
                extra[name] = storable(attributes[name]).take(row)
    columns = {"item_num": items["item_num"], "item_id": items["item_id"], "title": title}
    columns |= {"first_seen": items["first_seen"], "n_fit": items["n_fit"]}
    return pa.table(columns | extra), described


def number_part(
    rows: Rows,
    plan: SplitPlan,
    *,
    item_ids: pa.Array,
    levels: RatingLevels,
    first_user: int,
    excluded: pa.Array | None = None,
) -> NumberedPart:
    """Return the cells of a part.

    Args:
        rows: the part.
        plan: the split, as for `statistics`.
        item_ids: [N] in item_num order, null where an item was dropped.
        levels: the levels.
        first_user: user_num of the part's first user.
        excluded: as for `statistics`.
    """
    window, keep_user = assign_windows(rows, plan, counted=_counted(rows, excluded))
    known = pc.fill_null(pc.index_in(rows.items, value_set=item_ids), -1).to_numpy()
    item_num = known[rows.item].astype(np.int64)
    level, unknown = assign_levels(levels, rating=rows.rating, event=rows.event, events=rows.events)
    of_kept = keep_user[rows.user]
    rare = of_kept & (item_num < 0)
    unknown = of_kept & unknown & ~rare
    kept = np.flatnonzero(of_kept & ~rare & ~unknown)
    user_row = (np.cumsum(keep_user) - 1)[rows.user[kept]]
    order = _cell_order(user_row, rows.timestamp[kept], item_num[kept], level[kept])
    source = kept[order]
    n_users = int(keep_user.sum())
    counts = np.bincount(user_row, minlength=n_users)
    cells = Cells(
        user_num=np.arange(first_user, first_user + n_users, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        item_num=item_num[source].astype(np.int32),
        level=level[source],
        timestamp=rows.timestamp[source],
        window=window[source],
    )
    users = rows.users.filter(pa.array(keep_user))
    return NumberedPart(cells, users, int(rare.sum()), int(unknown.sum()))


def _periods(window: NDArray[np.uint8], split: str) -> NDArray[np.uint8]:
    """Return the first period whose catalogue a row's item belongs to."""
    if split == "temporal":
        return window
    return np.where(window == Window.FIT, 0, 2).astype(np.uint8)


def _cell_order(
    user: NDArray[np.int64],
    time: NDArray[np.int64],
    item: NDArray[np.int64],
    level: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Return the order by (user, time, item, level); the rows come sorted by (user, time)."""
    if not len(user):
        return np.zeros(0, dtype=np.int64)
    changed = (np.diff(user) != 0) | (np.diff(time) != 0)
    run = np.concatenate(([0], np.cumsum(changed)))
    key = (run * (int(item.max()) + 1) + item) * 256 + level
    return np.argsort(key, kind="stable")


def _codes(column: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the distinct values, sorted if the rows are, and each row's position among them."""
    encoded = _one(column.unify_dictionaries())
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


def _one(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if hasattr(combined, "chunks") else combined
