"""Simple rating predictors that every report on rated logs shows beside the model.

Letters: U users, N items, M cells, R levels.

marginal: the training share of each level. histogram: each item's own shares, smoothed by the
marginal. bias: mean + item + user offsets with separate penalties (Koren, "Factor in the
Neighbors", TKDD 2010, section 2.1), by alternating ridge steps. The user offset is read off the
history, so users unknown to training are predicted too; unknown items get no offset.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.evaluation.metrics import RatingPrediction

BIAS_SWEEPS = 15


@dataclasses.dataclass(frozen=True)
class LevelShares:
    """Predicts the level shares of each item.

    Attributes:
        probs: float64 [N + 1, R]; the last row is for items unknown to training.
        values: [R] rating values, NaN for unrated levels.
    """

    probs: NDArray[np.float64]
    values: NDArray[np.float32]

    def __call__(self, history: Cells, targets: Cells) -> RatingPrediction:
        """Predict every target from its item alone."""
        probs = self.probs[np.minimum(targets.item_num, len(self.probs) - 1)]
        return RatingPrediction(mean_rating(probs, self.values), probs)

    def save(self, folder: Path, name: str) -> None:
        """Write the shares and values."""
        np.save(folder / f"{name}.npy", self.probs)
        np.save(folder / f"{name}.values.npy", self.values)

    @classmethod
    def load(cls, folder: Path, name: str) -> LevelShares:
        """Read what `save` wrote."""
        return cls(np.load(folder / f"{name}.npy"), np.load(folder / f"{name}.values.npy"))


@dataclasses.dataclass(frozen=True)
class Bias:
    """Predicts mean + item offset + user offset, clipped to the rating range.

    Attributes:
        items: float64 [N + 1] item offsets, the last (0) for unknown items.
        values: [R] rating values, NaN for unrated levels.
        mean: training mean in rating units.
        user_penalty: ridge penalty of the user offset, in ratings.
    """

    items: NDArray[np.float64]
    values: NDArray[np.float32]
    mean: float
    user_penalty: float

    def __call__(self, history: Cells, targets: Cells) -> RatingPrediction:
        """Predict every target; the user offset comes from the rated history."""
        known = history.take(np.isfinite(self.values[history.level]))
        rest = self.values[known.level] - self.mean - self._item(known)
        total = np.bincount(known.rows, weights=rest, minlength=history.n_users)
        users = total / (known.counts + self.user_penalty)
        expected = self.mean + self._item(targets) + users[targets.rows]
        low, high = np.nanmin(self.values), np.nanmax(self.values)
        return RatingPrediction(np.clip(expected, low, high), None)

    def _item(self, cells: Cells) -> NDArray[np.float64]:
        return self.items[np.minimum(cells.item_num, len(self.items) - 1)]

    def save(self, folder: Path, name: str) -> None:
        """Write the offsets, values and scalars."""
        np.save(folder / f"{name}.npy", self.items)
        np.save(folder / f"{name}.values.npy", self.values)
        np.save(folder / f"{name}.scalars.npy", np.array([self.mean, self.user_penalty]))

    @classmethod
    def load(cls, folder: Path, name: str) -> Bias:
        """Read what `save` wrote."""
        mean, user_penalty = np.load(folder / f"{name}.scalars.npy").tolist()
        return cls(
            np.load(folder / f"{name}.npy"),
            np.load(folder / f"{name}.values.npy"),
            mean,
            user_penalty,
        )


def mean_rating(probs: NDArray[np.float64], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean rating under [M, R] level probabilities, renormalised over rated levels."""
    rated = np.isfinite(values)
    kept = probs[:, rated]
    mean: NDArray[np.float64] = (kept @ values[rated]) / kept.sum(axis=1)
    return mean


def marginal(cells: Cells, n_items: int, levels: RatingLevels) -> LevelShares:
    """Fit the share of each level; every item gets the same."""
    return histogram(cells, n_items, levels, smoothing=np.inf)


def histogram(cells: Cells, n_items: int, levels: RatingLevels, *, smoothing: float) -> LevelShares:
    """Fit the level shares of each item, smoothed by `smoothing` ratings of the marginal."""
    rated = cells.take(levels.rated[cells.level] & (cells.item_num < n_items))
    n_levels = levels.n_levels
    flat = rated.item_num.astype(np.int64) * n_levels + rated.level
    counts = np.bincount(flat, minlength=(n_items + 1) * n_levels).reshape(-1, n_levels)
    share = counts.sum(axis=0) / max(counts.sum(), 1)
    if np.isinf(smoothing):
        probs = np.tile(share, (n_items + 1, 1))
    else:
        probs = (counts + smoothing * share) / (counts.sum(axis=1, keepdims=True) + smoothing)
    return LevelShares(probs, levels.value_array())


def bias(
    cells: Cells,
    n_items: int,
    levels: RatingLevels,
    *,
    user_penalty: float,
    item_penalty: float,
) -> Bias:
    """Fit the item offsets by 15 alternating sweeps."""
    rated = cells.take(levels.rated[cells.level] & (cells.item_num < n_items))
    values = levels.value_array()
    ratings = values[rated.level].astype(np.float64)
    mean = float(ratings.mean()) if len(ratings) else 0.0
    rest = ratings - mean
    rows, n_users = rated.rows, rated.n_users
    item_sizes = np.bincount(rated.item_num, minlength=n_items + 1) + item_penalty
    users = np.zeros(n_users)
    items = np.zeros(n_items + 1)
    for _ in range(BIAS_SWEEPS):
        sums = np.bincount(rated.item_num, weights=rest - users[rows], minlength=n_items + 1)
        items = sums / item_sizes
        sums = np.bincount(rows, weights=rest - items[rated.item_num], minlength=n_users)
        users = sums / (rated.counts + user_penalty)
    return Bias(items, values, mean, user_penalty)
