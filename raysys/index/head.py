"""The head: rows whose bias is so large that a query may want them wherever they lie.

A score is a product plus weighted biases. Lists bring together what lies in one direction, so the
items of a large bias, of which every answer holds some, lie in all of them: without a head an
index of real logs probed a quarter of its lists to find them. The head of a bias is the thousand
rows, or more where that saves lists, where it is largest; a query that gives the bias a positive
weight scores them all. Long queries, of the users who like few items much, have heads of their own.

A head is kept as a threshold for each bias: a shard then knows its part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import Stored
from raysys.data.arrays import Floats
from raysys.index.kernels import Heads

HEAD_ROWS = 1024
Rows = NDArray[np.int64]

NO_ROWS: Rows = np.zeros(0, dtype=np.int64)
MOST_HEADS = 8  # columns of one byte's bits
MOST_ROWS = 1 << 17  # of a head: they are copied into memory


@dataclasses.dataclass(frozen=True)
class Head:
    """Which rows are the heads of an index.

    Attributes:
        rows: about how many the head of each column has.
        least: least bias of each column's head; None where it has none.
    """

    rows: tuple[int, ...]
    least: tuple[float | None, ...]

    @classmethod
    def of(cls, bias: Floats, rows: tuple[int, ...] | None = None) -> Head:
        """Return the heads of biases [N, n_bias] of all items; None: of a thousand rows each."""
        rows = (HEAD_ROWS,) * bias.shape[1] if rows is None else rows
        return cls(rows, tuple(map(threshold, bias.T, rows)))

    def moved(self, column: int, values: Floats, rows: int | None = None) -> Head:
        """Return the heads where one column has other biases [N], or a head of other size."""
        sizes, least = list(self.rows), list(self.least)
        sizes[column] = sizes[column] if rows is None else rows
        least[column] = threshold(values, sizes[column])
        return Head(tuple(sizes), tuple(least))


def threshold(column: Floats, rows: int = HEAD_ROWS) -> float | None:
    """Return the least bias [N] of a head; None where a thousand rows or so cannot be told apart.

    Args:
        column: of all items.
        rows: about how many the head has; half as many, and so on, where too many share its least.
    """
    most = min(2 * max(rows, HEAD_ROWS), len(column) - 1)
    if most < 1:
        return None
    largest = np.sort(np.partition(column, len(column) - most - 1)[len(column) - most - 1 :])[::-1]

    def least_of(size: int) -> float | None:
        least = float(largest[min(size, len(column) // 2) - 1])
        count = np.searchsorted(-largest, -least, side="right")
        return least if count <= min(2 * size, len(column) - 1) else None

    found = least_of(HEAD_ROWS)
    size = rows
    while found is not None and size > HEAD_ROWS:
        larger = least_of(size)
        if larger is not None:
            return larger
        size //= 2
    return found


def heads_of(stored: Stored, least: Sequence[float | None]) -> Heads:
    """Return the heads of some rows.

    Args:
        stored: the rows.
        least: the thresholds of the whole index; of the first eight columns.
    """
    parts = [
        _largest(stored.bias[:, column], value) for column, value in enumerate(least[:MOST_HEADS])
    ]
    columns = np.zeros(len(stored.items), dtype=np.uint8)
    for number, rows in enumerate(parts):
        columns[rows] |= np.uint8(1 << number)
    starts = np.cumsum([0, *(len(rows) for rows in parts)], dtype=np.int64)
    rows = np.concatenate([NO_ROWS, *parts])
    shared = {"kind": stored.kind, "codebook": stored.codebook}
    copies: dict[str, Any] = {
        name: _copied(array, rows) for name, array in stored._asdict().items() if name not in shared
    }
    return Heads(starts, columns, columns[rows], stored._replace(**copies))


def _largest(column: NDArray[Any], least: float | None) -> Rows:
    """Return the rows of a head, the largest bias first: the best of a query come early then."""
    if least is None:
        return NO_ROWS
    rows = np.flatnonzero(column >= least)
    return rows[np.argsort(-column[rows], kind="stable")]


def _copied(array: NDArray[Any], rows: Rows) -> NDArray[Any]:
    """Return some rows, read only where the array is: compiled loops then take both alike."""
    copy = np.ascontiguousarray(array[rows])
    copy.setflags(write=array.flags.writeable)
    return copy
