"""What a model says of some items for one user.

Letters: C items of a request, R levels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats


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

    log_p_consume: Floats
    level_probs: Floats
    p_like: Floats
    expected_rating: Floats | None
    consume_score: Floats

    @property
    def log_p_like(self) -> Floats:
        """Log P(a liked level | i, u), [C]."""
        return np.log(np.maximum(self.p_like, 1e-30))

    def taken(self, rows: NDArray[Any]) -> ItemScores:
        """Return the values of some items."""
        rating = self.expected_rating
        return ItemScores(
            log_p_consume=self.log_p_consume[rows],
            level_probs=self.level_probs[rows],
            p_like=self.p_like[rows],
            expected_rating=None if rating is None else rating[rows],
            consume_score=self.consume_score[rows],
        )
