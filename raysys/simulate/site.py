"""A simulated site: its log is made week by week, and models meet its users in an A/B test.

Letters: U users, N items, D tastes, V visits, C offered items, L list length, K models.

    taste        p_u(t) = direction of (1 - s) p_u + s p'_u,  s = taste_drift * t / days
    utility      2 c p_u(t) . q_i + quality_i
    offered      16 items per visit: with chance `feedback` one of the site's own recommendations,
                 else drawn ~ popularity_i^bias * trend_i(t)
    log          the offered item of the largest utility + Gumbel noise, never one item twice
    A/B          every user is shown a list of L items and clicks one or none by the same choice;
                 the alternative has the utility log(L) + 2, so a list of items of utility 0
                 is clicked in 12 % of visits

bias = 0 offers all items alike: whatever popularity the log shows is deserved by quality and taste.
bias = 1 offers by a power law that has nothing to do with either: popularity is exposure alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import Window
from raysys.simulate.world import DAY, START, World, WorldSpec

_OFFERED = 16
_RECOMMENDED = 20  # the recommender's items that a visit may be offered
_REFIT_WEEKS = 4


class Rank(Protocol):
    """Returns items best first for every user, none of the history, int32 [B, top_k]."""

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Rank for the users of `history`; -1 where there are no more."""


Fit = Callable[[Cells, int], Rank]


@dataclasses.dataclass(frozen=True)
class SiteSpec:
    """What a site shows to the users of a world.

    Attributes:
        world: sizes, tastes and trends; its `drift` fades exposure after an item's release.
        bias: exponent of the offers' popularity, 0 offers all released items alike.
        taste_drift: share of the way to another taste that users go over the log, 0..1.
        feedback: share of the offers that the site's own recommender makes, 0..1.
    """

    world: WorldSpec
    bias: float = 1.0
    taste_drift: float = 0.0
    feedback: float = 0.0


@dataclasses.dataclass(frozen=True)
class SiteLog:
    """A site's log in numbers, split in time.

    Attributes:
        cells: of all users; items are numbered by first appearance.
        items: [N] position in the world's arrays of each item_num.
        catalogue: {"val", "test", "all": items first seen before the cut or the end}.
        cutoffs: {"val", "test": UTC seconds}; end: UTC seconds.
    """

    cells: Cells
    items: NDArray[np.int64]
    catalogue: dict[str, int]
    cutoffs: dict[str, int]
    end: int


class Site:
    """A world's users on a site.

    Args:
        spec: the site.
        recommender: fits what the site shows as its own recommendations; needed with `feedback`.
    """

    def __init__(self, spec: SiteSpec, recommender: Fit | None = None) -> None:
        if spec.feedback and recommender is None:
            raise ValueError("feedback needs a recommender")
        self.spec = spec
        self.world = World.make(spec.world)
        self._recommender = recommender
        rng = np.random.default_rng([spec.world.seed, 3])
        self._later = self.world.users[rng.permutation(spec.world.n_users)]

    def tastes(self, users: NDArray[np.int64], days: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the tastes of users at times, unit rows [V, D]."""
        moved = (self.spec.taste_drift * days / self.spec.world.days)[:, None]
        mixed = (1 - moved) * self.world.users[users] + moved * self._later[users]
        tastes: NDArray[np.float64] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        return tastes

    def utility(
        self, users: NDArray[np.int64], items: NDArray[np.int64], days: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the utility of items [V, C] (positions in the world) to users [V] at times [V]."""
        taste = np.einsum("vd,vcd->vc", self.tastes(users, days), self.world.items[items])
        utility: NDArray[np.float64] = (
            2 * self.spec.world.taste_pull * taste + self.world.quality[items]
        )
        return utility

    def log(self, *, val_cut: float = 0.8, test_cut: float = 0.9) -> SiteLog:
        """Make the log; the cuts are quantiles of time."""
        user, day = self._visits()
        item = np.full(len(user), -1, dtype=np.int64)
        week = (day // 7).astype(np.int64)
        rank: Rank | None = None
        for number in range(int(week.max()) + 1):
            past = np.flatnonzero(week < number)
            if self.spec.feedback and len(past) and (rank is None or number % _REFIT_WEEKS == 0):
                assert self._recommender is not None
                rank = self._recommender(self._cells(user[past], item[past], day[past]), self._n)
            now = np.flatnonzero(week == number)
            if len(now):
                shown = self._offers(user, item, day, now, past, rank)
                rng = np.random.default_rng([self.spec.world.seed, 4, number])
                worth = self.utility(user[now], shown, day[now]) + rng.gumbel(size=shown.shape)
                item[now] = shown[np.arange(len(now)), np.argmax(worth, axis=1)]
        return self._split(user, item, day, (val_cut, test_cut))

    @property
    def _n(self) -> int:
        return self.spec.world.n_items

    def _visits(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return user and day of every visit, in time order, [V]."""
        spec = self.spec.world
        rng = np.random.default_rng([spec.seed, 2])
        mean = spec.n_interactions / spec.n_users
        counts = np.minimum(rng.geometric(1 / mean, spec.n_users) + 2, spec.n_items // 2)
        user = np.repeat(np.arange(spec.n_users), counts)
        joined = np.repeat(rng.random(spec.n_users) * 0.6, counts)
        day = spec.days * (joined + (1 - joined) * rng.random(len(user)))
        order = np.argsort(day, kind="stable")
        return user[order], day[order]

    def _offers(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        day: NDArray[np.float64],
        now: NDArray[np.int64],
        past: NDArray[np.int64],
        rank: Rank | None,
    ) -> NDArray[np.int64]:
        """Return what the visits `now` are offered, positions in the world [V, C]."""
        rng = np.random.default_rng([self.spec.world.seed, 5, int(now[0])])
        start = np.array([np.floor(day[now[0]] / 7) * 7])
        weight = self.world.popularity.astype(np.float64) ** self.spec.bias
        weight = weight * self.world.trend(start)[0]
        chances = np.cumsum(weight / weight.sum())
        shown = np.searchsorted(chances, rng.random((len(now), _OFFERED)))
        shown = np.minimum(shown, self._n - 1)
        if rank is None:
            return shown
        visitors, row = np.unique(user[now], return_inverse=True)
        history = self._cells(user[past], item[past], day[past]).users(visitors)
        lists = rank(history, _RECOMMENDED)[row]  # [V, 20]
        picks = np.take_along_axis(
            lists, rng.integers(0, _RECOMMENDED, (len(now), _OFFERED)), axis=1
        )
        own = (rng.random(shown.shape) < self.spec.feedback) & (picks >= 0) & (weight[picks] > 0)
        return np.where(own, picks, shown)

    def _cells(
        self, user: NDArray[np.int64], item: NDArray[np.int64], day: NDArray[np.float64]
    ) -> Cells:
        """Return first visits to items as cells of all users, items by position in the world."""
        time = START + (day * DAY).astype(np.int64)
        return cells_of(user, item, time, np.zeros(len(user), np.uint8), self.spec.world.n_users)

    def _split(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        day: NDArray[np.float64],
        cuts: tuple[float, float],
    ) -> SiteLog:
        time = START + (day * DAY).astype(np.int64)
        first = np.full(self._n, np.iinfo(np.int64).max)
        np.minimum.at(first, item, time)
        order = np.argsort(first, kind="stable")
        seen = order[: int((first < np.iinfo(np.int64).max).sum())]
        number = np.zeros(self._n, dtype=np.int64)
        number[seen] = np.arange(len(seen))
        val, test = (int(np.quantile(time, cut)) for cut in cuts)
        window = np.searchsorted([val, test], time, side="right").astype(np.uint8)
        assert int(window.max()) == Window.TEST
        return SiteLog(
            cells=cells_of(user, number[item], time, window, self.spec.world.n_users),
            items=seen,
            catalogue={
                "val": int((first < val).sum()),
                "test": int((first < test).sum()),
                "all": len(seen),
            },
            cutoffs={"val": val, "test": test},
            end=START + self.spec.world.days * DAY,
        )

    def click_rates(
        self, log: SiteLog, rankers: Sequence[Rank], *, length: int = 10, visits: int = 3
    ) -> list[float]:
        """Run the A/B test at the end of the log and return each model's click-through rate.

        Every user with a history meets every model, with the same luck each time, and comes
        `visits` times; a clicked item joins the history. The rate is the mean over visits of the
        exact chance of a click, so only what was clicked before is random.
        """
        known = np.flatnonzero(log.cells.counts > 0)
        return [self._click_rate(log, rank, known, length, visits) for rank in rankers]

    def _click_rate(
        self, log: SiteLog, rank: Rank, known: NDArray[np.int64], length: int, visits: int
    ) -> float:
        days = np.full(len(known), float(self.spec.world.days))
        outside = np.log(length) + 2.0
        history = log.cells.users(known)
        chances = []
        for visit in range(visits):
            lists = rank(history, length)  # [U, L]
            present = lists >= 0
            items = log.items[np.maximum(lists, 0)]
            utility = np.where(present, self.utility(known, items, days), -np.inf)
            worth = np.exp(utility).sum(axis=1)
            chances.append(float((worth / (worth + np.exp(outside))).mean()))
            rng = np.random.default_rng([self.spec.world.seed, 6, visit])
            luck = rng.gumbel(size=(len(known), self._n + 1))
            drawn = utility + np.take_along_axis(luck, items, axis=1)
            best = np.argmax(drawn, axis=1)
            clicked = drawn[np.arange(len(known)), best] > outside + luck[:, -1]
            history = _with_clicks(history, lists[np.arange(len(known)), best], clicked, log.end)
        return float(np.mean(chances))


def cells_of(
    user: NDArray[Any],
    item: NDArray[Any],
    time: NDArray[np.int64],
    window: NDArray[np.uint8],
    n_users: int,
) -> Cells:
    """Return the rows of a log, in time order, as cells; a repeated item counts at its first."""
    pair = user.astype(np.int64) << 32 | item.astype(np.int64)
    kept = np.sort(np.unique(pair, return_index=True)[1])
    kept = kept[np.argsort(user[kept], kind="stable")]
    counts = np.bincount(user[kept], minlength=n_users)
    return Cells(
        user_num=np.arange(n_users, dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        item_num=item[kept].astype(np.int32),
        level=np.zeros(len(kept), dtype=np.uint8),
        timestamp=time[kept],
        window=window[kept],
    )


def _with_clicks(
    history: Cells, items: NDArray[np.int32], clicked: NDArray[np.bool_], time: int
) -> Cells:
    """Return histories with the clicked items appended."""
    at = history.offsets[1:][clicked]
    return Cells(
        user_num=history.user_num,
        offsets=history.offsets + np.concatenate(([0], np.cumsum(clicked))),
        item_num=np.insert(history.item_num, at, items[clicked]),
        level=np.insert(history.level, at, 0),
        timestamp=np.insert(history.timestamp, at, time),
        window=np.insert(history.window, at, Window.TEST),
    )
