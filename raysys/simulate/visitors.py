"""Users of a simulated site who come to a service week by week and answer its lists by events.

Letters: V visits, L list length.

A visit is shown a list and clicks one item or none, by the choice of `raysys.simulate.site`: the
utility of none is log(L) + 2, and what the user has taken before is worth nothing. Beside that the
site goes on as its log began: users take what it offers by popularity and trend, whatever the
service says. All luck is drawn from (seed, week), so that services meet the same users with the
same luck.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from raysys.simulate.site import Site
from raysys.simulate.world import DAY, START

WEEK = 7 * DAY
_COMES = 0.7  # chance that a user visits in a week
_NONE = 2.0  # utility of no click, beside that of a list of utility 0

_SOONEST = DAY // 4  # seconds from the begin of a week to the first click

Ids = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Taken:
    """What users took, in time order.

    Attributes:
        user, item: rows of the world's arrays.
        time: UTC seconds.
    """

    user: Ids
    item: Ids
    time: Ids

    def between(self, start: int, end: int) -> Taken:
        """Return what was taken in [start, end), UTC seconds."""
        first, last = np.searchsorted(self.time, [start, end])
        return Taken(self.user[first:last], self.item[first:last], self.time[first:last])


@dataclasses.dataclass(frozen=True)
class Clicks:
    """What became of visits.

    Attributes:
        chance: [V] of a click, by the truth.
        taken: the clicks.
    """

    chance: NDArray[np.float64]
    taken: Taken


class Visitors:
    """The users of a site from a day on, who remember what they took; weeks come in their order.

    Args:
        site: theirs.
        first_day: of the first week, in days of the site's log.
    """

    def __init__(self, site: Site, *, first_day: int) -> None:
        self.site = site
        self._first_day = first_day
        made = site.log()
        user = np.repeat(made.cells.user_num, made.cells.counts).astype(np.int64)
        item, time = made.items[made.cells.item_num], made.cells.timestamp
        order = np.argsort(time, kind="stable")
        self._all = Taken(user[order], item[order], time[order])
        self._has = np.zeros((site.spec.world.n_users, site.spec.world.n_items), dtype=np.bool_)
        self._remember(self.before())

    def start(self, week: int) -> int:
        """Return when a week begins, UTC seconds."""
        return START + self._first_day * DAY + week * WEEK

    def before(self) -> Taken:
        """Return the log up to the first week."""
        return self._all.between(0, self.start(0))

    def organic(self, week: int) -> Taken:
        """Return what users newly take in a week without the service."""
        taken = self._all.between(self.start(week), self.start(week + 1))
        new = ~self._has[taken.user, taken.item]
        taken = Taken(taken.user[new], taken.item[new], taken.time[new])
        self._remember(taken)
        return taken

    def visitors(self, week: int) -> Ids:
        """Return the users who visit in a week: some of those who are in the log before it."""
        known = np.unique(self._all.between(0, self.start(0)).user)
        return known[self._draw(week, 1).random(len(known)) < _COMES]

    def clicks(self, users: Ids, lists: Ids, week: int) -> Clicks:
        """Show every visitor a list and return what came of it.

        Args:
            users: [V].
            lists: items [V, L], -1 where a list is shorter.
            week: of the visits.
        """
        length = lists.shape[1]
        days = np.full(len(users), self._first_day + 7.0 * week)
        items = np.maximum(lists, 0)
        new = (lists >= 0) & ~self._has[users[:, None], items]
        utility = np.where(new, self.site.utility(users, items, days), -np.inf)
        none = np.log(length) + _NONE
        worth = np.exp(utility).sum(axis=1)
        world = self.site.spec.world
        luck = self._draw(week, 2).gumbel(size=(world.n_users, world.n_items + 1))[users]
        drawn = utility + np.take_along_axis(luck, items, axis=1)
        best = np.argmax(drawn, axis=1)
        rows = np.arange(len(users))
        clicked = np.flatnonzero(drawn[rows, best] > none + luck[:, -1])
        time = self.start(week) + self._draw(week, 3).integers(_SOONEST, _SOONEST + DAY, len(users))
        order = clicked[np.argsort(time[clicked], kind="stable")]
        taken = Taken(users[order], lists[order, best[order]], time[order])
        self._remember(taken)
        return Clicks(worth / (worth + np.exp(none)), taken)

    def _remember(self, taken: Taken) -> None:
        self._has[taken.user, taken.item] = True

    def _draw(self, week: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.site.spec.world.seed, 7, purpose, week])
