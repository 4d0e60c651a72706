"""Lists by cosine: items like an item, and items like those of a profile.

Letters: B queries, N items, D size of the indexed vectors, H of the compared ones, C candidates.

Plain vectors are compared whole. Vectors of an autoencoder are [g, l]: their consume block g of
the first H dimensions is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.embeddings import Embeddings
from raysys.data.arrays import Floats, read_only
from raysys.data.cells import Cells
from raysys.data.compiled import compiled_fast, prefetch
from raysys.errors import SearchError
from raysys.index.request import SearchRequest
from raysys.index.shards import Searchable
from raysys.scoring.rankings import N_CANDIDATES
from raysys.search.filters import Mask
from raysys.search.query import Items, Ranked
from raysys.search.steering import Limits, Steerings, lifted, steered_candidates

_AHEAD = 4  # rows between asking for one and reading it
_LINE = 16  # floats of a cache line
_SMALL = np.float32(1e-30)
_AT_ONCE = 64  # items that are compared with many others


def candidate_count(top_k: int, n_items: int, *, rescore: bool) -> int:
    """Return how many items the index is asked for, so that exact scores can reorder them."""
    return min(n_items, max(N_CANDIDATES, 2 * top_k) if rescore else top_k)


class Neighbours:
    """Candidates of the index, sorted by the exact cosine of the dense vectors.

    Args:
        vectors: [N, D] float32, may be memory-mapped: only the rows of candidates are read.
        index: over the same items.
        width: H, the leading dimensions that are compared; None takes all.
        fresh: [M, D] vectors of upserted rows, item_nums N and up.
        alive: [N + M] which items may be listed; None: all.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        index: Searchable,
        *,
        width: int | None = None,
        fresh: NDArray[np.float32] | None = None,
        alive: Mask | None = None,
    ) -> None:
        self._vectors = read_only(np.asarray(vectors))
        self._fresh = fresh
        self._index = index
        self._width = width or vectors.shape[1]
        self._alive = np.ones(index.n_items, dtype=np.bool_) if alive is None else alive

    @classmethod
    def open(
        cls,
        embeddings: Embeddings,
        index: Searchable,
        *,
        width: int | None = None,
        fresh: NDArray[np.float32] | None = None,
        alive: Mask | None = None,
    ) -> Neighbours:
        """Map the vectors of embeddings."""
        return cls(embeddings.vectors, index, width=width, fresh=fresh, alive=alive)

    def of_item(self, num: int, *, top_k: int, allow: Mask | None = None) -> Ranked:
        """Return the items most like item `num`, itself left out."""
        own = np.array([num], dtype=np.int32)
        query = self._unit(own)
        [ranked] = self._nearest(query, top_k=top_k, exclude=[own], rescore=True, allow=allow)
        return ranked

    def of_vectors(
        self, vectors: NDArray[np.float32], *, top_k: int, allow: Mask | None = None
    ) -> Iterator[Ranked]:
        """Yield the items most like every vector [B, H].

        Raises:
            SearchError: a vector of another length, not finite, or zero.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._width:
            raise SearchError(
                f"query vectors have shape {list(vectors.shape)}, expected [any, {self._width}]"
            )
        bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
        if len(bad):
            raise SearchError(f"query vector {int(bad[0])} is zero or not finite")
        yield from self._nearest(
            _unit(vectors), top_k=top_k, exclude=None, rescore=True, allow=allow
        )

    def most_like(self, nums: Items, others: Items, *, top_k: int) -> list[list[tuple[int, float]]]:
        """Return, for every item [K], those of some others [P] that are most like it.

        Each as (item_num, cosine), best first; an item is not like itself.
        """
        units = self._unit(others).T
        found = []
        for start in range(0, len(nums), _AT_ONCE):
            part = nums[start : start + _AT_ONCE]
            cosines = self._unit(part) @ units
            cosines[part[:, None] == others[None, :]] = -np.inf
            for row in cosines:
                best = np.arange(len(row))
                if len(row) > top_k:
                    best = np.sort(np.argpartition(-row, top_k - 1)[:top_k])
                best = best[np.argsort(-row[best], kind="stable")]
                found.append([(int(others[p]), float(row[p])) for p in best if row[p] > -np.inf])
        return found

    def of_profiles(
        self,
        history: Cells,
        *,
        top_k: int,
        exclude: Sequence[Items] | None,
        rescore: bool,
        allow: Mask | None = None,
        steerings: Steerings = None,
    ) -> Iterator[Ranked]:
        """Yield the items most like the mean of every profile's unit vectors.

        Raises:
            SearchError: a profile holds no item, so there is nothing to be like.
        """
        query = self.mean_of(history)
        yield from self._nearest(
            query,
            top_k=top_k,
            exclude=exclude,
            rescore=rescore,
            allow=allow,
            steerings=steerings,
        )

    def mean_of(self, history: Cells) -> NDArray[np.float32]:
        """Return the mean direction [B, H] of every profile's unit vectors.

        Raises:
            SearchError: a profile holds no item.
        """
        if not history.counts.all():
            raise SearchError("this build has no autoencoder: the profile needs a known item")
        sums = np.add.reduceat(self._unit(history.item_num), history.offsets[:-1], axis=0)
        return _unit(sums)

    def vectors(self, nums: NDArray[Any]) -> NDArray[np.float32]:
        """Return the dense vectors [C, D] of some items."""
        first = len(self._vectors)
        if self._fresh is None or nums.max(initial=0) < first:
            return np.asarray(self._vectors[nums], dtype=np.float32)
        rows = np.asarray(self._vectors[np.minimum(nums, first - 1)], dtype=np.float32)
        rows[nums >= first] = self._fresh[nums[nums >= first] - first]
        return rows

    def _unit(self, nums: NDArray[Any]) -> NDArray[np.float32]:
        return _unit(self.vectors(nums)[:, : self._width])

    def _nearest(
        self,
        query: NDArray[np.float32],
        *,
        top_k: int,
        exclude: Sequence[Items] | None,
        rescore: bool,
        allow: Mask | None = None,
        steerings: Steerings = None,
    ) -> Iterator[Ranked]:
        """Yield the list of every unit query [B, H]; `steerings` raise and mute atoms."""
        padded = np.zeros((len(query), self._index.dim), dtype=np.float32)
        padded[:, : self._width] = query
        n_candidates = candidate_count(top_k, self._index.n_items, rescore=rescore)
        request = SearchRequest(padded, top_k=n_candidates, exclude=exclude, allow=allow)
        nums, scores = self._index.search(request)
        lists = [row[row >= 0] for row in nums]
        shares: Sequence[Floats | None] = [None] * len(lists)
        if rescore and steerings is not None:

            def more(row: int, size: int) -> Items:
                one = dataclasses.replace(request.only(np.array([row])), top_k=size)
                return self._index.search(one)[0]

            limits = Limits(exclude, self._alive, allow)
            lists, shares = steered_candidates(lists, steerings, limits, top_k=top_k, more=more)
        for row, found in enumerate(lists):
            exact = self._cosines(found, query[row]) if rescore else scores[row][: len(found)]
            held = shares[row]
            exact = exact if held is None else lifted(exact, held)
            order = np.argsort(-exact, kind="stable")[:top_k]
            yield Ranked(found[order], exact[order])

    def _cosines(self, nums: Items, query: Floats) -> Floats:
        """Return the cosines [C] of items with a unit query [H]."""
        if self._vectors.dtype != np.float32:  # numba knows no float16
            return np.asarray(self._unit(nums) @ query)
        out = np.empty(len(nums), dtype=np.float32)
        known = np.minimum(nums, len(self._vectors) - 1).astype(np.int64)
        _cosines(self._vectors, known, np.ascontiguousarray(query), out)
        fresh = nums >= len(self._vectors)
        if fresh.any():
            out[fresh] = self._unit(nums[fresh]) @ query
        return out


@compiled_fast
def _cosines(
    rows: NDArray[Any], nums: NDArray[Any], query: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write the cosines of the first H columns of rows[nums] with `query` [H] to `out` [C].

    Rows may lie anywhere: every cache line of one is asked for ahead of its turn.
    """
    size, width = query.shape[0], rows.shape[1]
    n_lines = width // _LINE if width % _LINE == 0 else 1
    lines = rows.reshape((rows.shape[0] * n_lines, width // n_lines))
    for c in range(nums.shape[0]):
        if c + _AHEAD < nums.shape[0]:
            first = nums[c + _AHEAD] * n_lines
            for line in range(first, first + min(n_lines, -(-size // _LINE))):
                prefetch(lines, line)
        row, product, square = rows[nums[c]], np.float32(0), np.float32(0)
        for d in range(size):
            product += row[d] * query[d]
            square += row[d] * row[d]
        if square < _SMALL:  # float32 holds no square of it
            exact, length = 0.0, 0.0
            for d in range(size):
                exact += np.float64(row[d]) * np.float64(query[d])
                length += np.float64(row[d]) * np.float64(row[d])
            out[c] = exact / np.sqrt(length) if length > 0 else 0.0
        else:
            out[c] = product / np.sqrt(square)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny))
