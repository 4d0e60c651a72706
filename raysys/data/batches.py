"""Profiles as ragged tensors: one run of cells per user, never padded to the catalogue.

Letters: B users, M cells (observed (user, item, level) triples).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from raysys.data.cells import Cells


@dataclasses.dataclass(frozen=True)
class Ragged:
    """The cells of B users, user by user.

    Attributes:
        offsets: int64 [B + 1]; the cells of row b are offsets[b] .. offsets[b + 1].
        item_num: int64 [M].
        level: int64 [M].
        age: float32 [M] seconds before a reference time, at least 0; None where time is unknown.
    """

    offsets: Tensor
    item_num: Tensor
    level: Tensor
    age: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Number of users B."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Tensor:
        """Return the number of cells per user, int64 [B]."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:
        """Return the row (0 .. B-1) of every cell, int64 [M]."""
        rows = torch.arange(self.n_rows, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.counts, output_size=len(self.item_num))

    def to(self, device: torch.device) -> Ragged:
        """Return a copy on `device`."""
        age = None if self.age is None else self.age.to(device)
        return Ragged(self.offsets.to(device), self.item_num.to(device), self.level.to(device), age)


def ragged(cells: Cells, *, reference_time: int | None = None) -> Ragged:
    """Turn cells into tensors.

    Args:
        cells: B users.
        reference_time: UTC seconds that ages are counted from; later cells have age 0. None
            leaves ages out.
    """
    age = None
    if reference_time is not None:
        seconds = np.maximum(reference_time - cells.timestamp, 0)
        age = torch.from_numpy(seconds.astype(np.float32))
    return Ragged(
        offsets=torch.from_numpy(np.array(cells.offsets, dtype=np.int64)),
        item_num=torch.from_numpy(cells.item_num.astype(np.int64)),
        level=torch.from_numpy(cells.level.astype(np.int64)),
        age=age,
    )
