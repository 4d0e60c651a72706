"""Which events follow from which impressions, and what each user of an experiment did.

    impression t, items      event s on one of the items
        |<------ window_s ------>|            credited to the latest impression with t <= s
    first impression of the user
        |<------- horizon_s ------->|         what the user did early, the same time for all

Letters: U users of one arm, K arms.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.errors import DataError

Ints = NDArray[np.int64]

_ROUNDING = 1e-6  # of the sum of configured weights
IMPRESSION = ("impression_id", "arm", "user_id", "timestamp", "ranking", "build_id", "weight")


@dataclasses.dataclass(frozen=True)
class ExperimentUsers:
    """The users of an experiment in order of their first impressions, those of two arms left out.

    Attributes:
        arms: [K] names, sorted.
        user_ids: [U].
        arm: [U] number of the arm.
        first: [U] time of the first impression, UTC seconds.
        impressions: [U] of the whole experiment.
        conversions: [U] credited events of the whole experiment.
        early: [U] credited events within the horizon after the first impression.
        shares: [U, K] configured shares when the user came, rows sum to 1.
        configured: {arm: the weights that it had, the last one last}.
        builds: {arm: the (build_id, ranking) that its impressions name, most frequent first}.
        moved: ids of users seen in several arms.
    """

    arms: tuple[str, ...]
    user_ids: pa.Array
    arm: Ints
    first: Ints
    impressions: Ints
    conversions: Ints
    early: Ints
    shares: NDArray[np.float64]
    configured: dict[str, tuple[float, ...]]
    builds: dict[str, list[tuple[str, str]]]
    moved: list[str]


class Attribution:
    """Credits events to impressions that come part by part, in any order.

    Args:
        events: columns event_id, user_id, item_id, timestamp; those that count as conversions.
        window_s: seconds that an event may follow its impression.
        horizon_s: seconds after the first impression that count as early.
    """

    def __init__(self, events: pa.Table, *, window_s: int, horizon_s: int) -> None:
        self._window_s, self._horizon_s = window_s, horizon_s
        events = events.drop_null().combine_chunks()
        firsts = _first_of_each(events["user_id"], events["event_id"])
        events = events.take(pa.array(firsts))
        self._users, self._items = pc.unique(events["user_id"]), pc.unique(events["item_id"])
        keys = self._keys(
            _codes(events["user_id"], self._users), _codes(events["item_id"], self._items)
        )
        self._pairs, self._event_pair = np.unique(keys, return_inverse=True)
        self._event_time = _ints(events["timestamp"])
        self._parts: list[pa.Table] = []
        self._shown: list[tuple[Ints, Ints]] = []  # row of an impression, number of the pair
        self._n_rows = 0

    def add(self, impressions: pa.Table) -> None:
        """Take in impressions of one experiment: columns `IMPRESSION` and item_ids."""
        items = impressions["item_ids"].combine_chunks()
        row = _ints(pc.list_parent_indices(items))
        item = _codes(pc.list_flatten(items), self._items)
        user = _codes(impressions["user_id"], self._users)[row]
        known = (item >= 0) & (user >= 0)
        keys, row = self._keys(user[known], item[known]), row[known]
        at = np.searchsorted(self._pairs, keys)
        hit = np.zeros(len(keys), dtype=bool)
        if len(self._pairs):
            at = np.minimum(at, len(self._pairs) - 1)
            hit = self._pairs[at] == keys
        self._shown.append((row[hit] + self._n_rows, at[hit]))
        self._parts.append(impressions.select(IMPRESSION))
        self._n_rows += len(impressions)

    def users(self) -> ExperimentUsers:
        """Return what each user did.

        Raises:
            DataError: an impression has no arm or time, or a weight that is no share.
        """
        table = pa.concat_tables(self._parts).combine_chunks()
        ids = table["user_id"].combine_chunks().dictionary_encode()
        user, time = _ints(ids.indices), _ints(table["timestamp"])
        arms, arm = _arms(table)
        weight = _weights(table)
        whole = _first_of_each(table["impression_id"])
        n_users = len(ids.dictionary)
        first = np.full(n_users, np.iinfo(np.int64).max)
        np.minimum.at(first, user[whole], time[whole])
        low, high = np.full(n_users, len(arms)), np.full(n_users, -1)
        np.minimum.at(low, user[whole], arm[whole])
        np.maximum.at(high, user[whole], arm[whole])
        credited, when = self._credited(whole, time)
        early = when <= first[user[credited]] + self._horizon_s
        order = np.lexsort((_ints(pc.rank(ids.dictionary)), first))  # not in order of arms
        kept = order[low[order] == high[order]]
        first_weight = np.zeros(n_users)
        opening = whole[time[whole] == first[user[whole]]]
        first_weight[user[opening]] = weight[opening]
        shares = _shares(low[kept], first_weight[kept], len(arms))
        return ExperimentUsers(
            arms=arms,
            user_ids=ids.dictionary.take(pa.array(kept)),
            arm=low[kept],
            first=first[kept],
            impressions=_counts(user[whole], n_users)[kept],
            conversions=_counts(user[credited], n_users)[kept],
            early=_counts(user[credited][early], n_users)[kept],
            shares=shares,
            configured={
                name: _in_turn(weight[whole], np.where(arm[whole] == number, time[whole], -1))
                for number, name in enumerate(arms)
            },
            builds=_builds(table),
            moved=ids.dictionary.take(pa.array(order[low[order] != high[order]])).to_pylist(),
        )

    def _keys(self, user: Ints, item: Ints) -> Ints:
        return user * max(1, len(self._items)) + item

    def _credited(self, whole: Ints, time: Ints) -> tuple[Ints, Ints]:
        """Return the impression's row and the time of every event that is credited."""
        row = np.concatenate([rows for rows, _ in self._shown])
        pair = np.concatenate([pairs for _, pairs in self._shown])
        once = np.isin(row, whole)
        row, pair = row[once], pair[once]
        times = np.unique(time[row])
        size = len(times) + 1  # a place in time is 1..len(times), 0 before all of them
        places = pair * size + np.searchsorted(times, time[row]) + 1
        order = np.argsort(places, kind="stable")
        row, pair, places = row[order], pair[order], places[order]
        asked = self._event_pair * size + np.searchsorted(times, self._event_time, side="right")
        at = np.searchsorted(places, asked, side="right") - 1
        some = np.flatnonzero(at >= 0)
        some = some[pair[at[some]] == self._event_pair[some]]
        some = some[self._event_time[some] - time[row[at[some]]] <= self._window_s]
        return row[at[some]], self._event_time[some]


def _arms(table: pa.Table) -> tuple[tuple[str, ...], Ints]:
    """Return the names of the arms, sorted, and the number of every impression's."""
    names = sorted(pc.unique(table["arm"]).to_pylist())
    return tuple(names), _codes(table["arm"], pa.array(names, pa.string()))


def _weights(table: pa.Table) -> NDArray[np.float64]:
    weight: NDArray[np.float64] = table["weight"].to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~((weight > 0) & (weight <= 1)))
    if len(wrong):
        name = table["impression_id"][int(wrong[0])].as_py()
        raise DataError(
            f"impression {name!r} has weight {weight[wrong[0]]:g}: expected a share of users, "
            "above 0 and at most 1"
        )
    return weight


def _shares(arm: Ints, weight: NDArray[np.float64], n_arms: int) -> NDArray[np.float64]:
    """Return the shares [U, K] when each user came: of every arm the weight that it had last.

    Before its first user an arm has its first weight, and after its last the last one. Where the
    arms together would have more than all users some were not there yet, or no longer: those whose
    users are farthest.
    """
    shares = np.zeros((len(arm), n_arms))
    distance = np.zeros((len(arm), n_arms), dtype=np.int64)  # in users, to the next of the arm
    at = np.arange(len(arm))
    for number in range(n_arms):
        rows = np.flatnonzero(arm == number)
        if len(rows):
            last = np.searchsorted(rows, at, side="right") - 1
            shares[:, number] = weight[rows[np.maximum(last, 0)]]
            distance[:, number] = np.maximum(np.maximum(rows[0] - at, at - rows[-1]), 0)
    for _ in range(n_arms - 1):
        crowded = np.flatnonzero(shares.sum(axis=1) > 1 + _ROUNDING)
        farthest = distance[crowded].argmax(axis=1)
        away = distance[crowded, farthest] > 0
        shares[crowded[away], farthest[away]] = 0.0
        distance[crowded[away], farthest[away]] = 0
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return shares


def _in_turn(weight: NDArray[np.float64], time: Ints) -> tuple[float, ...]:
    """Return the weights whose time is 0 or more, each once, the last one last."""
    rows = np.flatnonzero(time >= 0)
    rows = rows[np.argsort(-time[rows], kind="stable")]
    values, since = np.unique(weight[rows], return_index=True)
    return tuple(values[np.argsort(-since)].tolist())


def _builds(table: pa.Table) -> dict[str, list[tuple[str, str]]]:
    keys = ["arm", "build_id", "ranking"]
    counts = table.select(keys).group_by(keys).aggregate([([], "count_all")])
    rows = sorted(counts.to_pylist(), key=lambda row: -row["count_all"])
    builds: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        place = (row["build_id"] or "", row["ranking"] or "")
        builds.setdefault(row["arm"], []).append(place)
    return builds


def _first_of_each(*columns: Any) -> Ints:
    """Return the rows, ascending, that hold the values of some columns together first."""
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        encoded = column.combine_chunks().dictionary_encode()
        codes = codes * max(len(encoded.dictionary), 1) + _ints(encoded.indices)
    return np.sort(np.unique(codes, return_index=True)[1])


def _codes(values: Any, known: Any) -> Ints:
    """Return the place of each value among the known ones, -1 where it is not."""
    return _ints(pc.fill_null(pc.index_in(values, value_set=known), -1))


def _ints(values: Any) -> Ints:
    return np.asarray(values).astype(np.int64, copy=False)


def _counts(numbers: Ints, size: int) -> Ints:
    return np.bincount(numbers, minlength=size).astype(np.int64)
