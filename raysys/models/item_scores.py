"""What the autoencoder says of some items for one user.

Letters: C items of a request, N items of the catalogue, R levels, K output channels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.data.schema import RANKINGS, RatingLevels


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """What the model says of C items for one user.

    Attributes:
        log_p_consume: [C] log P(i | u), over the whole catalogue.
        level_probs: [C, R] P(r | i, u).
        p_like: [C] probability of a liked level.
        expected_rating: [C] in rating units, over the rated levels; None without them.
        consume_score: [C] what the consume ranking sorts by; same order as log_p_consume.
    """

    log_p_consume: NDArray[np.float32]
    level_probs: NDArray[np.float32]
    p_like: NDArray[np.float32]
    expected_rating: NDArray[np.float32] | None
    consume_score: NDArray[np.float32]

    def ranking_score(self, ranking: str, gamma: float) -> NDArray[np.float32]:
        """Return [C] the scores of a ranking, higher is better."""
        if ranking == "consume":
            return self.consume_score
        if ranking == "rating":
            assert self.expected_rating is not None, "a log without ratings has no such ranking"
            return self.expected_rating
        like = np.log(np.maximum(self.p_like, 1e-30))
        return like if ranking == "like" else like - np.float32(gamma) * self.log_p_consume


def rankings_of(levels: RatingLevels) -> tuple[str, ...]:
    """Return the rankings that a model of these levels can give."""
    liked = levels.liked_array()
    able = {"consume"}
    if levels.n_rated > 1:
        able.add("rating")
    if liked.any() and not liked.all():
        able |= {"like", "discover"}
    return tuple(ranking for ranking in RANKINGS if ranking in able)


def like_expansion(
    logits: Tensor, liked: Tensor, table: Tensor, vectors: Tensor, user: Tensor, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logit P(like) [N] and its gradient with respect to z_l, [N, Hl + 1 + F + R].

    The logit orders items as P does and is closer to linear in the latent than log P, which
    saturates: at the mean latent it holds the order far from it too.

    Args:
        logits: [N, R] level logits of all items at one latent.
        liked: int64 numbers of the liked levels.
        table: [K, R], from output channels to levels.
        vectors: [N, K, Hl], from the latent to output channels.
        user: [N, K, 1 + F], from the user's factors to output channels.
        shares: [R], what the user's log shares count.
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[liked] = True
    above, below = (logits[:, part].logsumexp(dim=1) for part in (chosen, ~chosen))
    slope = torch.where(chosen, logits - above[:, None], logits - below[:, None]).exp()
    slope = torch.where(chosen, slope, -slope)  # [N, R]
    channels = (slope @ table.T)[:, :, None]  # [N, K, 1]
    latent, factors = ((channels * part).sum(dim=1) for part in (vectors, user))
    return above - below, torch.cat([latent, factors, slope * shares], dim=1)
