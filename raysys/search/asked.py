"""What a query asks of the engine: whose history, which ranking, what its list leaves out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from raysys.data.arrays import read_only
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.errors import SearchError
from raysys.events.records import Event
from raysys.index.strengths import Strengths
from raysys.scoring.rankings import Ranking
from raysys.search.engine import Engine
from raysys.search.items import ItemTable
from raysys.search.pages import listed
from raysys.search.query import Degraded, Items, RecommendQuery, UnknownUserError
from raysys.search.steering import Steering, steering_of
from raysys.search.users import Levels, UserStore, continued, event_cells, posted_cells

MAX_EXPLAINED = 1_000  # items of a list whose reasons are named

_FOUND = 1 << 15  # items of events whose numbers are remembered

NO_ITEMS: Items = read_only(np.zeros(0, dtype=np.int32))
Lately = Callable[[str], Sequence[Event]]


class Asked(NamedTuple):
    """One query, in numbers.

    Attributes:
        query: as it came.
        history: cells of one user.
        unknown: ids of the profile that the catalogue does not hold.
        left_out: item_nums that the list may not hold, beside those that were seen.
        listed: ids that earlier pages gave.
        ranking: of the list.
        degraded: why this is not what was asked for; None: it is.
        changed: the ranking is another one than was asked for.
        steering: what is raised and muted; None: nothing.
        dropped: item_nums of earlier pages that are dropped of a longer list: what steering adds
            depends on the best of it.
    """

    query: RecommendQuery
    history: Cells
    unknown: list[str]
    left_out: Items
    listed: list[str]
    ranking: Ranking
    degraded: Degraded | None
    changed: bool = False
    steering: Steering | None = None
    dropped: Items = NO_ITEMS

    @property
    def length(self) -> int:
        """Length of the list that is made."""
        return self.query.k + len(self.dropped)

    @property
    def alike(self) -> Hashable:
        """What is the same of queries that one pass may answer."""
        query = self.query
        masks = ""
        if query.allow is not None or query.deny is not None:
            masks = query.model_dump_json(include={"allow", "deny"})
        of_list = query.k, self.length, query.exclude_seen, query.levels, masks
        ranked = self.ranking.name, self.ranking.weight
        return *of_list, *ranked, self.history.n_cells > 0  # popular items answer for none


class Asking:
    """Reads queries against what is served.

    Args:
        engine: answers them.
        items: the served catalogue.
        users: the stored ones; None: there are none.
        levels: of the model; None without one.
        strengths: what items hold of atoms, for queries that raise or mute some.

    Attributes:
        lately: gives what a user did since the history was stored; by default nothing.
    """

    def __init__(
        self,
        engine: Engine,
        items: ItemTable,
        users: UserStore | None,
        levels: RatingLevels | None,
        *,
        strengths: Callable[[], Strengths],
    ) -> None:
        self._engine, self._items, self._users, self._levels = engine, items, users, levels
        self.levels = Levels(levels)
        self.lately: Lately = _nothing
        self._find = functools.lru_cache(_FOUND)(items.in_profile)
        self._strengths = strengths

    def read(self, query: RecommendQuery) -> Asked:
        """Return what a query asks, or with `fallback` what may be answered in its place.

        Raises:
            UnknownUserError: no stored user has this id.
            SearchError: a ranking, rating, event, cursor or atom that is not known.
        """
        steering = steering_of(query.atoms, self._strengths()) if query.atoms else None
        reason: str | None = None
        if query.explain and query.k > MAX_EXPLAINED:
            raise SearchError(f"k={query.k} with explain: expected {MAX_EXPLAINED} at most")
        try:
            history, unknown, met = self._gathered(query)
        except UnknownUserError:
            if not query.fallback:
                raise
            reason = "unknown_user"
            history, unknown, met = self._gathered(
                query.model_copy(update={"user_id": None, "profile": query.profile or []})
            )
        first = self._engine.rankings[0]
        ranking = query.order(first)
        changed = query.fallback and ranking.name not in self._engine.rankings
        if changed:
            reason, ranking = reason or "ranking", Ranking(first)
        if not history.n_cells:
            without = self._engine.scorer is None
            if without and not query.fallback:
                raise SearchError("this build has no autoencoder: the profile needs a known item")
            if query.user_id is not None or query.profile or without:
                reason = reason or "no_history"
        pages = listed(query.cursor)
        fresh = self._upserted([*unknown, *met])
        nums = [*fresh.values()] if query.exclude_seen else []
        given = [num for num in map(self._items.find, pages) if num is not None]
        nums += given if steering is None else []
        return Asked(
            query=query,
            history=history,
            unknown=[item_id for item_id in unknown if item_id not in fresh],
            left_out=np.array(nums, dtype=np.int32) if nums else NO_ITEMS,
            listed=pages,
            ranking=self._engine.checked(ranking),
            degraded=None if reason is None else self._degraded(reason, history),
            changed=changed,
            steering=steering,
            dropped=NO_ITEMS if steering is None else np.array(given, dtype=np.int32),
        )

    def history(self, query: RecommendQuery) -> tuple[Cells, list[str]]:
        """Return the cells of a query's profile, and its items that no build knows.

        Raises:
            UnknownUserError: no stored user has this id.
            SearchError: a rating or event that the build does not know.
        """
        return self._gathered(query)[:2]

    def not_counted(self, events: Iterable[Event]) -> int:
        """Return how many events lists cannot follow: the build does not know their item or kind.

        An item that came after the build is left out of lists, but tells the model nothing.
        """
        find, level = self._find, self.levels.of
        return sum(find(event.item_id) is None or level(event) is None for event in events)

    def _gathered(self, query: RecommendQuery) -> tuple[Cells, list[str], list[str]]:
        """Return what `history` does, and the items of events that no build knows."""
        stored: Cells | None = None
        met: list[str] = []
        if query.user_id is not None:
            stored, met = self._of_user(query.user_id)
        if query.profile is None:
            assert stored is not None  # a query has one of both
            return stored, [], met
        now = self._engine.fitted_until or 0
        if stored is not None and stored.n_cells:
            now = max(now, int(stored.timestamp[-1]))
        newest = max((e.timestamp or now for e in query.profile), default=now)
        posted, unknown = posted_cells(
            query.profile, items=self._items, levels=self._levels, now=max(now, newest)
        )
        return (posted if stored is None else continued(stored, posted)), unknown, met

    def _of_user(self, user_id: str) -> tuple[Cells, list[str]]:
        """Return a user's stored history with what came since, and items that no build knows."""
        events = self.lately(user_id)
        if not events:
            return self._stored(user_id), []
        cells, met = event_cells(events, find=self._find, levels=self.levels)
        try:
            return continued(self._stored(user_id), cells), met
        except UnknownUserError:  # a new one
            return cells, met

    def _stored(self, user_id: str) -> Cells:
        if self._users is None:
            raise UnknownUserError(f"user_id={user_id!r}: this build stores no users")
        return self._users.history(user_id)

    def _upserted(self, unknown: Iterable[str]) -> dict[str, int]:
        """Return those that came after the build, which tell its model nothing."""
        found = {item_id: self._items.upserted(item_id) for item_id in unknown}
        return {item_id: num for item_id, num in found.items() if num is not None}

    def _degraded(self, reason: str, history: Cells) -> Degraded:
        by = "popular"
        if history.n_cells:
            by = "similar" if self._engine.scorer is None else "model"
        return Degraded(reason, by)  # type: ignore[arg-type]


def _nothing(_: str) -> Sequence[Event]:
    return ()
