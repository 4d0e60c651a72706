"""What a model says against what happened: tables of counts that merge.

`Levels` counts rated targets: how often each level was likely and how often it was given, and the
true level against the most likely one. `Consumed` counts pairs of a new item and a thing that the
user consumed in the period: P(i | u) is the chance that the one is the other, so the share of such
pairs that are is what it should be.

Letters: B users, N items, M targets, R rated levels, G fine bins of the evaluator's calibration,
K bins of P(i | u).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.compiled import compiled, compiled_with
from raysys.evaluation import metrics
from raysys.evaluation.bootstrap import ONE, fixed_point

LOWEST = 1e-8  # of P(i | u): bins go from here to 1, those below are in the first
PER_DECADE = 4
N_BINS = round(-math.log10(LOWEST)) * PER_DECADE
_LOG_LOWEST = math.log(LOWEST)
_STEPS = PER_DECADE / math.log(10)

Counts = NDArray[np.int64]
Bins = list[dict[str, float | int]]


class Levels:
    """Counts of rated targets.

    Args:
        n_rated: R.

    Attributes:
        outcomes: int64 [R * G] targets of the level by the fine bin of its probability.
        confusion: int64 [R, R] targets by their level and the most likely one, the first of equals.
    """

    def __init__(self, n_rated: int) -> None:
        self.outcomes: Counts = np.zeros(n_rated * metrics.CALIBRATION_GRID, dtype=np.int64)
        self.confusion: Counts = np.zeros((n_rated, n_rated), dtype=np.int64)

    def add(self, probs: NDArray[np.float64], cell: Counts, at: Counts) -> None:
        """Add M targets.

        Args:
            probs: [M, R] of the rated levels.
            cell: [M, R] place of each probability in `outcomes`.
            at: [M] the level that was given.
        """
        n_rated = len(self.confusion)
        own = cell[np.arange(len(at)), at]
        self.outcomes += np.bincount(own, minlength=self.outcomes.size)
        place = at * n_rated + probs.argmax(axis=1)
        self.confusion += np.bincount(place, minlength=n_rated**2).reshape(n_rated, n_rated)

    def merge(self, other: Levels) -> None:
        """Add another part; nothing is changed in place: what Ray hands over is read-only."""
        self.outcomes = self.outcomes + other.outcomes
        self.confusion = self.confusion + other.confusion

    def curves(
        self, masses: Counts, gaps: NDArray[np.float64], names: Sequence[str]
    ) -> dict[str, Bins]:
        """Return {level: bins} in the bins of equal mass that `ece` has.

        Args:
            masses: [R * G] targets by the fine bin of each level's probability.
            gaps: [R * G] sums of probability minus outcome.
            names: [R] of the levels.
        """
        grid = metrics.CALIBRATION_GRID
        edges = np.sin(np.arange(grid + 1) / grid * math.pi / 2) ** 2
        curves = {}
        for name, mass, gap, outcome in zip(
            names,
            *(values.reshape(-1, grid) for values in (masses, gaps, self.outcomes)),
            strict=True,
        ):
            group = metrics.equal_mass_groups(mass)
            bins = []
            for number in np.unique(group[mass > 0]):
                inside = np.flatnonzero((group == number) & (mass > 0))
                n, observed = int(mass[inside].sum()), int(outcome[inside].sum())
                predicted = observed + float(gap[inside].sum())
                ends = edges[inside[0]], edges[inside[-1] + 1]
                bins.append(_bin(*ends, n=n, predicted=predicted, observed=observed))
            curves[name] = bins
        return curves


class Consumed:
    """Counts of (new item, consumed thing) pairs by P(i | u).

    Attributes:
        table: int64 [3, K]: pairs, the sum of their P in fixed point, those that are the same item.
    """

    def __init__(self) -> None:
        self.table: Counts = np.zeros((3, N_BINS), dtype=np.int64)

    def add(self, log_p: NDArray[np.float32], *, history: Cells, targets: Cells) -> None:
        """Add B users.

        Args:
            log_p: [B, N] log P(i | u); those of the history are set to minus infinity.
            history: items that cannot be a target; unknown ones may be among them.
            targets: new items of the catalogue, each once per user.
        """
        known = history.take(history.item_num < log_p.shape[1])
        log_p[known.rows, known.item_num] = -np.inf
        shape = (len(log_p), N_BINS)
        pairs, hits = (np.zeros(shape, dtype=np.int64) for _ in range(2))
        mass = np.zeros(shape)
        _count(log_p, targets.offsets, targets.item_num, pairs, mass, hits)
        times = targets.counts
        self.table += np.stack((times @ pairs, times @ fixed_point(mass), hits.sum(axis=0)))

    def merge(self, other: Consumed) -> None:
        """Add another part."""
        self.table = self.table + other.table

    def bins(self) -> Bins:
        """Return the bins that hold pairs, the least likely first."""
        edges = LOWEST * 10.0 ** (np.arange(N_BINS + 1) / PER_DECADE)
        edges[0] = 0.0
        return [
            _bin(
                *edges[number : number + 2],
                n=int(self.table[0, number]),
                predicted=self.table[1, number] / ONE,
                observed=int(self.table[2, number]),
            )
            for number in np.flatnonzero(self.table[0])
        ]


def _bin(
    low: float, high: float, *, n: int, predicted: float, observed: int
) -> dict[str, float | int]:
    """Return a bin's ends, its mean prediction, the share observed and the count."""
    return {
        "low": float(low),
        "high": float(high),
        "predicted": float(predicted / n),
        "observed": observed / n,
        "n": n,
    }


@compiled
def _place(log_p: float) -> int:
    """Return the bin of a log probability."""
    return min(max(int((log_p - _LOG_LOWEST) * _STEPS), 0), N_BINS - 1)


@compiled_with(parallel=True)
def _count(log_p: Any, offsets: Any, items: Any, pairs: Any, mass: Any, hits: Any) -> None:
    """Write counts [B, K] of log P [B, N], their sums of P, and those of targets."""
    for user in numba.prange(len(log_p)):
        for value in log_p[user]:
            if value > -np.inf:
                place = _place(value)
                pairs[user, place] += 1
                mass[user, place] += math.exp(value)
        for cell in range(offsets[user], offsets[user + 1]):
            hits[user, _place(log_p[user, items[cell]])] += 1
