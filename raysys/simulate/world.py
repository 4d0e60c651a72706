"""A world with a known truth: who would enjoy what, what they get to see, what they then log.

Letters: U users, N items, D tastes.

    enjoyment(u, i)       = sigmoid(3 p_u . q_i + quality_i), in [0, 1]
    consumption(i | u, t) ~ popularity_i * trend_i(t) * exp(2 c p_u . q_i)
    rating                = 1..5 by the fixed steps that enjoyment's logit + noise has passed

Tastes p_u stay; trends move with time: every item has its own day of release and fades from it.
Exposure is biased towards popular items, so that an item that few saw may well be liked by many.
Every user is drawn from (seed, block of users) alone: the world does not depend on worker counts.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.compiled import compiled
from raysys.data.schema import INTERACTION_SCHEMA
from raysys.errors import DataError

BLOCK_USERS = 2048
START = 1_704_067_200  # 2024-01-01
DAY = 86_400
_GENRES = ("Drama", "Comedy", "Thriller", "Romance", "Mystery", "Fantasy", "Western", "Noir")
_ADJECTIVES = ("Silent", "Golden", "Broken", "Distant", "Hidden", "Crimson", "Last", "Electric")
_NOUNS = ("River", "Garden", "Winter", "Station", "Mirror", "Harbour", "Signal", "Orchard")
_OFFERED = 16  # items that a user chooses from at each visit
_RATING_STEPS = (-0.1, 0.8, 1.7, 2.6)  # logits of enjoyment between ratings 1..5


@dataclasses.dataclass
class WorldSpec:
    """Size and character of a world; the settings of `raysys simulate`.

    Attributes:
        n_users, n_items: sizes.
        n_interactions: expected rows of the log, before repeats of one user and item are removed.
        n_tastes: latent dimensions D.
        days: length of the log in days.
        skew: exponent of the popularity's power law, 0 is uniform.
        drift: how strongly an item's exposure fades after its release, 0 is not at all.
        taste_pull: how strongly exposure follows taste.
        noise: standard deviation of the rating's noise on the scale of enjoyment's logit.
        rated: log ratings; else events (view, and like for what was enjoyed).
        seed: the one source of randomness.
    """

    n_users: int = 5000
    n_items: int = 2000
    n_interactions: int = 350_000
    n_tastes: int = 8
    days: int = 365
    skew: float = 0.8
    drift: float = 1.0
    taste_pull: float = 1.5
    noise: float = 0.5
    rated: bool = True
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class World:
    """The truth of a simulated world.

    Attributes:
        spec: how it was made.
        users: [U, D] tastes p, unit rows.
        items: [N, D] what items offer, q, unit rows.
        quality: [N] logit of enjoyment that all users share.
        popularity: [N] share of exposure at equal tastes, sums to 1.
        release: [N] day of release, 0 or later.
    """

    spec: WorldSpec
    users: NDArray[np.float32]
    items: NDArray[np.float32]
    quality: NDArray[np.float32]
    popularity: NDArray[np.float32]
    release: NDArray[np.float32]

    @classmethod
    def make(cls, spec: WorldSpec) -> World:
        """Draw the truth from the spec's seed."""
        rng = np.random.default_rng([spec.seed, 1])
        genre = rng.integers(len(_GENRES), size=spec.n_items)
        centres = rng.normal(size=(len(_GENRES), spec.n_tastes))
        items = 0.8 * centres[genre] + 0.6 * rng.normal(size=(spec.n_items, spec.n_tastes))
        mix = rng.dirichlet(np.full(len(_GENRES), 0.4), size=spec.n_users)
        users = 1.3 * mix @ centres + 0.4 * rng.normal(size=(spec.n_users, spec.n_tastes))
        popularity = (1.0 + rng.permutation(spec.n_items)) ** -spec.skew
        late = rng.random(spec.n_items) < 0.5
        release = np.where(late, rng.random(spec.n_items) * spec.days * 0.97, 0.0)
        return cls(
            spec=spec,
            users=_unit_rows(users),
            items=_unit_rows(items),
            quality=(0.5 * rng.normal(size=spec.n_items)).astype(np.float32),
            popularity=(popularity / popularity.sum()).astype(np.float32),
            release=release.astype(np.float32),
        )

    @classmethod
    def load(cls, path: str | Path) -> World:
        """Read what `save` wrote.

        Raises:
            DataError: there is no world at `path`.
        """
        folder = Path(path)
        try:
            spec = WorldSpec(**json.loads((folder / "world.json").read_text()))
            arrays = {
                name: np.load(folder / "truth" / f"{name}.npy")
                for name in ("users", "items", "quality", "popularity", "release")
            }
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder} holds no simulated world: {error}") from error
        return cls(spec=spec, **arrays)

    def save(self, path: Path) -> None:
        """Write the truth and the item file below `path`."""
        (path / "truth").mkdir(parents=True, exist_ok=True)
        for name in ("users", "items", "quality", "popularity", "release"):
            np.save(path / "truth" / f"{name}.npy", getattr(self, name))
        pq.write_table(self.item_table(), path / "items.parquet")
        (path / "world.json").write_text(json.dumps(dataclasses.asdict(self.spec), indent=1) + "\n")

    def item_ids(self) -> list[str]:
        """Return the item ids in the order of the truth's arrays."""
        return list(_ids("i", np.arange(self.spec.n_items), self.spec.n_items).to_pylist())

    def user_ids(self) -> list[str]:
        """Return the user ids in the order of the truth's arrays."""
        return list(_ids("u", np.arange(self.spec.n_users), self.spec.n_users).to_pylist())

    def user_number(self, user_id: str) -> int:
        """Return the row of a user in the truth's arrays.

        Raises:
            DataError: the world has no such user.
        """
        digits = user_id[1:]
        if user_id[:1] == "u" and digits.isdigit() and int(digits) < self.spec.n_users:
            return int(digits)
        raise DataError(f"the simulated world has no user {user_id!r}")

    def enjoyment(self, user_id: str) -> NDArray[np.float64]:
        """Return how much a user would enjoy every item, [N] in [0, 1]."""
        return _sigmoid(self._enjoyment_logit(np.array([self.user_number(user_id)]))[0])

    def consumption(self, user_id: str, *, day: float | None = None) -> NDArray[np.float64]:
        """Return the probability of every item to be the user's next, [N], sums to 1.

        The log approaches it by a choice among a few items offered by popularity and trend, and
        leaves out items taken before.

        Args:
            user_id: the user.
            day: day of the log; None is its end.
        """
        when = self.spec.days if day is None else day
        user = self.users[self.user_number(user_id)]
        weight = (
            self.popularity * self.trend(np.array([when]))[0] * np.exp(self._pull(user[None]))[0]
        )
        return np.asarray(weight / weight.sum(), dtype=np.float64)

    def trend(self, days: NDArray[Any]) -> NDArray[np.float64]:
        """Return [T, N] by how much exposure is multiplied; 0 before an item's release."""
        age = days[:, None] - self.release[None, :]
        month = 30.0
        fading = np.exp(-self.spec.drift * np.maximum(age, 0) / (6 * month))
        return np.where(age >= 0, 0.2 + 0.8 * fading, 0.0)

    def genre(self) -> NDArray[np.int64]:
        """Return every item's genre, [N]."""
        rng = np.random.default_rng([self.spec.seed, 1])
        return rng.integers(len(_GENRES), size=self.spec.n_items)

    def item_table(self) -> pa.Table:
        """Return item_id, title, genre and release time."""
        genre = self.genre()
        number = np.arange(self.spec.n_items)
        titles = [
            f"{_ADJECTIVES[n % 8]} {_NOUNS[n // 8 % 8]} {n // 64 + 1} ({_GENRES[g]})"
            for n, g in zip(number, genre, strict=True)
        ]
        released = START + (self.release.astype(np.float64) * DAY).astype(np.int64)
        return pa.table(
            {
                "item_id": self.item_ids(),
                "title": titles,
                "genre": [_GENRES[g] for g in genre],
                "released": released,
            }
        )

    def log_block(self, block: int) -> pa.Table:
        """Return the interactions of the users of one block, `INTERACTION_SCHEMA`.

        A user's times are drawn first; at each a few items are offered by popularity and trend,
        and the user takes one of them by taste (the Gumbel-max trick), never one twice.
        """
        spec = self.spec
        first = block * BLOCK_USERS
        users = np.arange(first, min(first + BLOCK_USERS, spec.n_users))
        rng = np.random.default_rng([spec.seed, 2, block])
        mean = spec.n_interactions / spec.n_users
        counts = np.minimum(rng.geometric(1 / mean, len(users)) + 2, spec.n_items // 2)
        user = np.repeat(users, counts)
        joined = rng.random(len(users)) * 0.6
        share = np.repeat(joined, counts) + (1 - np.repeat(joined, counts)) * rng.random(len(user))
        day = share * spec.days
        item = self._offer(user, day, rng)
        # A repeat of an item says nothing new: the earliest stays.
        order = np.lexsort((day, item, user))
        pair = user[order] * np.int64(spec.n_items) + item[order]
        order = order[np.concatenate(([True], pair[1:] != pair[:-1]))] if len(pair) else order
        user, item, day = user[order], item[order], day[order]
        return self._log(user, item, day, rng)

    def _offer(
        self, user: NDArray[np.int64], day: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return one item per visit: the best by taste and luck of several that were shown."""
        taken = np.zeros(len(user), dtype=np.int64)
        order = np.argsort(day)
        edges = np.linspace(0, self.spec.days, 53)
        week = np.searchsorted(edges, day[order], side="right") - 1
        for number in np.unique(week):
            visits = order[week == number]
            weight = self.popularity * self.trend(edges[number : number + 1])[0]
            cumulative = np.cumsum(weight / weight.sum())
            shown = first_at_least(cumulative, rng.random((len(visits), _OFFERED)))
            pull = np.einsum("vd,vcd->vc", self.users[user[visits]], self.items[shown])
            luck = rng.gumbel(size=pull.shape)
            chosen = np.argmax(2 * self.spec.taste_pull * pull + luck, axis=1)
            taken[visits] = shown[np.arange(len(visits)), chosen]
        return taken

    def _log(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        day: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> pa.Table:
        taste = np.einsum("md,md->m", self.users[user], self.items[item])
        logit = (
            self._logit(taste) + self.quality[item] + self.spec.noise * rng.normal(size=len(user))
        )
        rating = 1 + np.searchsorted(_RATING_STEPS, logit)
        rated = self.spec.rated
        event = pa.nulls(len(user), pa.string())
        if not rated:
            liked = pa.array((logit > _RATING_STEPS[2]).astype(np.int8))
            event = pa.array(["view", "like"]).take(liked)
        return pa.Table.from_arrays(
            [
                _ids("u", user, self.spec.n_users),
                _ids("i", item, self.spec.n_items),
                pa.array(rating.astype(np.float32)) if rated else pa.nulls(len(user), pa.float32()),
                pa.array(START + (day * DAY).astype(np.int64)),
                event,
            ],
            schema=INTERACTION_SCHEMA,
        )

    def _pull(self, users: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(2 * self.spec.taste_pull * (users @ self.items.T), dtype=np.float64)

    def _enjoyment_logit(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._logit(self.users[rows] @ self.items.T) + self.quality[None, :]

    def _logit(self, taste: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(3.0 * taste, dtype=np.float64)


def n_blocks(spec: WorldSpec) -> int:
    """Return how many blocks of users there are."""
    return -(-spec.n_users // BLOCK_USERS)


def write_block(block: int, *, world: World, folder: str) -> int:
    """Write one block of the log to `folder` and return its rows."""
    table = world.log_block(block)
    pq.write_table(table, f"{folder}/part-{block:05d}.parquet")
    return len(table)


def _ids(letter: str, numbers: NDArray[np.int64], n: int) -> pa.Array:
    """Return the ids of some of n numbers: all of the same length."""
    digits = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), len(str(n)), "0")
    return pc.binary_join_element_wise(letter, digits, "")


def first_at_least(ascending: NDArray[np.float64], keys: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the place of the first value that is not below each key, the last where all are.

    As `searchsorted` would, but with a table of where each part of [0, 1] begins.

    Args:
        ascending: [N], from 0 to about 1.
        keys: of any shape, in [0, 1).
    """
    found = np.empty(keys.size, dtype=np.int64)
    _first_at_least(ascending, keys.ravel(), found)
    return found.reshape(keys.shape)


@compiled
def _first_at_least(ascending: Any, keys: Any, found: Any) -> None:
    n = len(ascending)
    begins = np.empty(n + 1, dtype=np.int32)
    place = 0
    for part in range(n + 1):
        while place < n - 1 and ascending[place] < part / n:
            place += 1
        begins[part] = place
    for number in range(len(keys)):
        key = keys[number]
        place = begins[int(key * n)]
        while place > 0 and ascending[place - 1] >= key:  # the product was rounded up
            place -= 1
        while place < n - 1 and ascending[place] < key:
            place += 1
        found[number] = place


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def _unit_rows(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)
