"""Profiles as ragged tensors: one run of cells per user, never padded to the catalogue.

Letters: B users, M cells (observed (user, item, level) triples).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.data.cells import Cells

_BLOCK_CELLS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Ragged:
    """The cells of B users, user by user.

    Attributes:
        offsets: int64 [B + 1]; the cells of row b are offsets[b] .. offsets[b + 1].
        item_num: int64 [M].
        level: int64 [M].
        age: float32 [M] seconds before a reference time, at least 0; None where time is unknown.
        distinct: whether it is known that no profile holds an item twice.
        left: float32 [M, 2] what `factors_left_out` of the autoencoder says of the cells, where it
            was kept.
    """

    offsets: Tensor
    item_num: Tensor
    level: Tensor
    age: Tensor | None = None
    distinct: bool = False
    left: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Number of users B."""
        return len(self.offsets) - 1

    @functools.cached_property
    def counts(self) -> Tensor:
        """Return the number of cells per user, int64 [B]."""
        return self.offsets.diff()

    @functools.cached_property
    def rows(self) -> Tensor:
        """Return the row (0 .. B-1) of every cell, int64 [M]."""
        rows = torch.arange(self.n_rows, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.counts, output_size=len(self.item_num))

    def to(self, device: torch.device) -> Ragged:
        """Return a copy on `device`."""
        age = None if self.age is None else self.age.to(device)
        return Ragged(
            offsets=self.offsets.to(device),
            item_num=self.item_num.to(device),
            level=self.level.to(device),
            age=age,
            distinct=self.distinct,
            left=None if self.left is None else self.left.to(device),
        )


def ragged(cells: Cells, *, reference_time: int | None = None) -> Ragged:
    """Turn cells into tensors.

    Args:
        cells: B users.
        reference_time: UTC seconds that ages are counted from; later cells have age 0. None
            leaves ages out.
    """
    age = None if reference_time is None else torch.from_numpy(_ages(cells, reference_time))
    return Ragged(
        offsets=torch.from_numpy(np.array(cells.offsets, dtype=np.int64)),
        item_num=torch.from_numpy(cells.item_num.astype(np.int64)),
        level=torch.from_numpy(cells.level.astype(np.int64)),
        age=age,
    )


def _ages(cells: Cells, reference_time: int) -> NDArray[np.float32]:
    return np.maximum(reference_time - cells.timestamp, 0).astype(np.float32)


class Resident:
    """Cells that lie on a device, where batches of users are gathered.

    Args:
        cells: of all users.
        device: where batches are wanted. A GPU keeps 5 bytes a cell for it, 9 with ages.
        reference_time: as of `ragged`.

    Attributes:
        left: [M, 2] that batches bring along, 8 bytes a cell more; None until it is set.
    """

    def __init__(
        self, cells: Cells, device: torch.device, *, reference_time: int | None = None
    ) -> None:
        self.device = device
        self._starts, self._counts = cells.offsets[:-1], cells.counts
        self._item_num = torch.from_numpy(np.require(cells.item_num, None, "W")).to(device)
        self._level = torch.from_numpy(np.require(cells.level, None, "W")).to(device)
        self._age: Tensor | None = None
        if reference_time is not None:
            self._age = torch.from_numpy(_ages(cells, reference_time)).to(device)
        self._distinct = _distinct(cells)
        self.left: Tensor | None = None

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self._counts)

    def users(self, rows: NDArray[Any]) -> Ragged:
        """Return the cells of users at `rows`, int [B], user by user in that order."""
        counts = self._counts[rows]
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        shift = np.stack([self._starts[rows] - offsets[:-1], counts])
        shifts, sizes = torch.from_numpy(shift).to(self.device)
        size = int(offsets[-1])
        source = torch.repeat_interleave(shifts, sizes, output_size=size)
        source += torch.arange(size, device=self.device)
        return Ragged(
            offsets=torch.from_numpy(offsets).to(self.device),
            item_num=self._item_num[source].long(),
            level=self._level[source].long(),
            age=None if self._age is None else self._age[source],
            distinct=self._distinct,
            left=None if self.left is None else self.left[source],
        )


def _distinct(cells: Cells) -> bool:
    """Tell whether no user has two cells of an item."""
    n_items = int(cells.item_num.max(initial=0)) + 1
    counts = cells.counts
    bounds = np.searchsorted(cells.offsets, np.arange(0, cells.n_cells, _BLOCK_CELLS))
    for first, last in itertools.pairwise([*np.unique(bounds).tolist(), cells.n_users]):
        rows = np.repeat(np.arange(last - first), counts[first:last])
        keys = rows * n_items + cells.item_num[slice(*cells.offsets[[first, last]])]
        keys.sort()
        if (keys[1:] == keys[:-1]).any():
            return False
    return True
