"""What a query is made of: items by external id, stored users, and posted profiles as cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.data.schema import RatingLevels
from raysys.errors import SearchError, UnknownItemError
from raysys.search.changes import Changes, joined_items
from raysys.search.query import Hit, ProfileEntry, Ranked, UnknownUserError
from raysys.store.builds import Build

_UNRATED = "unrated"
_SHOWN = 5


class ItemTable:
    """The served catalogue: external ids and titles by item_num.

    Args:
        item_ids: of the build's items, then of upserted rows; a later row replaces an earlier one.
        titles: likewise.
        n_built: items of the build; default: all.
        deleted: ids that are never found, though a profile may hold them.
        encoded: profiles are encoded by a model, which knows the build's items only.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str | None],
        *,
        n_built: int | None = None,
        deleted: Sequence[str] = (),
        encoded: bool = False,
    ) -> None:
        self.item_ids = list(item_ids)
        self.titles = list(titles)
        self.n_built = len(self.item_ids) if n_built is None else n_built
        self.built = {i: num for num, i in enumerate(self.item_ids[: self.n_built])}
        fresh = {i: num for num, i in enumerate(self.item_ids) if num >= self.n_built}
        self._nums = self.built | fresh if fresh else self.built
        self._newer = {self.built[i]: num for i, num in fresh.items() if i in self.built}
        self._deleted = frozenset(deleted)
        self._encoded = encoded

    @classmethod
    def load(
        cls, embeddings: Build, changes: Changes | None = None, *, encoded: bool = False
    ) -> ItemTable:
        """Read the items of an `embeddings` build (row number = item_num), and what changed."""
        table = pq.read_table(embeddings.path("items.parquet"), columns=["item_id", "title"])
        n_built = len(table)
        if changes is not None:
            table = joined_items(table, changes)
        return cls(
            table["item_id"].to_pylist(),
            table["title"].to_pylist(),
            n_built=n_built,
            deleted=changes.deleted if changes is not None else (),
            encoded=encoded,
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def find(self, item_id: str) -> int | None:
        """Return the item_num of `item_id`, or None."""
        return None if item_id in self._deleted else self._nums.get(item_id)

    def in_profile(self, item_id: str) -> int | None:
        """Return the item_num by which a profile counts `item_id`, or None.

        What was liked still tells a taste when it is deleted.
        """
        return (self.built if self._encoded else self._nums).get(item_id)

    def with_newer(self, nums: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return item_nums and those of the rows that replaced them."""
        newer = [self._newer[num] for num in nums.tolist() if num in self._newer]
        return np.concatenate([nums, np.array(newer, dtype=np.int32)]) if newer else nums

    def num(self, item_id: str) -> int:
        """Return the item_num of `item_id`.

        Raises:
            UnknownItemError: the catalogue does not hold it.
        """
        found = self.find(item_id)
        if found is None:
            raise UnknownItemError(
                f"item_id={item_id!r} is not in the catalogue of {len(self)} items"
            )
        return found

    def by_title(self, title: str) -> str:
        """Return the id of the one item with this title, or whose title holds this text.

        Case does not matter. Raises:
            UnknownItemError: there is none, or there are several; the message lists some.
        """
        wanted = title.casefold().strip()
        rows = [
            (self.item_ids[num], text)
            for num, text in enumerate(self.titles)
            if text is not None
            and wanted in text.casefold()
            and self.find(self.item_ids[num]) == num
        ]
        exact = [row for row in rows if row[1].casefold().strip() == wanted]
        found = exact or rows
        if len(found) == 1:
            return found[0][0]
        shown = ", ".join(f"{text!r} (item_id {item_id})" for item_id, text in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        reason = f"is several items: {shown}{more}" if found else "is no item's title"
        raise UnknownItemError(f"title {title!r} {reason}")


class UserStore:
    """Every stored user's cells, of all windows."""

    def __init__(self, user_ids: Sequence[str], cells: Cells) -> None:
        self._rows = {user_id: row for row, user_id in enumerate(user_ids)}
        self._cells = cells

    @classmethod
    def load(cls, profiles: Profiles) -> UserStore:
        """Read all profile shards."""
        return cls(profiles.user_ids.to_pylist(), profiles.cells())

    def __len__(self) -> int:
        return len(self._rows)

    def history(self, user_id: str) -> Cells:
        """Return the cells of one user.

        Raises:
            UnknownUserError: the store does not hold the user.
        """
        row = self._rows.get(user_id)
        if row is None:
            raise UnknownUserError(f"user_id={user_id!r} is not among the {len(self)} known users")
        return self._cells.users(np.array([row]))


def default_level(levels: RatingLevels) -> int:
    """Return the level of an entry without rating and event.

    The `unrated` level where the log has one; else, in rated logs, the lowest liked rating; else
    the first liked event (or plain presence): naming an item means to like it.
    """
    unrated = levels.level_of_name(_UNRATED)
    if unrated is not None:
        return unrated
    liked = np.flatnonzero(levels.liked_array())
    return int(liked[0]) if len(liked) else 0


def entry_level(entry: ProfileEntry, levels: RatingLevels) -> int:
    """Return the level of one entry: that of its rating, else of its event, else the default.

    Raises:
        SearchError: the build has no ratings, the rating is off their scale, or the event is none
            of the build's levels.
    """
    if entry.rating is not None:
        return _rating_level(entry, levels)
    if entry.event is None:
        return default_level(levels)
    level = levels.level_of_name(entry.event)
    if level is None:
        names = ", ".join(repr(name) for name in levels.names)
        raise SearchError(
            f"item_id={entry.item_id!r}: event={entry.event!r} is unknown: expected one of {names}"
        )
    return level


def posted_cells(
    entries: Sequence[ProfileEntry], *, items: ItemTable, levels: RatingLevels | None, now: int
) -> tuple[Cells, list[str]]:
    """Turn a posted profile into the cells of one user.

    An (item, level) pair that comes more than once counts once, with its newest time.

    Args:
        entries: the profile in any order.
        items: the served catalogue.
        levels: the levels that the model was fitted on; None: ratings and events are ignored.
        now: UTC seconds that an entry without timestamp gets.

    Returns:
        The cells, and the ids that the catalogue does not hold, in order, each once.

    Raises:
        SearchError: see `entry_level`.
    """
    times: dict[tuple[int, int], int] = {}
    unknown: dict[str, None] = {}
    for entry in entries:
        level = entry_level(entry, levels) if levels is not None else 0
        num = items.in_profile(entry.item_id)
        if num is None:
            unknown[entry.item_id] = None
            continue
        time = now if entry.timestamp is None else entry.timestamp
        times[num, level] = max(time, times.get((num, level), time))
    rows = sorted((time, num, level) for (num, level), time in times.items())
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    cells = Cells(
        user_num=np.zeros(1, dtype=np.int32),
        offsets=np.array([0, len(rows)], dtype=np.int64),
        item_num=columns[:, 1].astype(np.int32),
        level=columns[:, 2].astype(np.uint8),
        timestamp=columns[:, 0],
        window=np.zeros(len(rows), dtype=np.uint8),
    )
    return cells, list(unknown)


def seen_items(cells: Cells, items: ItemTable) -> list[NDArray[np.int32]]:
    """Return the item_nums of every user's cells and of what replaced them, U arrays."""
    bounds = itertools.pairwise(cells.offsets)
    return [items.with_newer(cells.item_num[a:b]) for a, b in bounds]


def hits_of(ranked: Ranked, items: ItemTable, levels: RatingLevels | None) -> list[Hit]:
    """Return a list as hits.

    Args:
        ranked: the list.
        items: the served catalogue.
        levels: of the model, to give each hit its level distribution; None: without.
    """
    nums = ranked.item_nums.tolist()
    columns = [ranked.scores, ranked.p_consume, ranked.p_like, ranked.expected_rating]
    values = [[None] * len(nums) if c is None else _numbers(c) for c in columns]
    hits = [
        Hit(items.item_ids[num], items.titles[num], *row)
        for num, row in zip(nums, zip(*values, strict=True), strict=True)
    ]
    if levels is not None and ranked.level_probs is not None:
        for hit, shares in zip(hits, ranked.level_probs, strict=True):
            if np.isfinite(shares).all():
                hit.levels = dict(zip(levels.names, shares.tolist(), strict=True))
    return hits


def _numbers(column: NDArray[Any]) -> list[float | None]:
    """Return values as JSON knows them: None for what is not a number."""
    return [None if np.isnan(value) else value for value in column.tolist()]


def _rating_level(entry: ProfileEntry, levels: RatingLevels) -> int:
    values = [value for value in levels.values if value is not None]
    where = f"item_id={entry.item_id!r}: rating={entry.rating:g}"
    scale = levels.scale
    if scale is None and values and levels.edges is None:
        scale = min(values), max(values)
    if scale is None and not values:
        names = ", ".join(repr(name) for name in levels.names)
        raise SearchError(
            f"{where} is not accepted: this build has no scale of ratings; its events are {names}"
        )
    with np.errstate(over="ignore"):
        rating = np.array([entry.rating], dtype=np.float32)  # as logs hold them
    if scale is not None and not scale[0] <= rating[0] <= scale[1]:
        ends = dict.fromkeys(np.format_float_positional(np.float32(v), trim="-") for v in scale)
        raise SearchError(f"{where} is off the scale: expected {' to '.join(ends)}")
    return int(levels.level_of_rating(rating)[0])
