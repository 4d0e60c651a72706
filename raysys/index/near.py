"""Lists of an ivf index: those nearest to a query, by comparison, and the search of some of them.

    Q queries, L lists, D dims, D' dims of the routing space

Few centroids, rounded to 8 bits, are compared as a whole sooner than a walk through a graph finds
the nearest of them, and none of them is missed. One call then does without Python all that a query
needs. What it reads of the index goes in as one flat tuple: numba takes a microsecond for it, and
four for the same arrays in tuples with names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import Stored
from raysys.data.compiled import compiled
from raysys.data.products import Rounded, integer_products
from raysys.index.best import best_places
from raysys.index.holders import Holders
from raysys.index.kernels import Excluded, Heads, Runs, Spills, combined, search_queries

Held = tuple[Any, ...]


class Lists(NamedTuple):
    """The lists of an index that are compared with queries.

    Attributes:
        axes: [W, D'] that queries and their weights are multiplied with.
        whole, steps: of L rounded centroids in the routing space.
    """

    axes: NDArray[Any]
    whole: NDArray[Any]
    steps: NDArray[Any]


def held(
    stored: Stored,
    atoms: Rounded,
    starts: NDArray[Any],
    first_row: int,
    spills: Spills,
    heads: Heads,
    holders: Holders,
) -> Held:
    """Return what the searches of lists read of an index.

    Args:
        stored: the rows.
        atoms: of the dictionary.
        starts: [L + 1] int64, first row of each list in the whole index; [0]: a list is a row.
        first_row: row of the whole index that is row 0 here.
        spills: see `search_queries`.
        heads: the same.
        holders: the same.
    """
    return *stored, *atoms, *spills, *heads[:-1], *heads.stored, *holders, starts, first_row


@compiled
def search_near(
    index: Held,
    lists: Lists,
    queries: NDArray[Any],
    factor: float,
    weights: NDArray[Any],
    counts: NDArray[Any],
    denied: NDArray[Any],
    excluded: NDArray[Any],
    offsets: NDArray[Any],
    nums: NDArray[Any],
    scores: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Keep the best K of the nearest lists of every query, best first.

    Args:
        index: what `held` returns.
        lists: that are compared with the queries.
        queries: [Q, D].
        factor: that they are multiplied with.
        weights: [Q, n_bias] weights of the biases.
        counts: [Q] how many lists each probes, from 1 to L.
        denied: this and all that follow: see `search_lists`.
        excluded: item_nums.
        offsets: [Q + 1].
        nums: [Q, K], written.
        scores: [Q, K], written.
        found: [Q], written.
    """
    axes, n_lists = lists.axes, index[26].shape[0] - 1
    asked = np.empty((queries.shape[0], axes.shape[1]), np.float32)
    combined(queries, weights[:, : axes.shape[0] - queries.shape[1]], axes, asked)
    products = np.empty((queries.shape[0], lists.steps.shape[0]), np.float32)
    integer_products(Rounded(lists.whole, lists.steps), asked, 1.0, products)
    last = np.cumsum(counts)
    first = last - counts
    probed = np.empty(last[-1], np.int64)
    for q in range(queries.shape[0]):
        best_places(products[q, :n_lists], probed[first[q] : last[q]])
    search_lists(
        index,
        queries,
        factor,
        weights,
        probed,
        counts,
        denied,
        excluded,
        offsets,
        nums,
        scores,
        found,
    )


@compiled
def search_lists(
    index: Held,
    queries: NDArray[Any],
    factor: float,
    weights: NDArray[Any],
    probed: NDArray[Any],
    counts: NDArray[Any],
    denied: NDArray[Any],
    excluded: NDArray[Any],
    offsets: NDArray[Any],
    nums: NDArray[Any],
    scores: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Keep the best K of some lists of every query, best first.

    Args:
        index: what `held` returns.
        queries: [Q, D].
        factor: that they are multiplied with.
        weights: [Q, n_bias] weights of the biases.
        probed: [P] lists, query by query.
        counts: [Q] how many are each one's.
        denied: [N] by item_num, True: never returned; [0] when nothing is denied.
        excluded: item_nums that single queries never get, in any order.
        offsets: [Q + 1] where those of each query begin.
        nums: [Q, K] int32, written, padded with -1.
        scores: [Q, K] float32, written, padded with -inf.
        found: [Q] int64, written.
    """
    stored = Stored(index[0], index[1], index[2], index[3], index[4], index[5], index[6])
    atoms = Rounded(index[7], index[8])
    spills = Spills(index[9], index[10], index[11])
    of_heads = Stored(index[15], index[16], index[17], index[18], index[19], index[20], index[21])
    heads = Heads(index[12], index[13], index[14], of_heads)
    holders = Holders(index[22], index[23], index[24], index[25])
    of_lists, first_row, n_rows = index[26], index[27], stored.items.shape[0]
    last = np.cumsum(counts)
    starts, stops = np.empty(probed.shape[0], np.int64), np.empty(probed.shape[0], np.int64)
    for run in range(probed.shape[0]):
        start, stop = probed[run], probed[run] + 1
        if of_lists.shape[0] > 0:
            start, stop = of_lists[start], of_lists[stop]
        starts[run] = min(max(start - first_row, 0), n_rows)
        stops[run] = min(max(stop - first_row, 0), n_rows)
    search_queries(
        stored,
        atoms,
        queries,
        factor,
        weights,
        Runs(starts, stops, probed, last - counts, last),
        spills,
        heads,
        holders,
        denied,
        Excluded(excluded, offsets),
        nums,
        scores,
        found,
    )
