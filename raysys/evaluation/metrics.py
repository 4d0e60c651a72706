"""Ranking and rating metrics on arrays.

Letters: B users in a block, N items, L list length, K list cut, M targets, R levels.

A ranker is any `rank(history, top_k) -> int32 [B, top_k]`: items best first, -1 where there are no
more, never an item of the history. A rater is any `rate(history, targets) -> RatingPrediction`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.data.cells import Cells

CALIBRATION_GRID = 512
CALIBRATION_BINS = 15


@dataclasses.dataclass(frozen=True)
class RatingPrediction:
    """What a rater says about M targets.

    Attributes:
        expected: [M] ratings in rating units.
        level_probs: [M, R] probability of each level given that the item is consumed, or None
            where the rater has point predictions only.
    """

    expected: NDArray[np.floating[Any]]
    level_probs: NDArray[np.floating[Any]] | None


class Ranker(Protocol):
    """Ranks the catalogue for every user of `history`."""

    def __call__(self, history: Cells, top_k: int) -> NDArray[np.int32]:
        """Return the top items, int32 [B, top_k], -1 padded."""


class Rater(Protocol):
    """Predicts the level of every target."""

    def __call__(self, history: Cells, targets: Cells) -> RatingPrediction:
        """Predict the targets of the same users, in their order."""


class Expecter(Protocol):
    """Says how likely every item is what a user consumes next."""

    def __call__(self, history: Cells) -> NDArray[np.float32]:
        """Return log P(i | u) over the catalogue, [B, N], as a new array."""


def top_items(scores: NDArray[Any], top_k: int, *, exclude: Cells | None = None) -> Any:
    """Return the best items per row; ties go to the lower item_num.

    Args:
        scores: [B, N]; compared as float32. NaN and -inf are never listed.
        top_k: list length.
        exclude: cells of the same B users whose items are left out.

    Returns:
        int32 [B, top_k], -1 where fewer items are left.
    """
    values = np.array(scores, dtype=np.float32)
    n_rows, n_items = values.shape
    if exclude is not None:
        inside = exclude.item_num < n_items
        values[exclude.rows[inside], exclude.item_num[inside]] = -np.inf
    values[np.isnan(values)] = -np.inf
    width = min(top_k, n_items)
    last = _smallest_of_top(values, width)
    kept = values >= last[:, None]
    for row in np.flatnonzero(np.count_nonzero(kept, axis=1) > width):
        tied = np.flatnonzero(values[row] == last[row])
        above = np.count_nonzero(values[row] > last[row])
        kept[row, tied[width - above :]] = False
    items = np.nonzero(kept)[1].reshape(n_rows, width)
    best = np.take_along_axis(values, items, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    items = np.take_along_axis(items, order, axis=1)
    absent = np.take_along_axis(best, order, axis=1) == -np.inf
    lists = np.full((n_rows, top_k), -1, dtype=np.int32)
    lists[:, :width] = np.where(absent, -1, items)
    return lists


def _smallest_of_top(values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the `width`-th largest value of each row, [B].

    By torch: NumPy's partition is ten times slower on rows with many equal values.
    """
    top = torch.topk(torch.from_numpy(values), width, dim=1, sorted=False).values
    return np.asarray(top.amin(dim=1).numpy())


def target_ranks(lists: NDArray[np.int32], targets: Cells) -> NDArray[np.int32]:
    """Return the 1-based position of every target in its user's list, 0 where it is absent, [M]."""
    n_rows, length = lists.shape
    width = int(max(lists.max(initial=0), targets.item_num.max(initial=0))) + 2
    listed = (np.arange(n_rows)[:, None] * width + lists + 1).ravel()  # -1 maps to column 0
    order = np.argsort(listed, kind="stable")
    wanted = targets.rows * width + targets.item_num + 1
    at = np.minimum(np.searchsorted(listed[order], wanted), max(listed.size - 1, 0))
    if not listed.size:
        return np.zeros(targets.n_cells, dtype=np.int32)
    place = order[at]
    found = listed[place] == wanted
    return np.where(found, place % max(length, 1) + 1, 0).astype(np.int32)


def discounts(length: int) -> NDArray[np.float64]:
    """Return 1 / log2(position + 1) for positions 1 .. length."""
    return np.asarray(1.0 / np.log2(np.arange(2, length + 2, dtype=np.float64)))


def gini(counts: NDArray[np.int64]) -> float:
    """Return the Gini index of how often each item is recommended: 0 equal, towards 1 one item.

    Args:
        counts: [N] times that each catalogue item stands in a list.
    """
    n = len(counts)
    total = int(counts.sum())
    if n == 0 or total == 0:
        return 0.0
    order = np.sort(counts).astype(np.float64)
    return float((2 * np.arange(1, n + 1) - n - 1) @ order) / (n * total)


def rated_distribution(
    level_probs: NDArray[np.floating[Any]], rated: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Renormalise [M, R] level probabilities over the rated levels, [M, n_rated]."""
    kept = np.asarray(level_probs, dtype=np.float64)[:, rated]
    total = kept.sum(axis=1, keepdims=True)
    uniform = np.full_like(kept, 1.0 / kept.shape[1])
    return np.asarray(np.divide(kept, total, out=uniform, where=total > 0))


def calibration_cell(probs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the fine bin 0 .. 511 of each probability, uniform in asin(sqrt(p)).

    That transform stabilises the variance, so small and large probabilities are equally well
    resolved when the fine bins are grouped into bins of equal mass.
    """
    angle = np.arcsin(np.sqrt(np.clip(probs, 0.0, 1.0))) * (2 / np.pi)
    return np.minimum((angle * CALIBRATION_GRID).astype(np.int64), CALIBRATION_GRID - 1)


def equal_mass_groups(counts: NDArray[np.int64], *, bins: int = CALIBRATION_BINS) -> Any:
    """Return the group 0 .. bins-1 of each fine bin [G] such that groups hold equal mass."""
    total = max(int(counts.sum()), 1)
    middle = np.cumsum(counts) - counts / 2
    return np.minimum((middle * bins / total).astype(np.int64), bins - 1)
