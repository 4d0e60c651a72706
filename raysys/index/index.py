"""Search over codes: `flat`, `ivf` and `graph`, one interface.

    N items, Q queries, D dims, K = top_k, L lists

    kind    what a query does                                             bytes per item
    flat    scores every code                                             code
    ivf     hnswlib names the nearest lists, their codes scored           code + 16 + 4 D / (N/L),
                                                                          with biases up to 16 more
    graph   hnswlib names the nearest entries, their codes scored         code + 4 D + ~150

Up to a megabyte of centroids, of 8 bits a dim, are compared one by one instead, and up to four by
queries that probe more than 24 lists, see `near.py`. An entry of a graph is an item, or all items
whose codes are equal: a list then, like those of ivf.

Scores are those of the codes in every kind, with the same bits; ties go to the lower item_num.
The effort of a query is how many lists it probes (ivf), or hnswlib's `ef`, the steps of its walk
(graph). The build chose one for several top_k: what a query needs is its top_k plus what it
excludes. Under a filter the effort grows as the allowed share shrinks. A query that finds fewer
than K tries again with four times the effort, and where a scan of the allowed items is no dearer,
that is done instead: K results are guaranteed as long as there are K allowed items.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.codes import Codes
from raysys.compressor.dictionary import Dictionary
from raysys.compressor.kernels import Stored
from raysys.data.arrays import Floats, read_only
from raysys.errors import SearchError
from raysys.index.batch import Batch, checked
from raysys.index.efforts import PLAIN, Efforts, is_long
from raysys.index.head import MOST_HEADS, Head, heads_of
from raysys.index.holders import Holders, nobody
from raysys.index.kernels import Heads, Runs, Spills, search_queries
from raysys.index.layout import Layout, Nums
from raysys.index.lists import RoutingSpace
from raysys.index.near import Lists, held, search_lists, search_near
from raysys.index.request import SearchRequest
from raysys.index.router import Router
from raysys.index.rows import score_all, score_rows

INDEX_KINDS = ("flat", "ivf", "graph")
_GRAPH_COST = 16  # codes that could be scored in the time hnswlib takes for one step of ef
SCAN = -1  # the effort of a query that is answered by a scan of the allowed items
_WIDER = 4  # times the lists, for a query whose own hold too few
_LIST_COST = 2  # codes scored per item of a probed list: as many spill into it as are at home
_BLOCK_QUERIES = 64  # whose products with the dictionary are made at once
_COMPARED = 1 << 20  # bytes of centroids that are compared with a query sooner than walked
_MOST_COMPARED = 1 << 22  # the same for queries that probe many lists, of which a walk misses some
_WALKED = 24  # lists that are found by a walk where centroids are many
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
        efforts: measured ones; None: every query's is 1, in proportion to its top_k.
        n_items: size N of the item_num space, for an index that holds only some of the rows (an
            item shard); default: every item has a row here.
        first_row: row of the whole index that is row 0 here.
        heads: of queries, and of long ones; None: they follow from `bias`.
        holders: of its atoms; None: no query scores them.
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
        efforts: Efforts | None = None,
        n_items: int | None = None,
        first_row: int = 0,
        heads: tuple[Head, Head] | None = None,
        holders: Holders | None = None,
    ) -> None:
        self.kind = kind
        self.similarity = similarity
        self.codes = codes
        self.dictionary = Dictionary.of(dictionary)
        self.layout = layout or Layout.identity(codes.n_items)
        self.efforts = efforts or Efforts()
        self.space = space
        self.router = router
        self.n_items = codes.n_items if n_items is None else n_items
        self.n_bias = int(np.asarray(bias).shape[1])
        self.first_row = first_row
        self.heads = heads or (Head.of(np.asarray(bias)),) * 2
        self._stored = codes.stored(read_only(bias), read_only(self.layout.items))
        self._nobody = Holders(*map(read_only, nobody(self.n_bias)))
        self.set_holders(self._nobody if holders is None else holders)
        self._heads = self._rows_of_heads()
        self._no_heads = heads_of(self._stored, [None] * self.n_bias)
        self._factor = float(codes.unit[0])
        self._spills = Spills(*(read_only(part) for part in self.layout.spills))
        self._lists: Lists | None = None
        self._walked = 0  # lists that are walked to, though all could be compared
        n_bytes = router.n_rows * router.dim if router is not None and kind == "ivf" else 0
        self._starts = read_only(self.layout.starts if self.in_lists else _NO_LISTS)
        if router is not None and space is not None and 0 < n_bytes <= _MOST_COMPARED:
            self._lists = Lists(space.matrix(self.dim), *Dictionary(router.rows()).rounded)
            self._walked = 0 if n_bytes <= _COMPARED else _WALKED

    # -- sizes -----------------------------------------------------------------------------

    @property
    def bias(self) -> Floats:
        """Biases [rows, n_bias] in row order."""
        return np.asarray(self._stored.bias)

    @property
    def stored(self) -> Stored:
        """The rows, as kernels read them."""
        return self._stored

    @property
    def dim(self) -> int:
        """Dimensions D of queries."""
        return self.dictionary.dim

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
        usual, long = self.heads
        now = usual.moved(column, values)
        moved.heads = now, now if long == usual else long.moved(column, values)
        moved._stored = self.codes.stored(read_only(bias), read_only(self.layout.items))
        moved._heads = moved._rows_of_heads()
        return moved

    def set_head(self, column: int, rows: int, *, long: bool) -> None:
        """Give a head of a whole index about so many rows.

        Args:
            column: of the biases.
            rows: 1 or more.
            long: that of long queries, or of the others.
        """
        heads = list(self.heads)
        heads[long] = heads[long].moved(column, self.bias[:, column], rows)
        self.heads = heads[0], heads[1]
        self._heads = self._rows_of_heads()

    def set_holders(self, holders: Holders) -> None:
        """Let queries score these holders."""
        self.holders = Holders(*map(read_only, holders))

    def sorts(self, queries: Floats, weights: Floats) -> NDArray[np.int64]:
        """Return the sort of each query [Q, D] with its weights [Q, n_bias], see `Efforts`."""
        return self.efforts.sorts(queries, weights, self._with_head)

    # -- searching -------------------------------------------------------------------------

    def search(self, request: SearchRequest) -> tuple[Nums, Floats]:
        """Return the best items of every query, best first.

        Returns:
            item_nums [Q, K] int32 padded with -1, scores [Q, K] float32 padded with -inf.

        Raises:
            SearchError: a query, weight, mask or top_k that cannot be used.
        """
        top_k = request.top_k
        if top_k < 1:
            raise SearchError(f"top_k={top_k} must be 1 or more")
        batch = self._batch(request)
        n_allowed = request.n_allowed(self.n_items)
        if n_allowed == 0 or len(batch.queries) == 0:
            batch.nums.fill(-1)
            batch.scores.fill(-np.inf)
            return batch.nums, batch.scores
        sorts = self._sorts(batch)
        plans = self._plans(batch, sorts, n_allowed, request.effort)
        room = min(top_k, self.n_items) if request.guarantee else 0
        left = [q for q, plan in enumerate(plans) if plan != SCAN]
        while left:
            ways: dict[tuple[bool, bool], list[int]] = {}
            for q in left:
                ways.setdefault((is_long(sorts[q]), self._compares(plans[q])), []).append(q)
            for way, planned in ways.items():
                self._probe(batch, planned, [plans[q] for q in planned], *way)
            found = batch.found.tolist()
            short = [q for q in left if found[q] < room]
            for q in short:
                plans[q] = self.wider(plans[q], n_allowed)
            left = [q for q in short if plans[q] != SCAN]
        scanned = [q for q, plan in enumerate(plans) if plan == SCAN]
        if scanned:
            some = batch.taken(scanned)
            self._scan(some, *self._full_scan(batch.denied))
            batch.put(scanned, some)
        return batch.nums, batch.scores

    def plans(self, request: SearchRequest) -> list[int]:
        """Return the effort that every query begins with, or SCAN."""
        batch = self._batch(request)
        n_allowed = request.n_allowed(self.n_items)
        return self._plans(batch, self._sorts(batch), n_allowed, request.effort)

    def wider(self, plan: int, n_allowed: int) -> int:
        """Return the effort after one that found too few, or SCAN where that is no dearer."""
        wider = _WIDER * max(plan, 1)
        return SCAN if self.rows_for(wider) >= n_allowed or wider >= self.n_routed else wider

    def _compares(self, plan: int) -> bool:
        """Tell whether comparing a query with every list is sooner than a walk to so many."""
        return self._lists is not None and plan > self._walked

    def _probe(
        self, batch: Batch, rows: list[int], plans: list[int], long: bool, compared: bool
    ) -> None:
        """Answer some queries from as many lists or entries as their plans say."""
        some = batch if len(rows) == len(batch.queries) else batch.taken(rows)
        atoms, starts = self.dictionary.rounded, self._starts
        of_index = self._stored, atoms, starts, self.first_row, self._spills
        index = held(*of_index, self._heads[long], self.holders)
        for number, part in enumerate(some.blocks(_BLOCK_QUERIES)):
            counts = np.array(plans[number * _BLOCK_QUERIES :][: len(part.queries)])
            asked = part.queries, self._factor, part.weights
            out = part.denied, *part.excluded, part.nums, part.scores, part.found
            if self._lists is not None and compared:
                search_near(index, self._lists, *asked, counts, *out)
            else:
                search_lists(index, *asked, self._routed(part, counts), counts, *out)
        if some is not batch:
            batch.put(rows, some)

    def _scan(self, some: Batch, starts: NDArray[Any], stops: NDArray[Any]) -> None:
        """Answer queries from runs of rows, a block at a time."""
        for part in some.blocks(_BLOCK_QUERIES):
            nobody = np.zeros(len(part.queries), dtype=np.int64)
            search_queries(
                self._stored,
                self.dictionary.rounded,
                part.queries,
                self._factor,
                part.weights,
                Runs(starts, stops, _NO_LISTS, nobody, nobody + len(starts)),
                self._spills,
                self._no_heads,
                self._nobody,
                part.denied,
                part.excluded,
                part.nums,
                part.scores,
                part.found,
            )

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
        queries, each = self._checked(query[None], None if weights is None else weights[None])
        table = self.codes.table(queries, self.dictionary)[0]
        out = np.empty(len(item_nums), dtype=np.float32)
        score_rows(self._stored, table, each[0], self.rows_of(item_nums), out)
        return out

    def decode(self, item_nums: NDArray[Any]) -> Floats:
        """Return the stored reconstructions [C, D] of some items."""
        return self.codes.decode(self.dictionary.floats, self.rows_of(item_nums))

    def rows_of(self, item_nums: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows [C] of some items; below 0 or past the end: held by another shard."""
        return np.asarray(self.layout.rows[np.asarray(item_nums)].astype(np.int64) - self.first_row)

    def rows_for(self, effort: float) -> float:
        """Return how many rows could be scored in the time of an effort, heads aside."""
        if self.n_routed == 0:
            return 0.0
        scored = _LIST_COST * self.n_items / self.n_routed
        return effort * (max(_GRAPH_COST, scored) if self.kind == "graph" else scored)

    def holds(self, item_nums: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which items [C] have a row here."""
        rows = self.rows_of(item_nums)
        return np.asarray((rows >= 0) & (rows < self.codes.n_items))

    # -- internals -------------------------------------------------------------------------

    def _batch(self, request: SearchRequest) -> Batch:
        queries, weights = self._checked(request.queries, request.weights)
        return Batch.of(queries, weights, request, n_items=self.n_items)

    def _rows_of_heads(self) -> tuple[Heads, Heads]:
        usual, long = self.heads
        self._with_head = np.array([least is not None for least in usual.least], dtype=bool)
        self._with_head[MOST_HEADS:] = False
        rows = heads_of(self._stored, usual.least)
        return rows, rows if long == usual else heads_of(self._stored, long.least)

    def _sorts(self, batch: Batch) -> list[int]:
        """Return the sort of every query."""
        if self.n_routed == 0 or self.n_bias == 0:
            return [PLAIN] * len(batch.queries)
        sorts: list[int] = self.sorts(batch.queries, batch.weights).tolist()
        return sorts

    def _plans(
        self, batch: Batch, sorts: list[int], n_allowed: int, effort: int | None
    ) -> list[int]:
        """Return the effort of every query, or SCAN."""
        top_k, offsets = batch.nums.shape[1], batch.excluded.offsets.tolist()
        depths = [top_k + stop - start for start, stop in itertools.pairwise(offsets)]
        found: dict[tuple[int, int], int] = {}
        for pair in zip(depths, sorts, strict=True):
            if pair not in found:
                found[pair] = self._plan(pair[0], n_allowed, effort, pair[1])
        return [found[pair] for pair in zip(depths, sorts, strict=True)]

    def _plan(self, depth: int, n_allowed: int, effort: int | None, sort: int) -> int:
        """Return the effort for `depth` items, or SCAN."""
        limit = self.n_routed
        if limit == 0 or effort == SCAN:
            return SCAN
        least = depth if self.kind == "graph" else 0
        wanted = self.efforts.wanted(sort, depth, least) if effort is None else effort
        if effort is None and n_allowed < self.n_items:
            wanted = -(-max(wanted, 1) * self.n_items // n_allowed)
            wanted = limit if self.rows_for(wanted) >= n_allowed else wanted
        return SCAN if wanted >= limit else max(wanted, 0)

    def _routed(self, some: Batch, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lists or entries of each query, so many of the nearest as the router finds."""
        assert self.router is not None
        assert self.space is not None
        if not counts.any():
            return _NO_LISTS
        asked = self.space.queries(some.queries, some.weights)
        if len(counts) == 1 or (counts == counts[0]).all():
            return self.router.nearest(asked, int(counts[0]), short=True).reshape(-1)
        last = np.cumsum(counts)
        routed = np.empty(int(last[-1]), dtype=np.int64)
        for count in set(counts.tolist()) - {0}:
            same = np.flatnonzero(counts == count)
            nearest = self.router.nearest(asked[same], count, short=True)
            routed[(last - counts)[same][:, None] + np.arange(count)] = nearest
        return routed

    def _full_scan(self, denied: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the runs of all rows, or of the allowed rows where they are a minority."""
        if 2 * np.count_nonzero(denied) > self.n_items:
            allowed = np.flatnonzero(~denied)
            rows = np.sort(self.rows_of(allowed[self.holds(allowed)]))
            return rows, rows + 1
        return np.zeros(1, dtype=np.int64), np.array([self.codes.n_items], dtype=np.int64)

    def _checked(self, queries: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
        cosine = self.similarity == "cosine"
        return checked(queries, weights, dim=self.dim, n_bias=self.n_bias, cosine=cosine)
