"""What a query is made of: items by external id, stored users, and posted profiles as cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.builds import Build
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.data.schema import RatingLevels
from raysys.errors import SearchError, UnknownItemError
from raysys.retrieval.query import ProfileEntry, UnknownUserError

_UNRATED = "unrated"


class ItemTable:
    """The served catalogue: external ids and titles by item_num."""

    def __init__(self, item_ids: Sequence[str], titles: Sequence[str | None]) -> None:
        self.item_ids = list(item_ids)
        self.titles = list(titles)
        self._nums = {item_id: num for num, item_id in enumerate(self.item_ids)}

    @classmethod
    def load(cls, embeddings: Build) -> ItemTable:
        """Read the items of an `embeddings` build; row number = item_num."""
        table = pq.read_table(embeddings.path("items.parquet"), columns=["item_id", "title"])
        return cls(table["item_id"].to_pylist(), table["title"].to_pylist())

    def __len__(self) -> int:
        return len(self.item_ids)

    def find(self, item_id: str) -> int | None:
        """Return the item_num of `item_id`, or None."""
        return self._nums.get(item_id)

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
        num = items.find(entry.item_id)
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


def seen_items(cells: Cells) -> list[NDArray[np.int32]]:
    """Return the item_nums of every user's cells, U arrays."""
    return [cells.item_num[a:b] for a, b in itertools.pairwise(cells.offsets)]


def _rating_level(entry: ProfileEntry, levels: RatingLevels) -> int:
    values = [value for value in levels.values if value is not None]
    where = f"item_id={entry.item_id!r}: rating={entry.rating}"
    if not values:
        raise SearchError(f"{where} is not accepted: this build was made from a log of events")
    assert entry.rating is not None
    if levels.edges is None and not min(values) <= entry.rating <= max(values):
        raise SearchError(f"{where} is off the scale: expected {min(values):g} to {max(values):g}")
    return int(levels.level_of_rating(np.array([entry.rating]))[0])
