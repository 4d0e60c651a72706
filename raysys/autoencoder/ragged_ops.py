"""Sums over ragged profiles, and where the level tables of Conv4Rec start.

Letters: B users, M cells of a batch, P distinct (user, item) pairs, N items, R levels, C channels,
F factors.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.autoencoder.gather import part_elements, parts_of, sums_of_rows
from raysys.data.batches import Ragged
from raysys.data.schema import RatingLevels
from raysys.scoring.steps import USER_PSEUDO_CELLS

_LEAST_LEFT = 1e-4  # of what a rating leaves to others


class Pairs:
    """The distinct (user, item) pairs of a batch; an item may have several cells in a profile.

    Attributes:
        row, item: int64 [P] row and item of each pair.
        share: float32 [M] 1 / number of the pair's cells: sums over cells then count a pair once.
    """

    def __init__(self, batch: Ragged, n_items: int) -> None:
        self._n_rows = batch.n_rows
        self._of_cell: Tensor | None = None
        self.row, self.item = batch.rows, batch.item_num  # usually pairs are cells, in their order
        self.share = torch.ones(len(batch.item_num), device=batch.item_num.device)
        if batch.distinct:
            return
        key = batch.rows * n_items + batch.item_num
        pairs, of_cell, counts = torch.unique(key, return_inverse=True, return_counts=True)
        if len(pairs) < len(key):
            self._of_cell = of_cell
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
    if vectors.is_cuda:  # where `embedding_bag` reads a profile's cells one after the other
        into = batch.rows, batch.n_rows
        return sums_of_rows(_weighted, [vectors, weight], [batch.item_num, None], into)
    return F.embedding_bag(
        batch.item_num,
        vectors,
        batch.offsets[:-1],
        mode="sum",
        per_sample_weights=weight.contiguous(),
    )


def bag_channels(batch: Ragged, vectors: Tensor, weight: Tensor) -> Tensor:
    """Return the sums over profiles and channels of vectors [N, C, H] by weights [M, C], [B, H]."""
    if vectors.is_cuda:
        into = batch.rows, batch.n_rows
        return sums_of_rows(_weighted_channels, [vectors, weight], [batch.item_num, None], into)
    channels = vectors.shape[1]
    places = batch.item_num[:, None] * channels + torch.arange(channels, device=weight.device)
    return F.embedding_bag(
        places.flatten(),
        vectors.flatten(0, 1),
        batch.offsets[:-1] * channels,
        mode="sum",
        per_sample_weights=weight.flatten(),
    )


def _weighted(rows: Tensor, weight: Tensor) -> Tensor:
    return rows * weight[:, None]


def _weighted_channels(rows: Tensor, weight: Tensor) -> Tensor:
    return (rows * weight[:, :, None]).sum(dim=1)


def at_levels(table: Tensor, batch: Ragged) -> Tensor:
    """Return table[level] of the cells, [M, ...] from [R, ...].

    As a product, whose gradient is one too: adding up M cells at R places makes them wait.
    """
    hot = _one_hot(batch, len(table), table.dtype)
    with torch.autocast(table.device.type, enabled=False):
        return hot @ table


def _one_hot(batch: Ragged, n_levels: int, dtype: torch.dtype) -> Tensor:
    """Return which level each cell has, [M, R]."""
    return (batch.level[:, None] == torch.arange(n_levels, device=batch.level.device)).to(dtype)


def sum_rows(values: Tensor, batch: Ragged) -> Tensor:
    """Sum values [M, ...] over the cells of every profile, [B, ...]."""
    return values.new_zeros(batch.n_rows, *values.shape[1:]).index_add(0, batch.rows, values)


def newer_cells(batch: Ragged) -> Tensor:
    """Return how many cells of its profile are newer than each cell, int64 [M].

    Cells lie in the order of time; those of one time, as of a basket, are no newer than each other.
    Without times none is newer.
    """
    if batch.age is None or not len(batch.item_num):
        return torch.zeros_like(batch.item_num)
    same = (batch.age[1:] == batch.age[:-1]) & (batch.rows[1:] == batch.rows[:-1])
    ends = torch.cat([~same, torch.ones_like(batch.rows[:1], dtype=torch.bool)])
    run = torch.cumsum(ends, dim=0) - ends.long()
    return batch.offsets[1:][batch.rows] - 1 - torch.nonzero(ends)[:, 0][run]


def level_tables(
    levels: RatingLevels, counts: Tensor, channels: int, outputs: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return A [R, C] and T [K, R], where the tables of inputs and outputs start.

    A's channels are the standardised rating, presence, the rating's square, then random ones; T's
    are the same without presence, which says nothing there. Unordered levels have no rating: random
    entries tell them apart instead.

    Args:
        levels: R levels.
        counts: [R] interactions at each level.
        channels: C.
        outputs: K.
        draw: source of the random entries.
    """
    size = max(channels, outputs + 1)
    table = torch.randn(levels.n_levels, max(size, 3), generator=draw)
    table[:, 1] = 1.0
    rated = levels.n_rated
    if rated > 1:
        values = torch.from_numpy(levels.value_array()[:rated])
        share = (counts[:rated] + 1) / (counts[:rated] + 1).sum()
        centred = values - (share * values).sum()
        standard = centred / (share * centred * centred).sum().sqrt()
        table[:rated, 0] = standard
        table[:rated, 2] = standard * standard - 1
    kept = [c for c in range(size) if c != 1][:outputs]
    return table[:, :channels].clone(), table[:, kept].T.clone()


def level_products(
    z: Tensor,
    outer: Tensor,
    keep: Tensor | None = None,
    table: Tensor | None = None,
    inner: Tensor | None = None,
) -> Tensor:
    """Return W z_l [m, K] of cells, without the items' own share where that is given.

    Args:
        z: [m, Hl] users' latents, after dropout.
        outer: [m, K, Hl] W.
        keep: [m, Hl] what dropout multiplied them by.
        table: [m, C] what the items' own levels put in,
        inner: [m, C, Hl] and by which vectors F.
    """
    if keep is not None and table is not None and inner is not None:
        z = z - keep * (table[:, :, None] * inner).sum(dim=1)
    return (outer * z[:, None, :]).sum(dim=2)


@dataclasses.dataclass(frozen=True)
class UserTables:
    """What a user's side of the level block is made from: entries of `LevelStart`, by their names.

    Attributes:
        rated: whether any level has a residual; a log of events has none, and no factors.
    """

    residual: Tensor
    log_overall: Tensor
    loadings: Tensor
    loading_variance: Tensor
    penalties: Tensor
    rated: bool = True


USER_TABLES = tuple(f.name for f in dataclasses.fields(UserTables) if f.name != "rated")


@torch.no_grad()
def user_levels(batch: Ragged, tables: UserTables) -> Tensor:
    """Return what a user's own ratings say about any other, [B, 1 + F + R].

    First the user's factors, then by how much the log of the user's distribution over levels
    differs from the overall one.
    """
    value, rated = _cell_levels(batch, tables.residual)
    hot = _one_hot(batch, len(tables.log_overall), value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        factors, _ = _user_factors(batch, value, rated, tables)
    return torch.cat([factors, _log_shares(sum_rows(hot, batch), tables)], dim=1)


def factors_at(factors: Tensor, loading: Tensor) -> Tensor:
    """Return f_0 and v_i . f, [m, 2], of a user's factors and an item's loadings [m, 1 + F]."""
    liking = (factors * loading)[:, 1:].sum(dim=1, keepdim=True)
    return torch.cat([factors[:, :1], liking], dim=1)


def shares_left_out(batch: Ragged, pairs: Pairs, tables: UserTables) -> Tensor:
    """Return h for every cell from its user's cells of other items, [M, R]."""
    hot = _one_hot(batch, len(tables.log_overall), tables.log_overall.dtype)
    hist = sum_rows(hot, batch)[batch.rows] - pairs.at_cells(pairs.total(hot))
    return _log_shares(hist, tables)


@torch.no_grad()
def factors_left_out(batch: Ragged, pairs: Pairs, tables: UserTables) -> Tensor:
    """Return f_0 and v_i . f for every cell from its user's cells of other items, [M, 2].

    Leaving out is exact but for the variance of the item's own loadings, which stays in.
    """
    value, rated = _cell_levels(batch, tables.residual)
    left = value.new_zeros(len(value), 2)
    if not tables.rated:
        return left
    own = pairs.at_cells(pairs.total(torch.stack([value, rated], dim=1)))
    with torch.autocast(value.device.type, enabled=False):
        factors, inverse = _user_factors(batch, value, rated, tables)
        for part in _cell_parts(batch, tables):
            rows, items = batch.rows[part], batch.item_num[part]
            loading, user = tables.loadings[items], factors[rows]  # [m, 1 + F]
            gain = (inverse[rows] @ loading[:, :, None])[:, :, 0]
            leverage, expected = (gain * loading).sum(dim=1), (user * loading).sum(dim=1)
            total, count = own[part].T
            share = (total - count * expected) / (1 - count * leverage).clamp_min(_LEAST_LEFT)
            left[part] = factors_at(user - gain * share[:, None], loading)
    return left


def _user_factors(
    batch: Ragged, value: Tensor, rated: Tensor, tables: UserTables
) -> tuple[Tensor, Tensor]:
    """Return the factors [B, 1 + F] by a ridge regression, and the inverse of its matrix."""
    size = tables.loadings.shape[1]
    if not tables.rated:
        return value.new_zeros(batch.n_rows, size), value.new_zeros(0, size, size)
    gram = value.new_zeros(batch.n_rows, size * size)
    for part in _cell_parts(batch, tables):
        loading = tables.loadings[batch.item_num[part]] * rated[part, None]
        square = loading[:, :, None] * loading[:, None, :]
        gram.index_add_(0, batch.rows[part], square.flatten(1))
    gram = gram.view(-1, size, size)
    spread = bag(batch, tables.loading_variance, rated) + tables.penalties
    gram.diagonal(dim1=1, dim2=2).add_(spread)
    inverse = torch.linalg.inv_ex(gram).inverse  # penalties are positive; `inv` would wait
    right = bag(batch, tables.loadings, value)
    return (inverse @ right[:, :, None])[:, :, 0], inverse


def _cell_parts(batch: Ragged, tables: UserTables) -> list[slice]:
    """Cut the cells into parts whose [m, 1 + F, 1 + F] blocks stay small."""
    size, width = len(batch.item_num), tables.loadings.shape[1]
    return parts_of(size, width * width, part_elements(tables.loadings))


def _cell_levels(batch: Ragged, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Return each cell's residual (0 where there is none) and whether it has one."""
    value = residual[batch.item_num, batch.level]
    return value.nan_to_num(0.0), torch.isfinite(value).to(value.dtype)


def _log_shares(hist: Tensor, tables: UserTables) -> Tensor:
    """Return the log of shares over levels from counts [..., R], shrunk, over the overall ones."""
    cells = hist.sum(dim=1, keepdim=True) + USER_PSEUDO_CELLS
    shares = (hist + USER_PSEUDO_CELLS * tables.log_overall.exp()) / cells
    return shares.log() - tables.log_overall
