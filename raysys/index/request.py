"""What an index is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats


@dataclasses.dataclass(frozen=True)
class SearchRequest:
    """The best items of Q queries over N items.

    Attributes:
        queries: [Q, D] finite; for cosine not zero.
        top_k: K, 1 or more; may exceed the catalogue.
        weights: [Q, n_bias] weights of the biases; None: zeros.
        exclude: per query, item_nums that are never returned.
        allow: [N] by item_num, False: never returned for any query.
        effort: lists (ivf) or steps (graph) of a query instead of the build's choice.
        guarantee: take more lists for a query whose own hold fewer than K; False leaves its answer
            short (to measure an effort alone).
    """

    queries: Floats
    top_k: int
    weights: Floats | None = None
    exclude: Sequence[NDArray[Any]] | None = None
    allow: NDArray[np.bool_] | None = None
    effort: int | None = None
    guarantee: bool = True

    def n_allowed(self, n_items: int) -> int:
        """Return how many of all items may be returned."""
        return n_items if self.allow is None else int(np.count_nonzero(self.allow))

    def only(self, rows: NDArray[np.integer[Any]]) -> SearchRequest:
        """Return the request of some of the queries."""
        return dataclasses.replace(
            self,
            queries=self.queries[rows],
            weights=None if self.weights is None else self.weights[rows],
            exclude=None if self.exclude is None else [self.exclude[row] for row in rows],
        )
