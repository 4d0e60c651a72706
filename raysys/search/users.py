"""Whom a query is for: stored users and posted profiles, as cells."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.arrays import new_file, read_only
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles, tombstone
from raysys.data.schema import RatingLevels, Window
from raysys.errors import SearchError
from raysys.events.records import Event
from raysys.prepare.levels import CONSUMED
from raysys.search.ids import Ids
from raysys.search.items import ItemTable
from raysys.search.query import ProfileEntry, UnknownUserError
from raysys.store.builds import Build
from raysys.store.drafts import Draft

USER_NAMES = "names/users"  # of an index build
_HISTORIES = "histories/"
_COLUMNS = {"offsets": np.int64, "item_num": np.int32, "level": np.uint8, "timestamp": np.int64}
_UNRATED = "unrated"
_KINDS = 10_000  # of events, whose levels are remembered
_ASKED = 1_000  # users whose rows are remembered: a request asks for its user twice


class UserStore:
    """Every stored user's cells, of all windows.

    Args:
        ids: of the users.
        cells: theirs, in memory or mapped.
    """

    def __init__(self, ids: Ids, cells: Cells) -> None:
        self._ids = ids
        self._row = functools.lru_cache(_ASKED)(ids.find)
        self._cells = cells

    @classmethod
    def load(cls, profiles: Profiles) -> UserStore:
        """Read all profile shards."""
        return cls(Ids.of(profiles.user_ids), profiles.cells())

    @classmethod
    def open(cls, index: Build) -> UserStore | None:
        """Map the users that an index build keeps; None where it keeps none."""
        if not cls.kept_by(index):
            return None
        ids, _ = Ids.open(index, USER_NAMES)
        columns = {
            name: read_only(np.load(index.path(f"{_HISTORIES}{name}.npy"), mmap_mode="r"))
            for name in _COLUMNS
        }
        nothing: NDArray[Any] = np.zeros(0)
        return cls(ids, Cells(**columns, user_num=nothing, window=nothing))

    @staticmethod
    def kept_by(index: Build) -> bool:
        """Tell whether an index build keeps users."""
        return f"{USER_NAMES}.arrow" in index.files()

    @staticmethod
    def save(
        profiles: Profiles, draft: Draft, *, windows: Collection[Window] | None = None
    ) -> None:
        """Write the users of profiles into an index build that is being made, shard by shard.

        Args:
            profiles: of all users.
            draft: the index build.
            windows: whose cells are histories; None: all.
        """
        user_ids = profiles.user_ids
        Ids.of(user_ids).save(draft, USER_NAMES, pa.table({"user_id": user_ids}))
        counts = [np.zeros(1, dtype=np.int64)]
        n_cells = profiles.facts.n_cells  # of the windows that have any
        size = sum(n for name, n in n_cells.items() if windows is None or Window[name] in windows)
        files = {
            name: new_file(draft.path(f"{_HISTORIES}{name}.npy"), (size,), kind)
            for name, kind in _COLUMNS.items()
            if name != "offsets"
        }
        start = 0
        for cells in profiles.iter_shards(windows):
            counts.append(cells.counts)
            for name, file in files.items():
                file[start : start + cells.n_cells] = getattr(cells, name)
            start += cells.n_cells
        assert start == size, (start, size)
        np.save(draft.path(f"{_HISTORIES}offsets.npy"), np.cumsum(np.concatenate(counts)))

    @staticmethod
    def without_users(folder: Path, user_ids: Collection[str]) -> int:
        """Forget users in the files of an index build; their numbers stay, without a name.

        Args:
            folder: that holds the files.
            user_ids: who are forgotten.

        Returns:
            How many of them there were.
        """
        with pa.memory_map(str(folder / f"{USER_NAMES}.arrow")) as source:
            names = pa.ipc.open_file(source).read_all().column(0).to_pylist()
        own = np.array([name in user_ids for name in names], dtype=bool)
        if not own.any():
            return 0
        texts = pa.chunked_array(
            [[tombstone() if gone else name for name, gone in zip(names, own, strict=True)]],
            pa.string(),
        )
        table = pa.table({"user_id": texts})
        Ids.of(texts).write(lambda name: folder / name, USER_NAMES, table)
        place = folder / _HISTORIES
        offsets = np.load(place / "offsets.npy")
        sizes = np.diff(offsets)
        kept = np.repeat(~own, sizes)
        for name in _COLUMNS:
            if name != "offsets":
                np.save(place / f"{name}.npy", np.load(place / f"{name}.npy")[kept])
        sizes[own] = 0
        np.save(place / "offsets.npy", np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
        return int(own.sum())

    def __len__(self) -> int:
        return len(self._ids)

    def size_of(self, user_id: str) -> int:
        """Return how many cells a user has, 0 for an unknown one."""
        row = self._row(user_id)
        return 0 if row is None else int(self._cells.offsets[row + 1] - self._cells.offsets[row])

    def history(self, user_id: str) -> Cells:
        """Return the cells of one user.

        Raises:
            UnknownUserError: the store does not hold the user.
        """
        row = self._row(user_id)
        if row is None:
            raise UnknownUserError(f"user_id={user_id!r} is not among the {len(self)} known users")
        cells = self._cells
        start, stop = cells.offsets[row : row + 2].tolist()
        here = slice(start, stop)
        return Cells(
            user_num=np.array([row], dtype=np.int32),
            offsets=np.array([0, stop - start]),
            item_num=np.array(cells.item_num[here]),  # as all others are: not read only
            level=np.array(cells.level[here]),
            timestamp=np.array(cells.timestamp[here]),
            window=np.zeros(stop - start, dtype=np.uint8),  # all of them are history here
        )


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
    return _cells(times), list(unknown)


class Levels:
    """The levels of events as they come while a service runs.

    Args:
        levels: that the model was fitted on; None: ratings and kinds of events are ignored.
    """

    def __init__(self, levels: RatingLevels | None) -> None:
        self._levels = levels
        self._known: dict[tuple[str | None, float | None], int | str] = {}

    def of(self, event: Event) -> int | None:
        """Return the level of an event; None where the model knows none."""
        found = self._found(event)
        return found if isinstance(found, int) else None

    def refusal(self, event: Event) -> str | None:
        """Return why no log of these levels can take an event: its rating; None: it can.

        A kind of event that is new is one that the next model will know.
        """
        found = self._found(event)
        return found if isinstance(found, str) and event.rating is not None else None

    def _found(self, event: Event) -> int | str:
        """Return the level of an event, or why it has none."""
        plain = self._levels is None or self._levels.names == (CONSUMED,)
        if plain and (self._levels is None or event.rating is None):
            return 0  # where nothing tells events apart, each is one more
        assert self._levels is not None
        pair = (event.event, event.rating)
        found = self._known.get(pair)
        if found is None:
            if len(self._known) > _KINDS:  # ratings of any value are binned
                self._known.clear()
            entry = ProfileEntry.model_construct(
                item_id="0", event=event.event, rating=event.rating
            )
            try:
                found = entry_level(entry, self._levels)
                _check_value(event.rating, self._levels)
            except SearchError as error:
                found = f"{error}".removeprefix("item_id='0': ")
            self._known[pair] = found
        return found


def _check_value(rating: float | None, levels: RatingLevels) -> None:
    """Raise SearchError for a rating between those of a log that has few: it would be one more."""
    values = [value for value in levels.values if value is not None]
    if rating is None or levels.edges is not None or not values:
        return
    if not np.isin(np.float32(rating), np.array(values, dtype=np.float32)):
        known = ", ".join(f"{value:g}" for value in values)
        raise SearchError(f"rating={rating:g} is none of this build's: expected one of {known}")


def event_cells(
    events: Iterable[Event], *, find: Callable[[str], int | None], levels: Levels
) -> tuple[Cells, list[str]]:
    """Turn events into the cells of one user, as `posted_cells` does.

    `find` gives the number of an item, None where profiles do not have it. Events of a level that
    the model does not know are left out.
    """
    times: dict[tuple[int, int], int] = {}
    unknown: dict[str, None] = {}
    for event in events:
        num, level = find(event.item_id), levels.of(event)
        if num is None:
            unknown[event.item_id] = None
        elif level is not None:
            times[num, level] = max(event.timestamp, times.get((num, level), event.timestamp))
    return _cells(times), list(unknown)


def _cells(times: Mapping[tuple[int, int], int]) -> Cells:
    """Return the cells of one user, {(item_num, level): UTC seconds}, by time."""
    rows = sorted((time, num, level) for (num, level), time in times.items())
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Cells(
        user_num=np.zeros(1, dtype=np.int32),
        offsets=np.array([0, len(rows)], dtype=np.int64),
        item_num=columns[:, 1].astype(np.int32),
        level=columns[:, 2].astype(np.uint8),
        timestamp=columns[:, 0],
        window=np.zeros(len(rows), dtype=np.uint8),
    )


def continued(stored: Cells, posted: Cells) -> Cells:
    """Return the history of one user with what was posted; of equal cells the newest counts."""
    item, level, time = (
        np.concatenate([getattr(cells, name) for cells in (stored, posted)])
        for name in ("item_num", "level", "timestamp")
    )
    order = np.lexsort((level, item, time))[::-1]
    pairs = item[order].astype(np.int64) * 256 + level[order]
    kept = order[np.sort(np.unique(pairs, return_index=True)[1])][::-1]
    return dataclasses.replace(
        stored,
        offsets=np.array([0, len(kept)]),
        item_num=item[kept],
        level=level[kept],
        timestamp=time[kept],
        window=np.zeros(len(kept), dtype=np.uint8),
    )


def seen_items(cells: Cells, items: ItemTable) -> list[NDArray[np.int32]]:
    """Return the item_nums of every user's cells and of what replaced them, U arrays."""
    return [items.with_newer(nums) for nums in cells.item_lists]


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
