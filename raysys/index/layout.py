"""Where items lie in the rows of an index: by list, and the second lists of some."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from raysys.index.kernels import NO_SPILLS, Spills

Nums = NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where items lie in row order.

    Attributes:
        items: [N] int32, item_num of each row (rows of a list are consecutive).
        rows: [N] int32, row of each item_num.
        starts: [L + 1] int64, first row of each list; a list is an entry in a graph that has
            equal items; one list for other graphs and flat.
        spills: the second lists of those rows that have one.
    """

    items: Nums
    rows: Nums
    starts: NDArray[np.int64]
    spills: Spills = NO_SPILLS

    @classmethod
    def identity(cls, n_items: int) -> Layout:
        """Return the layout of one list in the order of item_num."""
        nums = np.arange(n_items, dtype=np.int32)
        return cls(nums, nums, np.array([0, n_items], dtype=np.int64))

    @classmethod
    def of_lists(cls, members: Nums, n_lists: int) -> Layout:
        """Return the layout of items in lists, by (list, item_num).

        Args:
            members: [N, 2] first and second list of each item_num; none is second where they agree.
            n_lists: L.
        """
        items = np.argsort(members[:, 0], kind="stable").astype(np.int32)
        rows = np.empty_like(items)
        rows[items] = np.arange(len(items), dtype=np.int32)
        first, second = members[items].T
        spilled = np.argsort(second, kind="stable").astype(np.int32)
        spilled = spilled[second[spilled] != first[spilled]]
        spills = Spills(_starts(second[spilled], n_lists), spilled, first[spilled])
        return cls(items, rows, _starts(first, n_lists), spills)

    def taken(self, start: int, stop: int) -> Layout:
        """Return what an item shard of rows [start, stop) needs.

        `rows` and `starts` stay those of the whole index; rows of `spills` count from `start`.
        """
        starts, rows, homes = self.spills
        held = (rows >= start) & (rows < stop)
        before = np.concatenate([[0], np.cumsum(held)])[starts]
        spills = Spills(before, (rows[held] - start).astype(np.int32), homes[held])
        return Layout(self.items[start:stop], self.rows, self.starts, spills)


def _starts(member: Nums, n_lists: int) -> NDArray[np.int64]:
    counts = np.bincount(member, minlength=n_lists)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
