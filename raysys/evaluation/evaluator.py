"""The evaluator: sums per user that merge, and metrics with bootstrap intervals.

Source of pooled recall@K^beta: Kasalicky, Alves, Kordik, EvalRS at KDD 2023, arXiv 2308.06885:
the sum of p(i)^-beta over targets in the top K, divided by the sum over all targets. The printed
user weight carries a factor 1/|U|; without it beta = 0 gives plain recall, as the text requires.
`recall@K` without an exponent is another number: the mean over users of hits / min(K, targets).

Letters: B users in a block, N items, M targets, R levels, L list length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels
from raysys.errors import DataError
from raysys.evaluation import metric_table as lay
from raysys.evaluation import metrics
from raysys.evaluation.bootstrap import (
    ONE,
    fixed_point,
    interval,
    poisson_weights,
    weighted_sums,
)
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.ranked_users import RankedUsers, popularity_slice
from raysys.evaluation.reliability import Consumed, Levels

U = TypeVar("U")
Metrics = dict[str, dict[str, float | None]]

_LIMIT = 2.0**61
_CALIBRATION_ONE = 1 << 24
_MIN_PROB = 1e-12


class Evaluator:
    """Adds up per-user sums and their bootstrap replicates; parts merge bit for bit.

    Args:
        layout: which sums are kept.
        item_counts: int64 [N], training interactions per item of the period's catalogue. An
            item's share p(i) uses at least one interaction; the scale of p cancels.
        levels: the log's levels; None leaves the rating metrics out.
        seed: of the bootstrap weights.
        replicates: bootstrap replicates; 0 leaves the intervals out.
    """

    def __init__(
        self,
        layout: MetricLayout,
        *,
        item_counts: NDArray[np.int64],
        levels: RatingLevels | None = None,
        seed: int = 0,
        replicates: int = 1000,
    ) -> None:
        self.layout = layout
        self.seed = seed
        self.replicates = replicates
        self.n_items = len(item_counts)
        self.levels = levels
        self.sums = np.zeros((1 + replicates, len(layout.columns)), dtype=np.int64)
        self.exposure = np.zeros(self.n_items, dtype=np.int64)
        n_cells = (levels.n_rated if levels else 0) * metrics.CALIBRATION_GRID
        self.gaps: NDArray[np.int64] | None = None  # [1 + replicates, n_cells], made when needed
        self.masses = np.zeros(n_cells, dtype=np.int64)
        self.levels_said = Levels(levels.n_rated if levels else 0)
        self.consumed = Consumed()
        self._total = 0.0
        share = np.maximum(item_counts, 1) / max(float(np.maximum(item_counts, 1).sum()), 1.0)
        self._weights = {b: _penalty(share, b) for b in layout.betas}
        self._surprise = fixed_point(-np.log2(share))
        self._tenths = popularity_slice(item_counts)

    def update_ranking(
        self,
        keys: NDArray[np.uint64],
        *,
        history: Cells,
        targets: Cells,
        lists: NDArray[np.int32],
    ) -> NDArray[np.int64]:
        """Add B rows that have at least one target each.

        Args:
            keys: [B] `user_keys`; rows of one user share a key, hence their weights.
            history: what the ranker saw.
            targets: new items inside the catalogue, each once per row.
            lists: [B, L] items best first, -1 padded, L at least `layout.list_length`.

        Returns:
            int64 [B, C], the sums of each row.
        """
        users = RankedUsers(
            history=history,
            targets=targets,
            ranks=metrics.target_ranks(lists, targets),
            lists=lists[:, : lay.SLICE_K],
            weights=self._weights,
            surprise=self._surprise,
            tenths=self._tenths,
        )
        sums = self._summed(self.layout.rank_sums, users, len(keys))
        listed = users.lists[users.lists >= 0]
        self.exposure += np.bincount(listed, minlength=self.n_items)
        self._add(keys, sums)
        return sums

    def update_ratings(
        self, keys: NDArray[np.uint64], *, targets: Cells, prediction: metrics.RatingPrediction
    ) -> NDArray[np.int64]:
        """Add the rated targets of B users; unrated targets are left out.

        Args:
            keys: [B] `user_keys`.
            targets: M cells with their levels.
            prediction: of these M cells, in their order.

        Returns:
            int64 [B, C], the sums of each user.
        """
        levels = self.levels
        if levels is None:
            raise ValueError("an evaluator without levels has no rating metrics")
        rated = levels.rated[targets.level]
        kept = targets.take(rated)
        values = np.asarray(levels.value_array()[kept.level], dtype=np.float64)
        error = np.asarray(prediction.expected, dtype=np.float64)[rated] - values
        error /= self.layout.rating_range
        surprisal = None
        if prediction.level_probs is not None:
            probs = metrics.rated_distribution(prediction.level_probs[rated], levels.rated)
            at = np.cumsum(levels.rated)[kept.level] - 1
            surprisal = -np.log(np.maximum(probs[np.arange(len(at)), at], _MIN_PROB))
            self._calibrate(keys, kept, probs, at)
        users = lay.RatedUsers(kept, error, surprisal)
        sums = self._summed(lay.RATING_SUMS, users, len(keys))
        self._add(keys, sums)
        return sums

    def merge(self, other: Evaluator) -> Evaluator:
        """Add the sums of another part; returns self."""
        if (other.layout, other.seed, other.replicates, other.n_items) != (
            self.layout,
            self.seed,
            self.replicates,
            self.n_items,
        ):
            raise ValueError("only evaluators of the same settings merge")
        self._guard(other._total)
        self.sums = self.sums + other.sums  # not in place: what Ray hands over is read-only
        self.exposure = self.exposure + other.exposure
        self.masses = self.masses + other.masses
        if other.gaps is not None:
            self.gaps = other.gaps if self.gaps is None else self.gaps + other.gaps
        self.levels_said.merge(other.levels_said)
        self.consumed.merge(other.consumed)
        return self

    def result(self) -> Metrics:
        """Return every metric that has data, with 95 % intervals over users."""
        found = {r.name: self._ratio(r) for r in self.layout.ratios}
        calibration = self._expected_calibration_error()
        if calibration is not None:
            found["ece"] = calibration
        listed = int(self.exposure.sum())
        if listed:
            cut = lay.SLICE_K
            found[f"coverage@{cut}"] = point(np.count_nonzero(self.exposure) / self.n_items)
            found[f"gini@{cut}"] = point(metrics.gini(self.exposure))
        return {name: value for name, value in found.items() if value is not None}

    def slices(self) -> Metrics:
        """Return metrics by popularity, history, level and days, where there is data."""
        found = {r.name: self._ratio(r) for r in self.layout.slices}
        return {name: value for name, value in found.items() if value is not None}

    def figures(self) -> dict[str, Any]:
        """Return what is no single number, each where there is data.

        `calibration`: {"consume": bins of P(i | u), "levels": {level: bins}}; a bin has `low`,
        `high`, `predicted`, `observed` and `n`. `confusion`: rated `levels` and `counts`
        [true][most likely]. `coverage`: share of the catalogue in the lists, and their Gini index.
        """
        found: dict[str, Any] = {}
        calibration: dict[str, Any] = {}
        if self.consumed.table.any():
            calibration["consume"] = self.consumed.bins()
        if self.levels is not None and self.gaps is not None and self.masses.any():
            names = self.levels.names[: self.levels.n_rated]
            gaps = self.gaps[0] / _CALIBRATION_ONE
            calibration["levels"] = self.levels_said.curves(self.masses, gaps, names)
            counts = self.levels_said.confusion.tolist()
            found["confusion"] = {"levels": list(names), "counts": counts}
        if calibration:
            found["calibration"] = calibration
        if self.exposure.any():
            cut, listed = lay.SLICE_K, np.count_nonzero(self.exposure) / self.n_items
            gini = metrics.gini(self.exposure)
            found["coverage"] = {f"items_in_lists@{cut}": float(listed), f"gini@{cut}": gini}
        return found

    def count(self, column: str) -> int:
        """Return the unweighted sum of a column of counts, such as `rows` or `rated`."""
        return int(self.sums[0, self.layout.index[column]])

    def _add(self, keys: NDArray[np.uint64], sums: NDArray[np.int64]) -> None:
        self._guard(float(np.abs(sums.astype(np.float64)).sum(axis=0).max(initial=0.0)))
        self.sums[0] += sums.sum(axis=0)
        if self.replicates:
            weights = poisson_weights(keys, seed=self.seed, replicates=self.replicates)
            self.sums[1:] += weighted_sums(weights, sums)

    def _guard(self, increase: float) -> None:
        self._total += increase
        if self._total > _LIMIT:
            raise DataError("the sums of this evaluation do not fit 64 bits: evaluate fewer users")

    def _summed(
        self, sums: Mapping[str, Callable[[U], NDArray[np.int64]]], users: U, n_users: int
    ) -> NDArray[np.int64]:
        """Return the columns of some users, [B, C]; those that have no sum here stay zero."""
        columns = np.zeros((n_users, len(self.layout.columns)), dtype=np.int64)
        for name, of in sums.items():
            columns[:, self.layout.index[name]] = of(users)
        return columns

    def _calibrate(
        self,
        keys: NDArray[np.uint64],
        targets: Cells,
        probs: NDArray[np.float64],
        at: NDArray[Any],
    ) -> None:
        """Add probability minus outcome per (level, fine bin of the probability)."""
        grid = metrics.CALIBRATION_GRID
        n_rated = probs.shape[1]
        cell = metrics.calibration_cell(probs) + np.arange(n_rated) * grid  # [M, R]
        outcome = np.arange(n_rated) == at[:, None]
        gap = np.rint((probs - outcome) * _CALIBRATION_ONE).astype(np.int64)
        per_user = np.zeros((len(keys), self.masses.size), dtype=np.int64)
        np.add.at(per_user, (np.repeat(targets.rows, n_rated), cell.ravel()), gap.ravel())
        self.levels_said.add(probs, cell, at)
        self.masses += np.bincount(cell.ravel(), minlength=self.masses.size)
        if self.gaps is None:
            self.gaps = np.zeros((1 + self.replicates, self.masses.size), dtype=np.int64)
        self.gaps[0] += per_user.sum(axis=0)
        if self.replicates:
            weights = poisson_weights(keys, seed=self.seed, replicates=self.replicates)
            self.gaps[1:] += weighted_sums(weights, per_user)

    def _expected_calibration_error(self) -> dict[str, float | None] | None:
        """Return the mean over levels of sum over 15 equal-mass bins |mean p - share| * mass.

        The interval is shifted by the bootstrap's own bias: resampling noise only adds to a sum
        of absolute values.
        """
        if self.gaps is None:
            return None
        masses = self.masses.reshape(-1, metrics.CALIBRATION_GRID)
        gaps = self.gaps.reshape(len(self.gaps), *masses.shape)
        errors = np.zeros(len(gaps))
        for level, mass in enumerate(masses):
            group = metrics.equal_mass_groups(mass)
            onto = (group[:, None] == np.arange(metrics.CALIBRATION_BINS)).astype(np.int64)
            errors += np.abs(gaps[:, level] @ onto).sum(axis=1) / _CALIBRATION_ONE
        rated = self.sums[:, self.layout.index["with_probs"]]
        errors /= len(masses) * np.maximum(rated, 1)
        mean = float(errors[0])
        if not self.replicates:
            return point(mean)
        low, high = interval(np.maximum(errors[1:] - errors[1:].mean() + mean, 0.0))
        return {"mean": mean, "ci_low": low, "ci_high": high}

    def _ratio(self, ratio: lay.Ratio) -> dict[str, float | None] | None:
        index = self.layout.index
        values = ratio.of(self.sums[:, index[ratio.num]], self.sums[:, index[ratio.den]])
        if not np.isfinite(values[0]):
            return None
        low, high = interval(values[1:])
        return {"mean": float(values[0]), "ci_low": low, "ci_high": high}


def _penalty(share: NDArray[np.float64], beta: float) -> NDArray[np.int64]:
    """Return p^-beta in fixed point, scaled so that a training interaction weighs 1 on average."""
    if beta == 0.0:
        return np.full(len(share), ONE, dtype=np.int64)
    relative = share / share.max()
    weights = relative**-beta
    return fixed_point(weights / (share @ weights))


def point(value: float) -> dict[str, float | None]:
    """Return a metric of which no interval is known."""
    return {"mean": float(value), "ci_low": None, "ci_high": None}
