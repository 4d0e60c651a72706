"""Sums over ragged profiles, and where the level tables of Conv4Rec start.

Letters: B users, M cells of a batch, P distinct (user, item) pairs, N items, R levels, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels

_USER_PSEUDO_CELLS = 5.0  # pull a user's mean residual to zero
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


def residual_table(levels: RatingLevels, counts: Tensor) -> Tensor:
    """Return [N, R]: how far a rating lies above its item's (smoothed) mean, in overall deviations.

    NaN for unordered levels.
    """
    values = torch.from_numpy(levels.value_array())
    rated = levels.n_rated
    if rated < 2:
        return torch.full((len(counts), levels.n_levels), torch.nan)
    shares = log_shares(counts[:, :rated]).exp()  # [N, rated]
    mean = shares @ values[:rated] / shares.sum(dim=1)
    overall = counts[:, :rated].sum(dim=0) + 1
    overall = overall / overall.sum()
    variance = (overall * (values[:rated] - (overall * values[:rated]).sum()).square()).sum()
    return (values - mean[:, None]) / variance.sqrt()


def user_means(batch: Ragged, table: Tensor) -> Tensor:
    """Return every user's mean residual, shrunk to zero where there are few, [B].

    Args:
        batch: B users.
        table: [N, R] of `residual_table`.
    """
    residual, rated = _residuals(batch, table)
    return sum_rows(residual, batch) / (sum_rows(rated, batch) + _USER_PSEUDO_CELLS)


def user_means_left_out(batch: Ragged, table: Tensor, pairs: Pairs) -> Tensor:
    """Return for every cell its user's mean residual over the other items, [M]."""
    residual, rated = _residuals(batch, table)
    rows = batch.rows
    total = sum_rows(residual, batch)[rows] - pairs.at_cells(pairs.total(residual))
    count = sum_rows(rated, batch)[rows] - pairs.at_cells(pairs.total(rated))
    return total / (count + _USER_PSEUDO_CELLS)


def _residuals(batch: Ragged, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual of every cell, 0 for unordered levels, and whether it has one, [M]."""
    residual = table[batch.item_num, batch.level]
    return residual.nan_to_num(0.0), torch.isfinite(residual).to(residual.dtype)
