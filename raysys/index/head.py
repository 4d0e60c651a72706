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

from raysys.data.arrays import Floats
from raysys.index.kernels import Heads

HEAD_ROWS = 1024
NO_ROWS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
NO_HEADS = Heads(np.zeros(1, np.int64), NO_ROWS, np.zeros(0, np.uint8))
_MOST = 8  # columns of one byte's bits


@dataclasses.dataclass(frozen=True)
class Head:
    """Which rows are the heads of an index.

    Attributes:
        rows: about how many a head has.
        least: least bias of each column's head; None where it has none.
    """

    rows: int
    least: tuple[float | None, ...]

    @classmethod
    def of(cls, bias: Floats, rows: int = HEAD_ROWS) -> Head:
        """Return the heads of biases [N, n_bias] of all items."""
        return cls(rows, tuple(threshold(column, rows) for column in bias.T))

    def resized(self, bias: Floats, rows: int) -> Head:
        """Return heads of about so many rows; one that ties would make too large stays."""
        pairs = zip(self.least, Head.of(bias, rows).least, strict=True)
        return Head(rows, tuple(now if None in (now, new) else new for now, new in pairs))

    def moved(self, column: int, values: Floats) -> Head:
        """Return the heads where one column has other biases [N]."""
        least = list(self.least)
        least[column] = threshold(values, self.rows)
        return Head(self.rows, tuple(least))


def threshold(column: Floats, rows: int = HEAD_ROWS) -> float | None:
    """Return the least bias [N] of a head of about `rows` rows, None without one."""
    size = min(rows, len(column) // 2)
    if size == 0:
        return None
    least = float(np.partition(column, len(column) - size)[len(column) - size])
    return least if np.count_nonzero(column >= least) <= 2 * rows else None


def heads_of(bias: NDArray[Any], least: Sequence[float | None]) -> Heads:
    """Return the heads of some rows.

    Args:
        bias: [N, n_bias] of the rows.
        least: the thresholds of the whole index; of the first eight columns.
    """
    parts = [
        NO_ROWS if value is None else np.flatnonzero(bias[:, number] >= value)
        for number, value in enumerate(least[:_MOST])
    ]
    columns = np.zeros(len(bias), dtype=np.uint8)
    for number, rows in enumerate(parts):
        columns[rows] |= np.uint8(1 << number)
    starts = np.cumsum([0, *(len(rows) for rows in parts)], dtype=np.int64)
    return Heads(starts, np.concatenate([NO_ROWS, *parts]), columns)
