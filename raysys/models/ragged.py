"""Sums over ragged profiles, and where the level tables of Conv4Rec start.

Letters: B users, M cells of a batch, P distinct (user, item) pairs, N items, R levels, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels

_USER_PSEUDO_CELLS = 10.0  # pull a user's distribution over levels to the overall one


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
    """Sum values [M, ...] over the cells of every profile, [B, ...]."""
    return values.new_zeros(batch.n_rows, *values.shape[1:]).index_add(0, batch.rows, values)


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


def user_levels(
    batch: Ragged, residual: Tensor, log_overall: Tensor, pseudo_cells: Tensor
) -> Tensor:
    """Return what a user's own ratings say about any other, [B, 1 + R].

    First the mean residual, shrunk to zero by `pseudo_cells`; then by how much the log of the
    user's distribution over levels differs from the overall one.

    Args:
        batch: B users.
        residual: [N, R] of `LevelStart`.
        log_overall: [R] of `LevelStart`.
        pseudo_cells: [] of `LevelStart`.
    """
    value, rated, hot = _cell_levels(batch, residual)
    sums = [sum_rows(part, batch) for part in (value, rated, hot)]
    return _user_levels(sums, log_overall, pseudo_cells)


def user_levels_left_out(
    batch: Ragged, pairs: Pairs, residual: Tensor, log_overall: Tensor, pseudo_cells: Tensor
) -> Tensor:
    """Return the same for every cell from its user's cells of other items, [M, 1 + R]."""
    rows = batch.rows
    sums = [
        sum_rows(part, batch)[rows] - pairs.at_cells(pairs.total(part))
        for part in _cell_levels(batch, residual)
    ]
    return _user_levels(sums, log_overall, pseudo_cells)


def _cell_levels(batch: Ragged, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each cell's residual (0 where there is none), whether it has one, its level."""
    value = residual[batch.item_num, batch.level]
    hot = F.one_hot(batch.level, residual.shape[1]).to(value.dtype)
    return value.nan_to_num(0.0), torch.isfinite(value).to(value.dtype), hot


def _user_levels(sums: list[Tensor], log_overall: Tensor, pseudo_cells: Tensor) -> Tensor:
    total, count, hist = sums
    mean = total / (count + pseudo_cells)
    cells = hist.sum(dim=1, keepdim=True) + _USER_PSEUDO_CELLS
    shares = (hist + _USER_PSEUDO_CELLS * log_overall.exp()) / cells
    return torch.cat([mean[:, None], shares.log() - log_overall], dim=1)
