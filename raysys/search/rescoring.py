"""Exact scores of a user's candidates, by the autoencoder.

Letters: C candidates of a user, N items of the model, Hc size of the consume block.

An upserted item (item_num N and up) has a vector [g, l] and biases but no rows in the model: its
consume score g . z_c + prior is exact, log P(i | u) takes the normaliser of the model's own items,
the logit of P(like) is the linear form that the index ranks by, and it has no levels and no
expected rating.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from raysys.autoencoder.item_scores import ItemScores
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.rankings import Needs, Ranking, meets
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.search.changes import Changes
from raysys.search.query import Items, Ranked


@torch.inference_mode()
def encode(model: Conv4Rec, history: Cells, fitted_until: int | None) -> torch.Tensor:
    """Return the latents [B, H] of profiles.

    Ages count from the end of the fitted period, or from a user's newest cell if that is later; so
    they depend neither on the clock nor on who else is in the batch.
    """
    if fitted_until is None:
        return model.encode(ragged(history))
    late = np.zeros(history.n_users, dtype=np.int64)
    some = history.counts > 0
    late[some] = history.timestamp[history.offsets[1:][some] - 1] - fitted_until
    moved = history.timestamp - np.repeat(np.maximum(late, 0), history.counts)
    history = dataclasses.replace(history, timestamp=moved)
    return model.encode(ragged(history, reference_time=fitted_until))


def best_of(
    model: Conv4Rec,
    z: torch.Tensor,
    nums: Items,
    *,
    changes: Changes | None,
    top_k: int,
    ranking: Ranking,
) -> Ranked:
    """Return the best candidates by the exact score of a ranking.

    Args:
        model: the autoencoder.
        z: latent [H] of the user.
        nums: candidates [C].
        changes: upserted items, where there are any.
        top_k: length of the list.
        ranking: one of the model's.
    """
    exact = exact_scores(model, z, nums, changes)
    scores = ranking.exact(exact)
    order = np.argsort(-scores, kind="stable")[:top_k]
    rating = exact.expected_rating
    return Ranked(
        item_nums=nums[order],
        scores=scores[order],
        p_consume=np.exp(exact.log_p_consume[order]),
        p_like=exact.p_like[order],
        expected_rating=None if rating is None else rating[order],
        level_probs=exact.level_probs[order],
    )


def exact_scores(
    model: Conv4Rec, z: torch.Tensor, nums: Items, changes: Changes | None
) -> ItemScores:
    """Return the scores of candidates [C] (see the module's docstring)."""
    fresh = nums >= model.n_items
    if changes is None or not fresh.any():
        return model.score_items(z, nums)
    known = model.score_items(z, np.where(fresh, 0, nums))
    rows = nums[fresh] - model.n_items
    z_c, z_l = (part[0].numpy() for part in model.split(z[None]))
    width = model.width
    vectors, bias = changes.vectors[rows], changes.bias[rows]
    consume = vectors[:, :width] @ z_c + bias[:, 0]
    if meets(model.levels, Needs.LIKED):
        p_like = expit(vectors[:, width:] @ z_l + bias[:, 1])
    else:
        p_like = float(model.levels.liked_array().all())
    anchor = model.score_items(z, np.zeros(1, dtype=np.int64))
    norm = _link(model, anchor.consume_score)[0] - anchor.log_p_consume[0]
    rating = known.expected_rating
    return dataclasses.replace(
        known,
        log_p_consume=_put(known.log_p_consume, fresh, _link(model, consume) - norm),
        level_probs=_put(known.level_probs, fresh, np.nan),
        p_like=_put(known.p_like, fresh, p_like),
        expected_rating=None if rating is None else _put(rating, fresh, np.nan),
        consume_score=_put(known.consume_score, fresh, consume),
    )


def _link(model: Conv4Rec, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    linked: NDArray[np.float32] = model.link(torch.from_numpy(scores.astype(np.float32))).numpy()
    return linked


def _put(
    values: NDArray[np.float32], where: NDArray[np.bool_], new: NDArray[np.float32] | float
) -> NDArray[np.float32]:
    out = values.copy()
    out[where] = new
    return out
