"""Level probabilities as what rankings sort by; R levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raysys.data.schema import RatingLevels


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
