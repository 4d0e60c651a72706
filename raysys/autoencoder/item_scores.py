"""What the autoencoder says of some items for one user, and of all items for several.

Letters: B users, C items of a request, N items of the catalogue, R levels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.data.schema import RatingLevels

if TYPE_CHECKING:
    from raysys.autoencoder.model import Conv4Rec


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


class CatalogueScores:
    """What the model says of all items, [B, N] each, worked out when it is first asked for.

    Args:
        model: of N items.
        z: latents [B, H].
    """

    def __init__(self, model: Conv4Rec, z: Tensor) -> None:
        self._model = model
        self._z = z

    @functools.cached_property
    def consume_score(self) -> Tensor:
        """What the consume ranking sorts by."""
        return self._model.consume_scores(self._z)

    @functools.cached_property
    def log_p_consume(self) -> Tensor:
        """Log P(i | u)."""
        return self._model.log_p_consume(self._z)

    @functools.cached_property
    def _log_p_levels(self) -> Tensor:
        return self._model.log_p_levels(self._z)

    @property
    def log_p_like(self) -> Tensor:
        """Log P(a liked level | i, u)."""
        return log_p_like(self._log_p_levels, self._model.levels)

    @property
    def expected_rating(self) -> Tensor:
        """E[rating | i, u] in rating units."""
        return expected_rating(self._log_p_levels, self._model.levels)


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
