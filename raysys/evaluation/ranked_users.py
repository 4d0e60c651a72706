"""What a ranking's metrics add up: sums per user over a block of users with targets and lists.

`metric_table.py` names the columns; here is how each is summed, and into which slices users and
targets fall.

Letters: B users in a block, N items, M targets.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.evaluation import metrics
from raysys.evaluation.bootstrap import fixed_point

LIST_LENGTH = 100
POPULARITY_SLICES = 10
HISTORY_EDGES = (1, 5, 10, 20, 50, 100, 200, 500)
NO_HISTORY = "0"

_SECONDS_PER_DAY = 86_400.0

Counts = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class RankedUsers:
    """B users with their targets and lists.

    Attributes:
        history: what the ranker saw.
        targets: M new items, each once per user.
        ranks: [M] position of each target in its user's list, 1 is the best, 0 not listed.
        lists: [B, SLICE_K] items best first, -1 padded.
        weights: {beta: [N]} weight of each item, in fixed point.
        surprise: [N] -log2 of each item's share of the training interactions, in fixed point.
        tenths: [N] popularity slice of each item.
    """

    history: Cells
    targets: Cells
    ranks: NDArray[np.int32]
    lists: NDArray[np.int32]
    weights: Mapping[float, Counts]
    surprise: Counts
    tenths: Counts

    def hits(self, k: int) -> NDArray[np.bool_]:
        """Tell which targets [M] stand among the first k."""
        return np.asarray((self.ranks > 0) & (self.ranks <= k))

    def total(self, values: NDArray[Any]) -> Counts:
        """Return the sums [B] of values per target [M], exactly."""
        return summed(self.targets, values)

    def among(self, mask: NDArray[np.bool_]) -> RankedUsers:
        """Return the same users with the targets [M] of a mask alone."""
        return dataclasses.replace(self, targets=self.targets.take(mask), ranks=self.ranks[mask])


def with_targets(users: RankedUsers) -> Counts:
    """Count 1 for every user who has a target."""
    return np.asarray(users.targets.counts > 0, dtype=np.int64)


def listed(users: RankedUsers) -> Counts:
    """Count the items of each list."""
    return np.asarray((users.lists >= 0).sum(axis=1))


def recall(users: RankedUsers, k: int) -> Counts:
    """Return hits / min(k, targets) of each user, in fixed point."""
    possible = np.maximum(users.targets.counts, 1)
    return fixed_point(users.total(users.hits(k)) / np.minimum(possible, k))


def hit(users: RankedUsers, k: int) -> Counts:
    """Count 1 for every list that holds a target among the first k."""
    return np.asarray(users.total(users.hits(k)) > 0, dtype=np.int64)


def ndcg(users: RankedUsers, k: int) -> Counts:
    """Return the binary NDCG@k of each user, in fixed point."""
    gains = np.concatenate(([0.0], metrics.discounts(LIST_LENGTH)))
    gain = gains[np.where(users.ranks <= k, users.ranks, 0)]
    dcg = np.bincount(users.targets.rows, weights=gain, minlength=len(users.lists))
    possible = np.minimum(np.maximum(users.targets.counts, 1), k)
    return fixed_point(dcg / np.cumsum(gains)[possible])


def weight_sum(users: RankedUsers, beta: float, k: int | None = None) -> Counts:
    """Sum the weights of targets, of those among the first k where that is given."""
    weights = users.weights[beta][users.targets.item_num]
    return users.total(weights if k is None else np.where(users.hits(k), weights, 0))


def surprise_sum(users: RankedUsers) -> Counts:
    """Sum the surprise of the items of each list."""
    lists = users.lists
    return np.asarray(np.where(lists >= 0, users.surprise[np.maximum(lists, 0)], 0).sum(axis=1))


def target_count(
    users: RankedUsers, inside: Callable[[RankedUsers], NDArray[np.bool_]], k: int | None = None
) -> Counts:
    """Count the targets of a slice, those among the first k where that is given."""
    counted = inside(users)
    return users.total(counted if k is None else counted & users.hits(k))


def in_tenth(users: RankedUsers, tenth: int) -> NDArray[np.bool_]:
    """Tell which targets [M] are of a tenth of popularity."""
    return np.asarray(users.tenths[users.targets.item_num] == tenth)


def of_level(users: RankedUsers, level: int) -> NDArray[np.bool_]:
    """Tell which targets [M] have a level."""
    return np.asarray(users.targets.level == level)


def history_is(users: RankedUsers, number: int) -> Counts:
    """Count 1 for every user whose history falls in a slice."""
    return np.asarray(history_slice(users.history.counts) == number, dtype=np.int64)


def recall_with_history(users: RankedUsers, number: int, k: int) -> Counts:
    """Return the recall of the users whose history falls in a slice, 0 of others."""
    return recall(users, k) * history_is(users, number)


def after_cut(users: RankedUsers, *, cut: int, edges: Sequence[float], number: int) -> RankedUsers:
    """Keep the targets whose days after the cut fall in a bucket of `bucket_names`."""
    return users.among(_bucket(users.targets.timestamp - cut, edges) == number)


def last_seen(users: RankedUsers, *, cut: int, edges: Sequence[float], number: int) -> RankedUsers:
    """Keep the targets of users whose last history cell lies in a bucket of days before the cut."""
    history = users.history
    away = np.full(history.n_users, -1)
    known = history.counts > 0
    last = history.timestamp[history.offsets[1:][known] - 1]  # cells are in order of time
    away[known] = _bucket(cut - last, edges)
    return users.among((away == number)[users.targets.rows])


def bucket_names(edges: Sequence[float]) -> list[str]:
    """Return the names of buckets of days: "0-1", "1-7", "7-30", "30-180", "180+"."""
    pairs = itertools.pairwise((0, *edges))
    return [*(f"{a:g}-{b:g}" for a, b in pairs), f"{edges[-1]:g}+"] if edges else []


def _bucket(seconds: NDArray[np.int64], edges: Sequence[float]) -> NDArray[np.int64]:
    return np.searchsorted(np.array(edges), seconds / _SECONDS_PER_DAY, side="right")


def summed(targets: Cells, values: NDArray[Any]) -> Counts:
    """Return the sums [B] of values per target [M], exactly."""
    total = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    sums: Counts = total[targets.offsets[1:]] - total[targets.offsets[:-1]]
    return sums


def history_names() -> list[str]:
    """Return the names of the history slices: "0", "1-4", "5-9" ... "500+"."""
    edges = HISTORY_EDGES
    names = [f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    return [NO_HISTORY, *names, f"{edges[-1]}+"]


def history_slice(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position in `history_names` of each history length."""
    return np.searchsorted(np.array(HISTORY_EDGES), lengths, side="right")


def popularity_slice(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 .. 9 per item: tenths of the interactions, the most popular items first.

    Args:
        counts: [N] training interactions per item.
    """
    order = np.lexsort((np.arange(len(counts)), -counts))
    before = np.cumsum(counts[order]) - counts[order]
    tenth = before * POPULARITY_SLICES // max(int(counts.sum()), 1)
    slices = np.empty(len(counts), dtype=np.int64)
    slices[order] = np.minimum(tenth, POPULARITY_SLICES - 1)
    return slices
