"""Lists of an ivf index that are compared with a query one by one, and searched in the same call.

    Q queries, L lists, D' dims of the routing space

Few centroids, rounded to 8 bits, are compared as a whole sooner than a walk through a graph finds
the nearest of them, and none of them is missed. One call then does without Python all that a query
needs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import Rounded, Stored, integer_products
from raysys.data.compiled import compiled
from raysys.index.best import best_places
from raysys.index.kernels import Excluded, Heads, Runs, Spills, search_queries


class Lists(NamedTuple):
    """The lists of an index.

    Attributes:
        centroids: of L rows, in the routing space.
        starts: [L + 1] int64, first row of each in the whole index.
        first_row: row of the whole index that is row 0 here.
    """

    centroids: Rounded
    starts: NDArray[Any]
    first_row: int


@compiled
def search_lists(
    stored: Stored,
    atoms: Rounded,
    queries: NDArray[Any],
    factor: float,
    weights: NDArray[Any],
    lists: Lists,
    asked: NDArray[Any],
    counts: NDArray[Any],
    spills: Spills,
    heads: Heads,
    denied: NDArray[Any],
    exclude: Excluded,
    nums: NDArray[Any],
    scores: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Keep the best K of the nearest lists of every query, best first.

    Args:
        stored: the rows.
        atoms: of the dictionary.
        queries: [Q, D].
        factor: that they are multiplied with.
        weights: [Q, n_bias] weights of the biases.
        lists: of the index.
        asked: [Q, D'] the queries in the routing space.
        counts: [Q] how many lists each probes, from 1 to L.
        spills: rows that belong to other lists and are near these as well.
        heads: rows that a query scores whatever its lists.
        denied: [N] by item_num, True: never returned; [0] when nothing is denied.
        exclude: item_nums that are never returned to one query.
        nums: [Q, K] int32, written, padded with -1.
        scores: [Q, K] float32, written, padded with -inf.
        found: [Q] int64, written.
    """
    n_lists, n_rows = lists.starts.shape[0] - 1, stored.items.shape[0]
    products = np.empty((asked.shape[0], lists.centroids.steps.shape[0]), np.float32)
    integer_products(lists.centroids, asked, 1.0, products)
    last = np.cumsum(counts)
    first = last - counts
    probed, starts, stops = np.empty((3, last[-1]), np.int64)
    for q in range(asked.shape[0]):
        best_places(products[q, :n_lists], probed[first[q] : last[q]])
    for run in range(probed.shape[0]):
        start, stop = lists.starts[probed[run]], lists.starts[probed[run] + 1]
        starts[run] = min(max(start - lists.first_row, 0), n_rows)
        stops[run] = min(max(stop - lists.first_row, 0), n_rows)
    runs = Runs(starts, stops, probed, first, last)
    search_queries(
        stored,
        atoms,
        queries,
        factor,
        weights,
        runs,
        spills,
        heads,
        denied,
        exclude,
        nums,
        scores,
        found,
    )
