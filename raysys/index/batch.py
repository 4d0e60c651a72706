"""Queries as an index answers them, with room for what is found.

Q queries, D dims, N items, K = top_k
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.errors import SearchError
from raysys.index.kernels import Excluded, unit_queries
from raysys.index.layout import Nums
from raysys.index.request import SearchRequest

_NOBODY: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
_NOTHING: Nums = np.zeros(0, dtype=np.int32)


class Batch(NamedTuple):
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

    def blocks(self, size: int) -> list[Batch]:
        """Return views of at most `size` queries."""
        if len(self.queries) <= size:
            return [self]
        items, offsets = self.excluded
        found = []
        for start in range(0, len(self.queries), size):
            part = slice(start, start + size)
            own = offsets[start : start + size + 1]
            excluded = Excluded(items[own[0] : own[-1]], own - own[0])
            queries, weights = self.queries[part], self.weights[part]
            out = self.nums[part], self.scores[part], self.found[part]
            found.append(Batch(queries, weights, self.denied, excluded, *out))
        return found

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


def checked(
    queries: Floats, weights: Floats | None, *, dim: int, n_bias: int, cosine: bool
) -> tuple[Floats, Floats]:
    """Return queries [Q, D], unit ones for cosine, and weights [Q, n_bias], contiguous float32.

    Raises:
        SearchError: a shape, a value that is not finite, or zeros where there is a cosine.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise SearchError(f"queries have shape {queries.shape}, expected [Q, {dim}]")
    if weights is None:
        weights = np.zeros((len(queries), n_bias), dtype=np.float32)
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    if weights.shape != (len(queries), n_bias):
        raise SearchError(f"weights have shape {weights.shape}, expected {(len(queries), n_bias)}")
    unit = np.empty_like(queries)
    if unit_queries(queries, weights, cosine, unit):
        return unit, weights
    _refuse_not_finite("weights of query", weights)
    _refuse_not_finite("query", queries)
    zero = np.flatnonzero(~queries.any(axis=1))
    if cosine and len(zero):
        raise SearchError(f"query {int(zero[0])} is all zeros: it has no cosine")
    if not cosine:
        return queries, weights
    norms = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    return (queries / norms).astype(np.float32), weights


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
    items = exclude[0] if n_queries == 1 else np.concatenate([_NOTHING, *exclude])
    offsets = np.array([*itertools.accumulate(map(len, exclude), initial=0)], dtype=np.int64)
    return Excluded(items.astype(np.int32), offsets)


def _refuse_not_finite(name: str, array: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise SearchError(f"{name} {int(bad[0])} holds a value that is not finite")
