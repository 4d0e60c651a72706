"""Router: hnswlib over unit rows, and a direct comparison for the rows that no walk reaches.

    N rows, D' dims of the routing space, U rows that a walk may miss

hnswlib inserts a row with links to near ones and later cuts the lists of its neighbours to 2 M
links each. Nothing keeps a link to every row: one in tens of thousands loses all that lead to it,
and rows that are nearly equal (hundreds within float32's rounding of each other) link to one
another alone and become islands. Such a row is never returned, whatever `ef` is. They are known
once the graph is built, and a query is compared with each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from raysys.data.arrays import Floats
from raysys.data.compiled import compiled_fast

Rows = NDArray[np.int64]

EF = 48  # rows that a walk keeps: below that it misses too many of the nearest
_SHORT_EF, _EF_OF_EACH = 16, 4  # of a short walk (hnswlib's own least is 10), and for each row
_LINKS = 16
_EF_CONSTRUCTION = 160
_THOROUGH_EF_CONSTRUCTION = 400


class Router:
    """Nearest lists of a query (ivf), or nearest entries of a graph index.

    Attributes:
        n_rows: N.
        unreached: [U] ascending, rows that a walk through the graph may miss.
        short_ef: rows that a short walk keeps at least.
    """

    def __init__(self, graph: Any, n_rows: int, unreached: Rows) -> None:
        self._graph = graph
        self.n_rows = n_rows
        self.unreached = unreached
        self.short_ef = _SHORT_EF
        self._unreached_rows = self._rows(unreached)

    @classmethod
    def fit(cls, rows: Floats, *, seed: int, thorough: bool = False) -> Router:
        """Build the graph on one thread, so that the same rows give the same bytes.

        Args:
            rows: unit rows, all of them different: copies become islands.
            seed: of the graph.
            thorough: for few rows: three times the work for more exact answers.
        """
        ef = _THOROUGH_EF_CONSTRUCTION if thorough else _EF_CONSTRUCTION
        graph = hnswlib.Index(space="ip", dim=rows.shape[1])
        graph.init_index(len(rows), M=_LINKS, ef_construction=ef, random_seed=seed)
        graph.add_items(rows, np.arange(len(rows)), num_threads=1)
        n_rows = len(rows)
        del rows  # the check copies the graph: as much again
        return cls(graph, n_rows, unreached_rows(graph))

    def save(self, path: Path) -> None:
        """Write the graph; `open` needs its sizes and `unreached` again, hnswlib keeps neither."""
        self._graph.save_index(str(path))

    @classmethod
    def open(cls, path: Path, *, dim: int, n_rows: int, unreached: Rows) -> Router:
        """Read what `save` wrote."""
        graph = hnswlib.Index(space="ip", dim=dim)
        graph.load_index(str(path), max_elements=n_rows)
        return cls(graph, n_rows, unreached)

    def nearest(self, queries: Floats, count: int, *, short: bool = False) -> Rows:
        """Return the `count` nearest rows [Q, count] of queries [Q, D'], nearest first.

        A short walk to few rows takes half the time and finds less of them.
        hnswlib raises where a walk finds fewer rows than it keeps; all rows are then compared, as
        they are where most of them are unreached.
        """
        count = min(count, self.n_rows)
        ef = min(max(self.short_ef, _EF_OF_EACH * count), EF) if short else EF
        ef = min(max(ef, count), self.n_rows)
        if count < self.n_rows and 2 * len(self.unreached) < self.n_rows:
            try:
                nums, distances = self._graph.knn_query(queries, k=ef, num_threads=1)
            except RuntimeError:  # fewer rows are reachable
                pass
            else:
                nearest: Rows = nums[:, :count].astype(np.int64)
                distances = np.ascontiguousarray(distances[:, :count])
                if len(self.unreached):
                    queries = np.ascontiguousarray(queries, dtype=np.float32)
                    _take_in(self._unreached_rows, self.unreached, queries, nearest, distances)
                return nearest
        every = self.rows()
        return np.argsort(-(queries @ every.T), axis=1, kind="stable")[:, :count]

    @property
    def dim(self) -> int:
        """Dimensions D' of the rows."""
        return int(self._graph.dim)

    def rows(self) -> Floats:
        """Return all rows [N, D']."""
        return self._rows(np.arange(self.n_rows))

    def _rows(self, nums: Rows) -> Floats:
        if not len(nums):
            return np.zeros((0, self._graph.dim), dtype=np.float32)
        return np.asarray(self._graph.get_items(nums), dtype=np.float32)


@compiled_fast
def _take_in(
    rows: Floats, numbers: Rows, queries: Floats, nearest: Rows, distances: Floats
) -> None:
    """Insert rows [U, D'] with these numbers where they are nearer than what a walk found.

    Args:
        rows: compared with every query.
        numbers: [U] of the rows.
        queries: [Q, D'].
        nearest: [Q, K] nearest first, changed in place.
        distances: [Q, K] one minus the product, as hnswlib has it; changed in place.
    """
    last = nearest.shape[1] - 1
    for q in range(queries.shape[0]):
        for u in range(rows.shape[0]):
            product = np.float32(0)
            for d in range(rows.shape[1]):
                product += rows[u, d] * queries[q, d]
            distance = np.float32(1) - product
            if distance >= distances[q, last] or (nearest[q] == numbers[u]).any():
                continue
            place = last
            while place > 0 and distances[q, place - 1] > distance:
                distances[q, place], nearest[q, place] = (
                    distances[q, place - 1],
                    nearest[q, place - 1],
                )
                place -= 1
            distances[q, place], nearest[q, place] = distance, numbers[u]


def unreached_rows(graph: Any) -> Rows:
    """Return the rows [U] of an hnswlib graph that a search may miss whatever its ef, ascending.

    A search enters the lowest layer at a row of an upper one and follows links from there. So a
    row is safe if it can be reached from every row of an upper layer. Most of these belong to
    the largest set of rows that reach each other, or lead to it; what they reach holds all that
    it reaches, and only the others are followed one by one.
    """
    links, starts, labels = _lowest_layer(graph)
    _, member = connected_components(links, connection="strong")
    hub = int(np.argmax(member == np.bincount(member).argmax()))
    reached = _reached(links, hub)
    leads = _reached(links.T.tocsr(), hub)
    for start in starts[~leads[starts]]:
        reached &= _reached(links, start)
        if not reached.any():
            break
    return np.sort(labels[~reached])


def _reached(links: sparse.csr_matrix, start: int) -> NDArray[np.bool_]:
    """Return which nodes [N] a walk from `start` can come to."""
    out = np.zeros(links.shape[0], dtype=np.bool_)
    out[breadth_first_order(links, start, return_predecessors=False)] = True
    return out


def _lowest_layer(graph: Any) -> tuple[sparse.csr_matrix, Rows, Rows]:
    """Return links [N, N] of the lowest layer, the nodes of upper ones, and each node's row.

    hnswlib pickles its memory as it is: of each node a uint32 number of links (upper half: flags)
    and room for 2 M of them, the row, and the label under which the row was added.
    """
    state = graph.__getstate__()[0]
    n_nodes, most = state["cur_element_count"], state["max_M0"]
    nodes = state["data_level0"].reshape(-1, state["size_data_per_element"])[:n_nodes]

    def column(first: int, n_bytes: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(nodes[:, first : first + n_bytes])

    head = column(state["offset_level0"], 4 * (most + 1)).view(np.uint32)
    counts = head[:, 0] & 0xFFFF
    targets = head[:, 1:][np.arange(most) < counts[:, None]].astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    ones = np.ones(len(targets), dtype=np.int8)
    links = sparse.csr_matrix((ones, targets, offsets), shape=(n_nodes, n_nodes))
    upper = np.flatnonzero(state["element_levels"][:n_nodes] > 0)
    starts = np.union1d(upper, [state["enterpoint_node"]]).astype(np.int64)
    labels = column(state["label_offset"], 8).view(np.uint64)[:, 0]
    return links, starts, labels.astype(np.int64)
