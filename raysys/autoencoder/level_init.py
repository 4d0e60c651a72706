"""What ratings look like before anything is learned by gradients: per item, per user, over all.

Letters: M cells of U users and N items at R levels with values v_r, F factors.

A rating is taken apart as v = mean + b_i + f_u . [1, v_i] + noise (rating_factors.py). An
item's start is then its counts plus `_ITEM_PSEUDO_CELLS` cells of the overall distribution, tilted
by exp(theta_i v) to the mean that its bias says: few ratings move the mean sooner than the shape.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.autoencoder.rating_factors import no_factors, rating_factors
from raysys.data.schema import RatingLevels

_ITEM_PSEUDO_CELLS = 30.0
_NEWTON_STEPS = 30

Doubles = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LevelStart:
    """Starting point of the level block.

    Attributes:
        log_shares: [N, R] log of every item's level distribution.
        residual: [N, R] how far v_r lies above the item's mean, in overall standard deviations;
            NaN for levels without an order.
        log_overall: [R] log share of each level over all cells.
        loadings, loading_variance: [N, 1 + F] of `RatingFactors`.
        penalties: [1 + F] of `RatingFactors`.
    """

    log_shares: Tensor
    residual: Tensor
    log_overall: Tensor
    loadings: Tensor
    loading_variance: Tensor
    penalties: Tensor


def level_start(
    rows: NDArray[np.integer[Any]],
    items: NDArray[np.integer[Any]],
    level: NDArray[np.integer[Any]],
    *,
    n_items: int,
    levels: RatingLevels,
) -> LevelStart:
    """Fit the start to cells.

    Args:
        rows: [M] user of each cell, 0 or more.
        items: [M] its item.
        level: [M] its level.
        n_items: N.
        levels: R levels; factors follow from the rated ones, if there are two or more.
    """
    n_levels, rated = levels.n_levels, levels.n_rated
    counts = np.zeros((n_items, n_levels))
    np.add.at(counts, (items, level), 1.0)
    share = (counts.sum(axis=0) + 1) / (len(rows) + n_levels)
    values = levels.value_array().astype(np.float64)
    prior = np.tile(share, (n_items, 1))
    residual = np.full((n_items, n_levels), np.nan)
    factors = no_factors(n_items)
    if rated > 1:
        overall = share[:rated] / share[:rated].sum()
        mean = float(overall @ values[:rated])
        spread = float(np.sqrt(overall @ np.square(values[:rated] - mean)))
        known = level < rated
        standard = ((values - mean) / spread).astype(np.float32)[level[known]]
        factors = rating_factors(rows[known], items[known], standard, n_items=n_items)
        means = mean + spread * factors.item_bias.astype(np.float64)
        residual[:, :rated] = (values[:rated] - means[:, None]) / spread
        centred = np.zeros(n_levels)
        centred[:rated] = (values[:rated] - mean) / spread
        inside = np.clip((means - mean) / spread, centred[0] * 0.99, centred[rated - 1] * 0.99)
        prior = _tilted(share, centred, inside)
    shares = counts + _ITEM_PSEUDO_CELLS * prior
    shares /= shares.sum(axis=1, keepdims=True)
    parts = (np.log(shares), residual, np.log(share))
    learned = (factors.loadings, factors.variance, factors.penalties)
    return LevelStart(*(torch.from_numpy(part).float() for part in (*parts, *learned)))


def no_start(n_items: int, levels: RatingLevels, n_factors: int = 0) -> LevelStart:
    """Return the start without any cells, of so many factors."""
    none = np.zeros(0, dtype=np.int64)
    start = level_start(none, none, none, n_items=n_items, levels=levels)
    factors = no_factors(n_items, n_factors)
    learned = (factors.loadings, factors.variance, factors.penalties)
    loadings, variance, penalties = map(torch.from_numpy, learned)
    return dataclasses.replace(
        start, loadings=loadings, loading_variance=variance, penalties=penalties
    )


def agreed(start: LevelStart | None, n_items: int, levels: RatingLevels) -> LevelStart:
    """Return the leader's start, and on the other ranks an empty one with as many factors.

    Args:
        start: of rank 0; None on the others.
        n_items: N.
        levels: R levels.
    """
    group = torch.distributed
    size = torch.tensor(0 if start is None else start.loadings.shape[1])
    if group.is_available() and group.is_initialized():
        size = size.to("cuda" if group.get_backend() == "nccl" else "cpu")
        group.broadcast(size, 0)
    return no_start(n_items, levels, int(size) - 1) if start is None else start


def _tilted(share: Doubles, centred: Doubles, means: Doubles) -> Doubles:
    """Return [N, R] share * exp(theta_i centred), theta_i such that the mean of `centred` fits."""
    theta = np.zeros(len(means))
    inside = share / share.sum()
    for _ in range(_NEWTON_STEPS):
        tilted = inside * np.exp(theta[:, None] * centred)
        tilted /= tilted.sum(axis=1, keepdims=True)
        mean = tilted @ centred
        variance = tilted @ np.square(centred) - mean * mean
        theta = np.clip(theta + (means - mean) / np.maximum(variance, 1e-3), -20, 20)
    return np.asarray(tilted)
