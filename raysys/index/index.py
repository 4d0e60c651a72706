"""Search over codes: `flat`, `ivf` and `graph`, one interface.

    N items, Q queries, D dims, K = top_k, L lists

    kind    what a query does                                             bytes per item
    flat    scores every code                                             code
    ivf     hnswlib names the nearest lists, their codes scored           code + 16 + 4 D / (N/L)
    graph   hnswlib names the nearest entries, their codes scored         code + 4 D + ~150

An entry of a graph is an item, or all items whose codes are equal: a list then, like those of ivf.

Scores are those of the codes in every kind, with the same bits; ties go to the lower item_num.
The effort of a query is how many lists it probes (ivf), or hnswlib's `ef`, the steps of its walk
(graph). The build chose one for several top_k: what a query needs is its top_k plus what it
excludes. Under a filter the effort grows as the allowed share shrinks, and where a scan of the
allowed items is no dearer, that is done instead: K results are guaranteed as long as there are K
allowed items.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.codes import Codes
from raysys.compressor.dictionary import Dictionary
from raysys.data.arrays import Floats, read_only
from raysys.errors import SearchError
from raysys.index.head import NO_ROWS, NOBODY, Head, threshold, thresholds
from raysys.index.kernels import Spills, score_all, score_rows, search_rows, unit_queries
from raysys.index.layout import Layout, Nums
from raysys.index.lists import RoutingSpace
from raysys.index.request import SearchRequest
from raysys.index.router import Router

INDEX_KINDS = ("flat", "ivf", "graph")
_GRAPH_COST = 16  # codes that could be scored in the time hnswlib takes for one step of ef
_LIST_COST = 2  # codes scored per item of a probed list: as many spill into it as are at home
_NO_LISTS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class Index:
    """An index of N items.

    Args:
        kind: one of INDEX_KINDS.
        similarity: `cosine` or `inner_product`.
        codes: codes in row order.
        bias: [N, n_bias] float32 in row order.
        dictionary: [S, D] float32, rounded here if it is not yet; ignored for dense8 codes.
        layout: where items lie.
        space: how queries enter the router's space; None for flat.
        router: lists (ivf) or entries (graph); None for flat.
        efforts: {top_k: effort} of queries without a head, and of those that subtract a bias.
        head_efforts: {top_k: effort} of the others.
        long_efforts: {top_k: effort} of those of them that are long.
        long_lengths: for each bias, the length beyond which queries that weigh it are long.
        n_items: size N of the item_num space, for an index that holds only some of the rows (an
            item shard); default: every item has a row here.
        first_row: row of the whole index that is row 0 here.
        heads: least bias of each column's head, see `head.py`; None: they follow from `bias`.
    """

    def __init__(
        self,
        *,
        kind: str,
        similarity: str,
        codes: Codes,
        bias: Floats,
        dictionary: Floats | Dictionary,
        layout: Layout | None = None,
        space: RoutingSpace | None = None,
        router: Router | None = None,
        efforts: Mapping[int, int] | None = None,
        head_efforts: Mapping[int, int] | None = None,
        long_efforts: Mapping[int, int] | None = None,
        long_lengths: Sequence[float | None] = (),
        n_items: int | None = None,
        first_row: int = 0,
        heads: Sequence[float | None] | None = None,
    ) -> None:
        self.kind = kind
        self.similarity = similarity
        self.codes = codes
        self.dictionary = Dictionary.of(dictionary)
        self.layout = layout or Layout.identity(codes.n_items)
        self.efforts = dict(sorted((efforts or {}).items()))
        self.head_efforts = dict(sorted((head_efforts or {}).items()))
        self.long_efforts = dict(sorted((long_efforts or {}).items()))
        self.long_lengths = tuple(long_lengths) or (None,) * bias.shape[1]
        self.space = space
        self.router = router
        self.n_items = codes.n_items if n_items is None else n_items
        self.first_row = first_row
        self.heads = thresholds(np.asarray(bias)) if heads is None else tuple(heads)
        self._head = Head(bias, self.heads)
        self._stored = codes.stored(read_only(bias), read_only(self.layout.items))
        self._spills = Spills(*(read_only(part) for part in self.layout.spills))

    # -- sizes -----------------------------------------------------------------------------

    @property
    def bias(self) -> Floats:
        """Biases [rows, n_bias] in row order."""
        return np.asarray(self._stored.bias)

    @property
    def dim(self) -> int:
        """Dimensions D of queries."""
        return self.dictionary.dim

    @property
    def n_bias(self) -> int:
        """Biases per item, each weighted by the query."""
        return int(self._stored.bias.shape[1])

    @property
    def n_lists(self) -> int:
        """Number of lists L."""
        return len(self.layout.starts) - 1

    @property
    def n_routed(self) -> int:
        """What the router chooses from: lists (ivf) or entries (graph); 0 for flat."""
        return 0 if self.router is None else self.router.n_rows

    @property
    def in_lists(self) -> bool:
        """Whether rows lie by list, each of them one that the router can name."""
        return self.router is not None and self.router.n_rows == self.n_lists

    def with_bias(self, column: int, values: Floats) -> Index:
        """Return the index with other biases [N] in one column; nothing else changes.

        The head follows. The router still finds lists by the biases it was built with.
        """
        bias = np.array(self.bias)
        bias[:, column] = values[self.layout.items]
        moved = copy.copy(self)
        heads = list(self.heads)
        heads[column] = threshold(values)
        moved.heads, moved._head = tuple(heads), Head(bias, heads)
        moved._stored = self.codes.stored(read_only(bias), read_only(self.layout.items))
        return moved

    def headed(self, weights: Floats) -> NDArray[np.bool_]:
        """Tell which queries of weights [Q, n_bias] score a head and subtract no bias, [Q]."""
        with_head = np.array([least is not None for least in self.heads], dtype=bool)
        return np.asarray((weights[:, with_head] > 0).any(axis=1) & (weights >= 0).all(axis=1))

    def long(self, queries: Floats, weights: Floats) -> NDArray[np.bool_]:
        """Tell which queries [Q, D] are longer than those that weigh the same biases mostly are."""
        least = np.array([np.inf if n is None else n for n in self.long_lengths])
        asked = np.where(weights > 0, least, np.inf).min(axis=1, initial=np.inf)
        return np.asarray(np.linalg.norm(queries, axis=1) > asked)

    # -- searching -------------------------------------------------------------------------

    def search(self, request: SearchRequest) -> tuple[Nums, Floats]:
        """Return the best items of every query, best first.

        Returns:
            item_nums [Q, K] int32 padded with -1, scores [Q, K] float32 padded with -inf.

        Raises:
            SearchError: a query, weight, mask or top_k that cannot be used.
        """
        top_k, effort = request.top_k, request.effort
        queries, weights = self._checked(request.queries, request.weights)
        if top_k < 1:
            raise SearchError(f"top_k={top_k} must be 1 or more")
        denied = self._denied(request.allow)
        excluded = self._checked_exclusions(request.exclude, len(queries))
        nums = np.full((len(queries), top_k), -1, dtype=np.int32)
        scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
        n_allowed = self.n_items - int(np.count_nonzero(denied))
        if n_allowed == 0 or len(queries) == 0:
            return nums, scores
        tables = self.codes.table(queries, self.dictionary)
        plans = [
            self._plan(top_k + len(e), n_allowed, effort, efforts)
            for e, efforts in zip(excluded, self._efforts_of(queries, weights), strict=True)
        ]
        routed = self._route(queries, weights, plans)
        room = min(top_k, self.n_items)
        everything: tuple[NDArray[Any], NDArray[Any]] | None = None
        for q, plan in enumerate(plans):
            query = self._stored, tables[q], weights[q]
            kept = denied, excluded[q], nums[q, :room], scores[q, :room]
            if plan:
                lists = routed[q]
                spilled = lists if len(self._spills.rows) else _NO_LISTS
                head = self._head.of(weights[q])
                found = search_rows(*query, *self._runs(lists), spilled, self._spills, *head, *kept)
                if found == room or not request.guarantee:
                    continue
            everything = everything or self._full_scan(denied)
            search_rows(*query, *everything, _NO_LISTS, self._spills, NO_ROWS, NOBODY, *kept)
        return nums, scores

    def score_all(self, queries: Floats, weights: Floats | None = None) -> Floats:
        """Return the code scores of all items [Q, N], by item_num; -inf for rows not held."""
        queries, weights = self._checked(queries, weights)
        tables = self.codes.table(queries, self.dictionary)
        out = np.full((len(queries), self.n_items), -np.inf, dtype=np.float32)
        for q in range(len(queries)):
            score_all(self._stored, tables[q], weights[q], out[q])
        return out

    def score_items(
        self, query: Floats, item_nums: NDArray[Any], weights: Floats | None = None
    ) -> Floats:
        """Return the code scores [C] of some items for one query [D]."""
        queries, checked = self._checked(query[None], None if weights is None else weights[None])
        table = self.codes.table(queries, self.dictionary)[0]
        out = np.empty(len(item_nums), dtype=np.float32)
        score_rows(self._stored, table, checked[0], self.rows_of(item_nums), out)
        return out

    def decode(self, item_nums: NDArray[Any]) -> Floats:
        """Return the stored reconstructions [C, D] of some items."""
        return self.codes.decode(self.dictionary.floats, self.rows_of(item_nums))

    def rows_of(self, item_nums: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows [C] of some items; below 0 or past the end: held by another shard."""
        return np.asarray(self.layout.rows[np.asarray(item_nums)].astype(np.int64) - self.first_row)

    def holds(self, item_nums: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which items [C] have a row here."""
        rows = self.rows_of(item_nums)
        return np.asarray((rows >= 0) & (rows < self.codes.n_items))

    # -- internals -------------------------------------------------------------------------

    def _efforts_of(self, queries: Floats, weights: Floats) -> list[dict[int, int]]:
        """Return the efforts that were measured for queries like each of these."""
        headed, long = self.headed(weights), self.long(queries, weights)
        found = []
        for head, far in zip(headed.tolist(), long.tolist(), strict=True):
            measured = self.long_efforts if head and far else self.head_efforts if head else {}
            found.append(measured or self.efforts)
        return found

    def _plan(
        self, depth: int, n_allowed: int, effort: int | None, efforts: Mapping[int, int]
    ) -> int:
        """Return the effort for `depth` items, or 0 for a scan of the allowed ones."""
        limit = self.n_routed
        if limit == 0:
            return 0
        wanted = effort if effort is not None else self._effort_for(depth, efforts)
        if effort is None and n_allowed < self.n_items:
            wanted = -(-wanted * self.n_items // n_allowed)
            scored = _LIST_COST * self.n_items / limit
            cost = wanted * (max(_GRAPH_COST, scored) if self.kind == "graph" else scored)
            wanted = 0 if cost >= n_allowed else wanted
        return 0 if wanted >= limit else max(wanted, 0)

    def _effort_for(self, depth: int, efforts: Mapping[int, int]) -> int:
        """Return the measured effort of the next larger top_k, or grow the last in proportion."""
        for top_k, effort in efforts.items():
            if top_k >= depth:
                return max(effort, depth if self.kind == "graph" else 1)
        top_k, effort = list(efforts.items())[-1] if efforts else (1, 1)
        return max(-(-effort * depth // top_k), depth if self.kind == "graph" else 1)

    def _route(
        self, queries: Floats, weights: Floats, plans: Sequence[int]
    ) -> list[NDArray[np.int64]]:
        """Return what every query probes: as many as its plan says."""
        routed = [_NO_LISTS] * len(queries)
        if self.router is None or self.space is None:
            return routed
        asked, wanted = self.space.queries(queries, weights), np.array(plans)
        for count in np.unique(wanted[wanted > 0]):
            rows = np.flatnonzero(wanted == count)
            for row, lists in zip(rows, self.router.nearest(asked[rows], int(count)), strict=True):
                routed[row] = lists
        return routed

    def _runs(self, routed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        starts, stops = (
            (self.layout.starts[routed], self.layout.starts[routed + 1])
            if self.in_lists
            else (routed, routed + 1)
        )
        if self.codes.n_items == self.n_items:
            return starts, stops
        held = self.first_row, self.first_row + self.codes.n_items
        return np.clip(starts, *held) - held[0], np.clip(stops, *held) - held[0]

    def _full_scan(self, denied: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the runs of all rows, or of the allowed rows where they are a minority."""
        if 2 * np.count_nonzero(denied) > self.n_items:
            allowed = np.flatnonzero(~denied)
            rows = np.sort(self.rows_of(allowed[self.holds(allowed)]))
            return rows, rows + 1
        return np.zeros(1, dtype=np.int64), np.array([self.codes.n_items], dtype=np.int64)

    def _checked(self, queries: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise SearchError(f"queries have shape {queries.shape}, expected [Q, {self.dim}]")
        if weights is None:
            weights = np.zeros((len(queries), self.n_bias), dtype=np.float32)
        weights = np.ascontiguousarray(weights, dtype=np.float32)
        if weights.shape != (len(queries), self.n_bias):
            raise SearchError(
                f"weights have shape {weights.shape}, expected {(len(queries), self.n_bias)}"
            )
        if self.n_bias:
            _refuse_not_finite("weights of query", weights)
        checked = np.empty_like(queries)
        cosine = self.similarity == "cosine"
        if unit_queries(queries, cosine, checked):
            return checked, weights
        _refuse_not_finite("query", queries)
        zero = np.flatnonzero(~queries.any(axis=1))
        if cosine and len(zero):
            raise SearchError(f"query {int(zero[0])} is all zeros: it has no cosine")
        if not cosine:
            return queries, weights
        norms = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
        return (queries / norms).astype(np.float32), weights

    def _denied(self, allow: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        if allow is None:
            return NOBODY
        allow = np.asarray(allow)
        if allow.shape != (self.n_items,) or allow.dtype != np.bool_:
            raise SearchError(
                f"allow has shape {allow.shape} and dtype {allow.dtype}, "
                f"expected ({self.n_items},) bool"
            )
        return ~allow

    def _checked_exclusions(
        self, exclude: Sequence[NDArray[Any]] | None, n_queries: int
    ) -> list[NDArray[np.int32]]:
        if exclude is None:
            return [np.zeros(0, dtype=np.int32)] * n_queries
        if len(exclude) != n_queries:
            raise SearchError(f"exclude has {len(exclude)} lists for {n_queries} queries")
        return [np.unique(np.asarray(nums, dtype=np.int32)) for nums in exclude]


def _refuse_not_finite(name: str, array: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise SearchError(f"{name} {int(bad[0])} holds a value that is not finite")
