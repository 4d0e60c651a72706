"""Queries as an index answers them, with room for what is found.

Q queries, D dims, N items, K = top_k
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.errors import SearchError
from raysys.index.kernels import Excluded
from raysys.index.layout import Nums
from raysys.index.request import SearchRequest

_NOBODY: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
_NOTHING: Nums = np.zeros(0, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Q queries.

    Attributes:
        queries: [Q, D].
        weights: [Q, n_bias] of the biases.
        denied: [N] by item_num, True: never returned; [0] when nothing is denied.
        excluded: item_nums that single queries never get.
        nums: [Q, K] item_nums found, best first, padded with -1.
        scores: [Q, K] theirs, padded with -inf.
        found: [Q] how many.
    """

    queries: Floats
    weights: Floats
    denied: NDArray[np.bool_]
    excluded: Excluded
    nums: Nums
    scores: Floats
    found: NDArray[np.int64]

    @classmethod
    def of(cls, queries: Floats, weights: Floats, request: SearchRequest, *, n_items: int) -> Batch:
        """Return the checked queries [Q, D] of a request, with room for what a search writes.

        Raises:
            SearchError: its mask or its exclusions have another shape.
        """
        size = len(queries)
        return cls(
            queries,
            weights,
            _denied(request.allow, n_items),
            _excluded(request.exclude, size),
            np.empty((size, request.top_k), dtype=np.int32),
            np.empty((size, request.top_k), dtype=np.float32),
            np.empty(size, dtype=np.int64),
        )

    def blocks(self, size: int) -> list[slice]:
        """Return slices of at most `size` queries."""
        return [slice(start, start + size) for start in range(0, len(self.queries), size)]

    def excluded_of(self, part: slice) -> Excluded:
        """Return what a block of queries never gets."""
        return Excluded(self.excluded.items, self.excluded.offsets[part.start : part.stop + 1])

    def taken(self, rows: Sequence[int]) -> Batch:
        """Return copies of some queries and of what they found."""
        items, offsets = self.excluded
        lists = [items[offsets[row] : offsets[row + 1]] for row in rows]
        return Batch(
            self.queries[rows],
            self.weights[rows],
            self.denied,
            _excluded(lists, len(rows)),
            self.nums[rows],
            self.scores[rows],
            self.found[rows],
        )

    def put(self, rows: Sequence[int], some: Batch) -> None:
        """Take over what some of the queries found."""
        self.nums[rows], self.scores[rows], self.found[rows] = some.nums, some.scores, some.found


def _denied(allow: NDArray[np.bool_] | None, n_items: int) -> NDArray[np.bool_]:
    if allow is None:
        return _NOBODY
    allow = np.asarray(allow)
    if allow.shape != (n_items,) or allow.dtype != np.bool_:
        raise SearchError(
            f"allow has shape {allow.shape} and dtype {allow.dtype}, expected ({n_items},) bool"
        )
    return ~allow


def _excluded(exclude: Sequence[NDArray[Any]] | None, n_queries: int) -> Excluded:
    if exclude is None:
        return Excluded(_NOTHING, np.zeros(n_queries + 1, dtype=np.int64))
    if len(exclude) != n_queries:
        raise SearchError(f"exclude has {len(exclude)} lists for {n_queries} queries")
    offsets = np.cumsum([0, *map(len, exclude)], dtype=np.int64)
    return Excluded(np.concatenate([_NOTHING, *exclude]).astype(np.int32), offsets)
