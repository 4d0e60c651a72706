"""What ratings look like before anything is learned: per item, per user, over all.

Letters: M cells of U users and N items at R levels with values v_r.

A rating is taken apart as v = mean + b_i + b_u + noise, both biases shrunk by n / (n + k), with
k the ratio of the variances inside and between (empirical Bayes, so nothing is tuned). An item's
start is then its counts plus `_ITEM_PSEUDO_CELLS` cells of the overall distribution, tilted by
exp(theta_i v) to the mean that its bias says: few ratings move the mean sooner than the shape.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysys.data.schema import RatingLevels

_ITEM_PSEUDO_CELLS = 30.0
_ROUNDS = 5
_NEWTON_STEPS = 30
_FEWEST, _MOST = 0.5, 100.0  # bounds of k

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class LevelStart:
    """Starting point of the level block.

    Attributes:
        log_shares: [N, R] log of every item's level distribution.
        residual: [N, R] how far v_r lies above the item's mean, in overall standard deviations;
            NaN for levels without an order.
        log_overall: [R] log share of each level over all cells.
        user_pseudo_cells: [] k of the users.
    """

    log_shares: Tensor
    residual: Tensor
    log_overall: Tensor
    user_pseudo_cells: Tensor


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
        levels: R levels; biases follow from the rated ones, if there are two or more.
    """
    n_levels, rated = levels.n_levels, levels.n_rated
    counts = np.zeros((n_items, n_levels))
    np.add.at(counts, (items, level), 1.0)
    share = (counts.sum(axis=0) + 1) / (len(rows) + n_levels)
    values = levels.value_array().astype(np.float64)
    prior = np.tile(share, (n_items, 1))
    residual = np.full((n_items, n_levels), np.nan)
    pseudo = 1.0
    if rated > 1:
        overall = share[:rated] / share[:rated].sum()
        mean = float(overall @ values[:rated])
        spread = float(np.sqrt(overall @ np.square(values[:rated] - mean)))
        known = level < rated
        means, pseudo = _item_means(rows[known], items[known], values[level[known]], mean, n_items)
        residual[:, :rated] = (values[:rated] - means[:, None]) / spread
        centred = np.zeros(n_levels)
        centred[:rated] = (values[:rated] - mean) / spread
        inside = np.clip((means - mean) / spread, centred[0] * 0.99, centred[rated - 1] * 0.99)
        prior = _tilted(share, centred, inside)
    shares = counts + _ITEM_PSEUDO_CELLS * prior
    shares /= shares.sum(axis=1, keepdims=True)
    parts = (np.log(shares), residual, np.log(share), np.array(pseudo))
    return LevelStart(*(torch.from_numpy(part).float() for part in parts))


def no_start(n_items: int, levels: RatingLevels) -> LevelStart:
    """Return the start without any cells."""
    none = np.zeros(0, dtype=np.int64)
    return level_start(none, none, none, n_items=n_items, levels=levels)


def _item_means(
    rows: NDArray[Any], items: NDArray[Any], values: Floats, mean: float, n_items: int
) -> tuple[Floats, float]:
    """Return every item's mean for an average user, [N], and the users' k."""
    n_users = int(rows.max()) + 1 if len(rows) else 1
    k_item = _shrinkage(items, values - mean)
    item = _shrunk(items, values - mean, n_items, k_item)
    k_user = _shrinkage(rows, values - mean - item[items])
    for _ in range(_ROUNDS):
        user = _shrunk(rows, values - mean - item[items], n_users, k_user)
        item = _shrunk(items, values - mean - user[rows], n_items, k_item)
    return mean + item, k_user


def _shrunk(groups: NDArray[Any], values: Floats, n_groups: int, k: float) -> Floats:
    counts = np.bincount(groups, minlength=n_groups)
    return np.asarray(np.bincount(groups, values, minlength=n_groups) / (counts + k))


def _shrinkage(groups: NDArray[Any], values: Floats) -> float:
    """Return the variance inside groups over that between them (one-way analysis of variance)."""
    counts = np.bincount(groups).astype(np.float64)
    sums = np.bincount(groups, values)
    some = counts > 0
    counts, sums = counts[some], sums[some]
    free = counts.sum() - len(counts)
    if free <= 0 or len(counts) < 2:
        return _MOST
    explained = float((sums * sums / counts).sum())
    inside = (float((values * values).sum()) - explained) / free
    centre = counts.sum() * float(values.mean()) ** 2
    typical = (counts.sum() - (counts * counts).sum() / counts.sum()) / (len(counts) - 1)
    between = ((explained - centre) / (len(counts) - 1) - inside) / typical
    return float(np.clip(inside / max(between, 1e-12), _FEWEST, _MOST))


def _tilted(share: Floats, centred: Floats, means: Floats) -> Floats:
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
