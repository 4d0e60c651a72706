"""Sums over ragged profiles, and where the level tables of Conv4Rec start.

Letters: B users, M cells of a batch, P distinct (user, item) pairs, N items, R levels, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels

_SMOOTHING = 10.0  # pseudo-observations that pull an item's level shares to the overall ones


class Pairs:
    """The distinct (user, item) pairs of a batch; an item may have several cells in a profile.

    Attributes:
        row, item: int64 [P] row and item of each pair.
        share: float32 [M] 1 / number of the pair's cells: sums over cells then count a pair once.
    """

    def __init__(self, batch: Ragged, n_items: int) -> None:
        key = batch.rows * n_items + batch.item_num
        pairs, of_cell, counts = torch.unique(key, return_inverse=True, return_counts=True)
        self._n_rows = batch.n_rows
        self._of_cell = None if len(pairs) == len(key) else of_cell
        if self._of_cell is None:  # the usual case: pairs are cells, in their order
            self.row, self.item = batch.rows, batch.item_num
            self.share = torch.ones(len(key), device=key.device)
        else:
            self.row, self.item = pairs // n_items, pairs % n_items
            self.share = 1.0 / counts[of_cell]

    def total(self, values: Tensor) -> Tensor:
        """Sum values [M, ...] over the cells of each pair, [P, ...]."""
        if self._of_cell is None:
            return values
        zeros = values.new_zeros(len(self.row), *values.shape[1:])
        return zeros.index_add(0, self._of_cell, values)

    def at_cells(self, values: Tensor) -> Tensor:
        """Return values [P, ...] at the pair of every cell, [M, ...]."""
        return values if self._of_cell is None else values[self._of_cell]

    def per_user(self, values: Tensor) -> Tensor:
        """Sum values [P] over the pairs of each user, [B]."""
        return values.new_zeros(self._n_rows).index_add(0, self.row, values)


def bag(batch: Ragged, vectors: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum of item vectors [N, H] over every profile, [B, H]."""
    return F.embedding_bag(
        batch.item_num,
        vectors,
        batch.offsets[:-1],
        mode="sum",
        per_sample_weights=weight.contiguous(),
    )


def sum_rows(values: Tensor, batch: Ragged) -> Tensor:
    """Sum values [M] over the cells of every profile, [B]."""
    return values.new_zeros(batch.n_rows).index_add(0, batch.rows, values)


def log_shares(counts: Tensor) -> Tensor:
    """Return [N, R] log shares of the levels per item, smoothed towards the overall shares."""
    overall = (counts.sum(dim=0) + 1) / (counts.sum() + counts.shape[1])
    total = counts.sum(dim=1, keepdim=True) + _SMOOTHING
    return ((counts + _SMOOTHING * overall) / total).log()


def level_table(
    levels: RatingLevels, counts: Tensor, channels: int, draw: torch.Generator
) -> Tensor:
    """Return [R, C]: the standardised rating, presence, its square, then random channels.

    Unordered levels have no rating: random entries tell them apart instead.

    Args:
        levels: R levels.
        counts: [R] interactions at each level.
        channels: C.
        draw: source of the random entries.
    """
    table = torch.randn(levels.n_levels, max(channels, 3), generator=draw)
    table[:, 1] = 1.0
    rated = levels.n_rated
    if rated > 1:
        values = torch.from_numpy(levels.value_array()[:rated])
        share = (counts[:rated] + 1) / (counts[:rated] + 1).sum()
        centred = values - (share * values).sum()
        standard = centred / (share * centred * centred).sum().sqrt()
        table[:rated, 0] = standard
        table[:rated, 2] = standard * standard - 1
    return table[:, :channels]
