"""Item shards: an index in parts whose merged answer equals that of the whole, bit for bit.

A shard holds a run of the whole index's rows and the whole router: every shard probes the same
lists and scores those rows of them, spilled ones included, that it holds. Merging by (score,
item_num) then gives what one index gives. Where the lists of a query hold too few items for its
top_k, the whole takes more of them; the merge decides that too, as no shard can know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.index.index import SCAN, Index
from raysys.index.layout import Nums
from raysys.index.request import SearchRequest


class Searchable(Protocol):
    """What answers queries over N items: an index, its shards, or either with changes on top."""

    @property
    def n_items(self) -> int:
        """Size N of the item_num space."""

    @property
    def dim(self) -> int:
        """Dimensions D of queries."""

    def search(self, request: SearchRequest) -> tuple[Nums, Floats]:
        """Return item_nums and scores [Q, K]; see `Index.search`."""


class Shards:
    """Shards of one index behind the interface of the whole.

    Args:
        parts: all of them, in any order.
    """

    def __init__(self, parts: Sequence[Index]) -> None:
        self.parts = list(parts)
        self.n_items = parts[0].n_items
        self.dim = parts[0].dim

    def search(self, request: SearchRequest) -> tuple[Nums, Floats]:
        """Return what the whole index returns; see `Index.search`."""
        nums, scores = self._merged(request)
        room = min(request.top_k, self.n_items) if request.guarantee else 0
        short = np.flatnonzero((nums >= 0).sum(axis=1) < room)
        n_allowed = request.n_allowed(self.n_items)
        if not len(short) or n_allowed == 0:
            return nums, scores
        whole = self.parts[0]  # plans for all of them
        plans = np.array(whole.plans(request.only(short)))
        short, plans = short[plans != SCAN], plans[plans != SCAN]
        while len(short):
            plans = np.array([whole.wider(plan, n_allowed) for plan in plans.tolist()])
            for plan in set(plans.tolist()):
                rows = short[plans == plan]
                wider = dataclasses.replace(request.only(rows), effort=plan)
                nums[rows], scores[rows] = self._merged(wider)
            again = (plans != SCAN) & ((nums[short] >= 0).sum(axis=1) < room)
            short, plans = short[again], plans[again]
        return nums, scores

    def with_bias(self, column: int, values: Floats) -> Shards:
        """Return the shards with other biases [N] in one column; see `Index.with_bias`."""
        return Shards([part.with_bias(column, values) for part in self.parts])

    def _merged(self, request: SearchRequest) -> tuple[Nums, Floats]:
        short = dataclasses.replace(request, guarantee=False)
        return merge([part.search(short) for part in self.parts], top_k=request.top_k)

    def score_items(
        self, query: Floats, item_nums: NDArray[Any], weights: Floats | None = None
    ) -> Floats:
        """Return the code scores [C] of some items for one query [D]."""
        item_nums = np.asarray(item_nums)
        out = np.empty(len(item_nums), dtype=np.float32)
        for part in self.parts:
            held = part.holds(item_nums)
            out[held] = part.score_items(query, item_nums[held], weights)
        return out


def shard_of(index: Index, start: int, stop: int) -> Index:
    """Return the shard that holds rows [start, stop) of a whole index."""
    rows = slice(start, stop)
    return Index(
        kind=index.kind,
        similarity=index.similarity,
        codes=index.codes.take(rows),
        bias=index.bias[rows],
        dictionary=index.dictionary,
        layout=index.layout.taken(start, stop),
        space=index.space,
        router=index.router,
        efforts=index.efforts,
        n_items=index.n_items,
        first_row=start,
        heads=index.heads,
        holders=index.holders.taken(start, stop),
    )


def shard_bounds(index: Index, n_shards: int) -> list[int]:
    """Return the first rows of `n_shards` shards of about equal size, and N; lists stay whole."""
    wanted = np.linspace(0, index.n_items, n_shards + 1)
    if index.kind != "ivf":
        return [int(row) for row in wanted]
    starts = index.layout.starts
    return [int(starts[np.argmin(np.abs(starts - row))]) for row in wanted]


def merge(answers: Sequence[tuple[Nums, Floats]], *, top_k: int) -> tuple[Nums, Floats]:
    """Return the best of several answers: item_nums and scores [Q, top_k], padded as they are."""
    nums = np.concatenate([a[0] for a in answers], axis=1)
    scores = np.concatenate([a[1] for a in answers], axis=1)
    order = np.lexsort((nums, -scores), axis=1)[:, :top_k]
    return np.take_along_axis(nums, order, 1), np.take_along_axis(scores, order, 1)
