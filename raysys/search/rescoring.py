"""Exact scores of a user's candidates, by the model's compact weights.

Letters: C candidates of a user, N items of the model, Hc size of the consume block.

An upserted item (item_num N and up) has a vector [g, l] and biases but no rows in the model: its
consume score g . z_c + prior is exact, log P(i | u) takes the normaliser of the model's own items,
the logit of P(like) is the linear form that the index ranks by, and it has no levels and no
expected rating.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from raysys.data.arrays import Floats
from raysys.data.compiled import compiled
from raysys.index.best import best_places
from raysys.scoring.item_scores import ItemScores
from raysys.scoring.normaliser import N_BEST, Normaliser
from raysys.scoring.rankings import Needs, Ranking, meets
from raysys.scoring.scorer import Scorer
from raysys.scoring.steps import consume_scores, item_scores
from raysys.search.changes import Changes
from raysys.search.query import Items, Ranked
from raysys.search.steering import Limits, Steerings, lifted, shares_of

_AT_ONCE = 64  # users whose scores of all items are held


def best_of(
    scorer: Scorer,
    z: Floats,
    nums: Items,
    *,
    log_z: float,
    changes: Changes | None,
    top_k: int,
    ranking: Ranking,
    consume: Floats | None = None,
    shares: Floats | None = None,
    bare: bool = False,
) -> Ranked:
    """Return the best candidates by the exact score of a ranking.

    Args:
        scorer: the model.
        z: latent [H] of the user.
        nums: candidates [C].
        log_z: log of the user's normaliser of P(consume).
        changes: upserted items, where there are any.
        top_k: length of the list.
        ranking: one of the model's.
        consume: consume scores [C] of the candidates, where they are at hand.
        shares: [C] what they hold of steered atoms, see `steering.py`; None: nothing is steered.
        bare: leave out what the order does not need.
    """
    steered: Floats | None = None
    if ranking.rule.needs is Needs.NOTHING and changes is None:  # levels of the best alone
        consume = scorer.consume_scores(z, nums) if consume is None else consume
        steered = consume if shares is None else lifted(consume, shares)
        order = _best(steered, top_k)
        nums, consume, steered = nums[order], consume[order], steered[order]
        if bare:
            return Ranked(nums, steered)
    exact = exact_scores(scorer, z, nums, log_z, changes, consume)
    scores = ranking.exact(exact)
    if shares is not None:
        scores = lifted(scores, shares) if steered is None else steered
    order = _best(scores, top_k)
    rating = exact.expected_rating
    return Ranked(
        item_nums=nums[order],
        scores=scores[order],
        p_consume=_p_of(exact.log_p_consume[order]),
        p_like=exact.p_like[order],
        expected_rating=None if rating is None else rating[order],
        level_probs=exact.level_probs[order],
    )


def best_of_all(
    normaliser: Normaliser,
    z: Floats,
    limits: Limits,
    *,
    changes: Changes | None,
    top_k: int,
    ranking: Ranking,
    steerings: Steerings,
    bare: bool,
) -> Iterator[Ranked]:
    """Yield the lists of users from the scores of every item, where the normaliser is exact.

    Args:
        normaliser: of the model's items.
        z: latents [B, H].
        limits: what lists may hold, of [N + M] items.
        changes: upserted items, where there are any.
        top_k: length of the lists.
        ranking: one of the model's.
        steerings: what users raise and mute; None: nothing.
        bare: as in `best_of`.
    """
    exclude, alive, allow = limits
    alive = alive if allow is None else allow & alive
    fresh = np.zeros(len(alive) - normaliser.scorer.n_items, dtype=np.float32)
    for start in range(0, len(z), _AT_ONCE):
        consume, log_z = normaliser.of_all(z[start : start + _AT_ONCE])
        for row in range(len(consume)):
            allowed = alive
            if exclude is not None:
                allowed = alive.copy()
                allowed[exclude[start + row]] = False
            nums = np.flatnonzero(allowed).astype(np.int32)
            yield best_of(
                normaliser.scorer,
                z[start + row],
                nums,
                log_z=float(log_z[row]),
                changes=changes,
                top_k=top_k,
                ranking=ranking,
                consume=np.concatenate([consume[row], fresh])[nums],
                shares=shares_of(steerings, start + row, nums),
                bare=bare,
            )


def best_of_some(
    scorer: Scorer,
    z: Floats,
    found: Sequence[Items],
    log_z: Floats,
    *,
    changes: Changes | None,
    top_k: int,
    ranking: Ranking,
    shares: Sequence[Floats | None],
    bare: bool,
) -> Iterator[Ranked]:
    """Yield the lists of users z [B, H] from their candidates; other arguments as in `best_of`.

    Args:
        scorer: the model.
        z: latents [B, H].
        found: candidates by user.
        log_z: [B].
        changes: upserted items, where there are any.
        top_k: length of the lists.
        ranking: one of the model's.
        shares: by user.
        bare: as in `best_of`.
    """
    places = np.cumsum([0, *map(len, found)])
    every = np.concatenate(found) if len(found) > 1 else found[0]
    known = changes is None or not (every >= scorer.n_items).any()
    if known and ranking.rule.needs is Needs.NOTHING and not bare and _all_none(shares):
        yield from _best_by_consume(scorer, z, every, places, log_z, top_k=top_k)
        return
    # those of upserts, which the model has no row of, are not read
    consume = scorer.pair_scores(z, np.minimum(every, scorer.n_items - 1), places)
    if known:
        yield from _best_at_once(
            scorer,
            z,
            every,
            places,
            log_z,
            consume,
            top_k=top_k,
            ranking=ranking,
            shares=shares,
            bare=bare,
        )
        return
    for row, nums in enumerate(found):
        yield best_of(
            scorer,
            z[row],
            nums,
            log_z=float(log_z[row]),
            changes=changes,
            top_k=top_k,
            ranking=ranking,
            consume=consume[places[row] : places[row + 1]],
            shares=shares[row],
            bare=bare,
        )


def _all_none(shares: Sequence[Floats | None]) -> bool:
    return all(share is None for share in shares)


def _best_by_consume(
    scorer: Scorer,
    z: Floats,
    nums: Items,
    places: NDArray[np.int64],
    log_z: Floats,
    *,
    top_k: int,
) -> Iterator[Ranked]:
    """Yield what `_best_at_once` does by consume score where nothing is steered, in one call."""
    ends = np.zeros(len(places), dtype=np.int64)
    np.minimum(places[1:] - places[:-1], top_k).cumsum(out=ends[1:])
    size = int(ends[-1])
    best, scores = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float32)
    log_p, probs, sums = scorer.room(size)
    users = np.ascontiguousarray(z[:, : scorer.width]), np.ascontiguousarray(z)
    asked = nums.astype(np.int64), places, log_z
    _score_best(*scorer.held, *users, *asked, ends, best, scores, log_p, probs, sums)
    nums, rated, p_consume = best.astype(np.int32), scorer.levels.n_rated > 0, _p_of(log_p)
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


def _best_at_once(
    scorer: Scorer,
    z: Floats,
    nums: Items,
    places: NDArray[np.int64],
    log_z: Floats,
    consume: Floats,
    *,
    top_k: int,
    ranking: Ranking,
    shares: Sequence[Floats | None],
    bare: bool,
) -> Iterator[Ranked]:
    """Yield what `best_of` finds for users whose candidates `nums` lie at `places` [B + 1]."""
    exact, scores = None, consume
    if ranking.rule.needs is not Needs.NOTHING:
        exact = scorer.score_pairs(z, nums, places, log_z, consume)
        scores = ranking.exact(exact)
    orders, steered = [], []
    for (start, stop), share in zip(itertools.pairwise(places.tolist()), shares, strict=True):
        mine = scores[start:stop] if share is None else lifted(scores[start:stop], share)
        order = _best(mine, top_k)
        steered.append(mine[order])
        orders.append(order + start)
    ends, order = np.cumsum([0, *map(len, orders)]), np.concatenate(orders)
    columns: dict[str, Floats | None] = {"scores": np.concatenate(steered)}
    if exact is None and not bare:  # levels of the best alone
        exact = scorer.score_pairs(z, nums[order], ends, log_z, consume[order])
    elif exact is not None:
        exact = exact.taken(order)
    if exact is not None:
        columns |= {
            "p_consume": _p_of(exact.log_p_consume),
            "p_like": exact.p_like,
            "expected_rating": exact.expected_rating,
            "level_probs": exact.level_probs,
        }
    nums = nums[order]
    given = {name: column for name, column in columns.items() if column is not None}
    for start, stop in itertools.pairwise(ends.tolist()):
        own = {name: column[start:stop] for name, column in given.items()}
        yield Ranked(nums[start:stop], **own)


def exact_scores(
    scorer: Scorer,
    z: Floats,
    nums: Items,
    log_z: float,
    changes: Changes | None,
    consume: Floats | None = None,
) -> ItemScores:
    """Return the scores of candidates [C] (see the module's docstring).

    `consume` [C] are their consume scores where they are at hand; those of upserts are not read.
    """
    fresh = nums >= scorer.n_items
    if changes is None or not fresh.any():
        return scorer.score(z, nums, log_z, consume)
    known = scorer.score(z, np.where(fresh, 0, nums), log_z, consume)
    rows, width = nums[fresh] - scorer.n_items, scorer.width
    vectors, bias = changes.vectors[rows], changes.bias[rows]
    consume = (vectors[:, :width] @ z[:width] + bias[:, 0]).astype(np.float32)
    if meets(scorer.levels, Needs.LIKED):
        p_like = expit(vectors[:, width:] @ z[width:] + bias[:, 1])
    else:
        p_like = float(scorer.levels.liked_array().all())
    rating = known.expected_rating
    log_p = scorer.link(consume) - np.float32(log_z)
    return dataclasses.replace(
        known,
        log_p_consume=_put(known.log_p_consume, fresh, log_p),
        level_probs=_put(known.level_probs, fresh, np.nan),
        p_like=_put(known.p_like, fresh, p_like),
        expected_rating=None if rating is None else _put(rating, fresh, np.nan),
        consume_score=_put(known.consume_score, fresh, consume),
    )


def _best(scores: Floats, top_k: int) -> Items:
    """Return where the best of scores [C] stand, best first, the first of equals first."""
    places = np.empty(min(top_k, len(scores)), dtype=np.int32)
    best_places(np.ascontiguousarray(scores, dtype=np.float32), places)
    return places


def _p_of(log_p: Floats) -> Floats:
    """Return P(i | u); an upserted item is not in Z, so that its log may be positive."""
    return np.exp(np.minimum(log_p, 0))


def _put(values: Floats, where: NDArray[np.bool_], new: Floats | float) -> Floats:
    out = values.copy()
    out[where] = new
    return out


def summed(found: Items, gone: Items | None) -> Items:
    """Return what a sum takes exactly: the best items that were found, and some that are gone.

    Args:
        found: [B, K] best first, padded with -1.
        gone: items of the build that no search finds; None: none are to be summed.
    """
    best = found[:, :N_BEST]
    if gone is None or not len(gone):
        return best
    return np.concatenate([best, np.tile(gone, (len(best), 1))], axis=1)
