"""Lists of an ivf index that are compared with a query one by one, and searched in the same call.

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
    """The lists of an index.

    Attributes:
        axes: [W, D'] that queries and their weights are multiplied with.
        whole, steps: of L rounded centroids in the routing space.
        starts: [L + 1] int64, first row of each in the whole index.
        first_row: row of the whole index that is row 0 here.
    """

    axes: NDArray[Any]
    whole: NDArray[Any]
    steps: NDArray[Any]
    starts: NDArray[Any]
    first_row: int


def held(
    stored: Stored, atoms: Rounded, lists: Lists, spills: Spills, heads: Heads, holders: Holders
) -> Held:
    """Return what `search_lists` reads of an index: rows, dictionary, lists, heads and holders."""
    return (*stored, *atoms, *lists, *spills, *heads[:-1], *heads.stored, *holders)


@compiled
def search_lists(
    index: Held,
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
        queries: [Q, D].
        factor: that they are multiplied with.
        weights: [Q, n_bias] weights of the biases.
        counts: [Q] how many lists each probes, from 1 to L.
        denied: [N] by item_num, True: never returned; [0] when nothing is denied.
        excluded: item_nums that single queries never get, in any order.
        offsets: [Q + 1] where those of each query begin.
        nums: [Q, K] int32, written, padded with -1.
        scores: [Q, K] float32, written, padded with -inf.
        found: [Q] int64, written.
    """
    stored = Stored(index[0], index[1], index[2], index[3], index[4], index[5], index[6])
    atoms = Rounded(index[7], index[8])
    lists = Lists(index[9], index[10], index[11], index[12], index[13])
    spills = Spills(index[14], index[15], index[16])
    of_heads = Stored(index[20], index[21], index[22], index[23], index[24], index[25], index[26])
    heads = Heads(index[17], index[18], index[19], of_heads)
    holders = Holders(index[27], index[28], index[29], index[30])
    n_lists, n_rows = lists.starts.shape[0] - 1, stored.items.shape[0]
    asked = np.empty((queries.shape[0], lists.axes.shape[1]), np.float32)
    combined(queries, weights[:, : lists.axes.shape[0] - queries.shape[1]], lists.axes, asked)
    products = np.empty((queries.shape[0], lists.steps.shape[0]), np.float32)
    integer_products(Rounded(lists.whole, lists.steps), asked, 1.0, products)
    last = np.cumsum(counts)
    first = last - counts
    probed, starts, stops = np.empty((3, last[-1]), np.int64)
    for q in range(queries.shape[0]):
        best_places(products[q, :n_lists], probed[first[q] : last[q]])
    for run in range(probed.shape[0]):
        start, stop = lists.starts[probed[run]], lists.starts[probed[run] + 1]
        starts[run] = min(max(start - lists.first_row, 0), n_rows)
        stops[run] = min(max(stop - lists.first_row, 0), n_rows)
    search_queries(
        stored,
        atoms,
        queries,
        factor,
        weights,
        Runs(starts, stops, probed, first, last),
        spills,
        heads,
        holders,
        denied,
        Excluded(excluded, offsets),
        nums,
        scores,
        found,
    )
