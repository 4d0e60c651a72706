"""Exact scores of a user's candidates, by the model's compact weights.

Letters: C candidates of a user, N items of the model, Hc size of the consume block.

An upserted item (item_num N and up) has a vector [g, l] and biases but no rows in the model: its
consume score g . z_c + prior is exact, log P(i | u) takes the normaliser of the model's own items,
the logit of P(like) is the linear form that the index ranks by, and it has no levels and no
expected rating.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from raysys.data.arrays import Floats
from raysys.index.heap import best_places
from raysys.scoring.item_scores import ItemScores
from raysys.scoring.rankings import Needs, Ranking, meets
from raysys.scoring.scorer import Scorer
from raysys.search.changes import Changes
from raysys.search.query import Items, Ranked


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
    """
    if ranking.rule.needs is Needs.NOTHING and changes is None:  # levels of the best alone
        consume = scorer.consume_scores(z, nums) if consume is None else consume
        order = _best(consume, top_k)
        nums, consume = nums[order], consume[order]
    exact = exact_scores(scorer, z, nums, log_z, changes, consume)
    scores = ranking.exact(exact)
    order = _best(scores, top_k)
    rating = exact.expected_rating
    return Ranked(
        item_nums=nums[order],
        scores=scores[order],
        p_consume=np.exp(np.minimum(exact.log_p_consume[order], 0)),  # an upsert is not in Z
        p_like=exact.p_like[order],
        expected_rating=None if rating is None else rating[order],
        level_probs=exact.level_probs[order],
    )


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


def _put(values: Floats, where: NDArray[np.bool_], new: Floats | float) -> Floats:
    out = values.copy()
    out[where] = new
    return out
