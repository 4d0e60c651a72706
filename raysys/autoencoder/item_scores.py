"""What the autoencoder says of some items for one user.

Letters: C items of a request, R levels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.data.schema import RatingLevels


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

    @property
    def log_p_like(self) -> NDArray[np.float32]:
        """Log P(a liked level | i, u), [C]."""
        return np.log(np.maximum(self.p_like, 1e-30))


def log_p_like(log_p: Tensor, levels: RatingLevels) -> Tensor:
    """Return log P(a liked level) from log P(level) [..., R]."""
    return torch.logsumexp(log_p[..., liked_levels(levels)], dim=-1)


def liked_levels(levels: RatingLevels) -> Tensor:
    """Return the numbers of the levels that say a user liked an item."""
    return torch.from_numpy(np.flatnonzero(levels.liked_array()))


def expected_rating(log_p: Tensor, levels: RatingLevels) -> Tensor:
    """Return E[rating] over the rated levels, in rating units, from log P(level) [..., R]."""
    n_rated = levels.n_rated
    values = torch.from_numpy(levels.value_array()[:n_rated])
    return torch.softmax(log_p[..., :n_rated], dim=-1) @ values
