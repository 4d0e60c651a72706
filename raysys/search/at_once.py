"""Lists of several users from their candidates, in a call or two for all of them.

Letters: B users, M candidates of all of them, H size of a latent, Hc of its consume block, R levels
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.data.compiled import compiled
from raysys.index.best import best_places
from raysys.scoring.item_scores import ItemScores
from raysys.scoring.rankings import Ranking
from raysys.scoring.scorer import Scorer
from raysys.scoring.steps import consume_scores, item_scores
from raysys.search.query import Items, Ranked


def best_by_consume(
    scorer: Scorer,
    z: Floats,
    nums: Items,
    places: NDArray[np.int64],
    log_z: Floats,
    *,
    top_k: int,
) -> Iterator[Ranked]:
    """Yield the best candidates of users by consume score, with levels of these alone.

    Args:
        scorer: the model.
        z: latents [B, H].
        nums: [M] candidates, user by user.
        places: [B + 1] those of each.
        log_z: [B].
        top_k: length of the lists.
    """
    ends = _ends(places, top_k)
    size = int(ends[-1])
    best, scores = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float32)
    log_p, probs, sums = scorer.room(size)
    users = np.ascontiguousarray(z[:, : scorer.width]), np.ascontiguousarray(z)
    asked = nums.astype(np.int64), places, log_z
    _score_best(*scorer.held, *users, *asked, ends, best, scores, log_p, probs, sums)
    yield from _lists(scorer, ends, best, scores, log_p, probs, sums)


@compiled
def _score_best(
    consuming: tuple[Any, ...],
    leveled: tuple[Any, ...],
    consume_z: NDArray[Any],
    z: NDArray[Any],
    nums: NDArray[Any],
    places: NDArray[Any],
    log_z: NDArray[Any],
    ends: NDArray[Any],
    best: NDArray[Any],
    scores: NDArray[Any],
    log_p: NDArray[Any],
    probs: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    """Write the best candidates of several users, at `ends` [B + 1], and what the model says.

    Args:
        consuming: `held` of `Scorer`.
        leveled: the same.
        consume_z: [B, Hc] latents.
        z: [B, H] all of them.
        nums: [M] int64 candidates, user by user.
        places: [B + 1] those of each.
        log_z: [B].
        ends: [B + 1] where the best of each are written.
        best: int64, their items, written.
        scores: float32, their consume scores, written.
        log_p: see `item_scores`.
        probs: the same.
        sums: the same.
    """
    consume = np.empty(nums.shape[0], np.float32)
    consume_scores(consuming, consume_z, nums, places, consume)
    order = np.empty(best.shape[0], np.int32)
    for user in range(z.shape[0]):
        mine = order[ends[user] : ends[user + 1]]
        best_places(consume[places[user] : places[user + 1]], mine)
        for n in range(mine.shape[0]):
            at = places[user] + mine[n]
            best[ends[user] + n], scores[ends[user] + n] = nums[at], consume[at]
    item_scores(leveled, consuming[3:], z, best, ends, log_z, scores, log_p, probs, sums)


def best_by(
    ranking: Ranking,
    scorer: Scorer,
    z: Floats,
    nums: Items,
    places: NDArray[np.int64],
    log_z: Floats,
    *,
    top_k: int,
) -> Iterator[Ranked]:
    """Yield the best candidates of users by a ranking; other arguments as in `best_by_consume`."""
    log_p, probs, sums = scorer.room(len(nums))
    users = np.ascontiguousarray(z[:, : scorer.width]), np.ascontiguousarray(z)
    asked, consume = (nums.astype(np.int64), places), np.empty(len(nums), dtype=np.float32)
    _score_all(*scorer.held, *users, *asked, log_z, consume, log_p, probs, sums)
    rating = sums[2] if scorer.levels.n_rated else None
    scores = ranking.exact(ItemScores(log_p, probs, sums[0], rating, consume))
    ends = _ends(places, top_k)
    size = int(ends[-1])
    best, best_scores = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float32)
    room = scorer.room(size)
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    _take_best(scores, *asked, ends, log_p, probs, sums, best, best_scores, *room)
    yield from _lists(scorer, ends, best, best_scores, *room)


@compiled
def _score_all(
    consuming: tuple[Any, ...],
    leveled: tuple[Any, ...],
    consume_z: NDArray[Any],
    z: NDArray[Any],
    nums: NDArray[Any],
    places: NDArray[Any],
    log_z: NDArray[Any],
    consume: NDArray[Any],
    log_p: NDArray[Any],
    probs: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    """Write what the model says of all candidates; arguments as in `_score_best`.

    `consume` [M] are their consume scores, float32, written.
    """
    consume_scores(consuming, consume_z, nums, places, consume)
    item_scores(leveled, consuming[3:], z, nums, places, log_z, consume, log_p, probs, sums)


@compiled
def _take_best(
    scores: NDArray[Any],
    nums: NDArray[Any],
    places: NDArray[Any],
    ends: NDArray[Any],
    log_p: NDArray[Any],
    probs: NDArray[Any],
    sums: NDArray[Any],
    best: NDArray[Any],
    best_scores: NDArray[Any],
    best_log_p: NDArray[Any],
    best_probs: NDArray[Any],
    best_sums: NDArray[Any],
) -> None:
    """Write the best candidates of several users and what is said of them.

    Args:
        scores: [M] float32, what they are ordered by.
        nums: [M], candidates, user by user.
        places: [B + 1] those of each.
        ends: [B + 1] where the best of each are written.
        log_p: see `item_scores`.
        probs: the same.
        sums: the same.
        best: int64, items of the best, written.
        best_scores: float32, written.
        best_log_p: of these, written.
        best_probs: the same.
        best_sums: the same.
    """
    order = np.empty(best.shape[0], np.int32)
    for user in range(ends.shape[0] - 1):
        mine = order[ends[user] : ends[user + 1]]
        best_places(scores[places[user] : places[user + 1]], mine)
        for n in range(mine.shape[0]):
            at, to = places[user] + mine[n], ends[user] + n
            best[to], best_scores[to], best_log_p[to] = nums[at], scores[at], log_p[at]
            best_probs[to] = probs[at]
            best_sums[:, to] = sums[:, at]


def _ends(places: NDArray[np.int64], top_k: int) -> NDArray[np.int64]:
    """Return where the lists [B + 1] of users end whose candidates lie at `places` [B + 1]."""
    ends = np.zeros(len(places), dtype=np.int64)
    np.minimum(places[1:] - places[:-1], top_k).cumsum(out=ends[1:])
    return ends


def _lists(
    scorer: Scorer,
    ends: NDArray[np.int64],
    best: NDArray[np.int64],
    scores: Floats,
    log_p: Floats,
    probs: Floats,
    sums: Floats,
) -> Iterator[Ranked]:
    """Yield the lists that lie one behind the other; see `_take_best`."""
    nums, rated, p_consume = best.astype(np.int32), scorer.levels.n_rated > 0, p_of(log_p)
    for start, stop in itertools.pairwise(ends.tolist()):
        part = slice(start, stop)
        yield Ranked(
            item_nums=nums[part],
            scores=scores[part],
            p_consume=p_consume[part],
            p_like=sums[0, part],
            expected_rating=sums[2, part] if rated else None,
            level_probs=probs[part],
        )


def p_of(log_p: Floats) -> Floats:
    """Return P(i | u); an upserted item is not in Z, so that its log may be positive."""
    return np.exp(np.minimum(log_p, 0))
