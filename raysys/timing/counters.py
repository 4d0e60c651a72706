"""Decayed counters of items: what was taken lately, brought up to date by multiply and add.

    N items, H half-lives

A counter of half-life h is the sum over events of 2^(-age / h). After d days it is 2^(-d / h) of
what it was, and an event adds one to its item: no training, no log of the past. The shares of
several half-lives mix into one expectation of what is taken next: short ones know the head, long
ones the tail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats

HALF_LIVES_D = (0.25, 0.5, 1.0, 2.0, 3.0, 7.0, 14.0, 30.0, 90.0, 0.0)
"""Half-lives in days; 0 never forgets."""

_DAY_S = 86_400.0
_SMOOTHING = 0.3  # added to the counter that never forgets: an item without events has a share too
_ALWAYS = 0.02  # of that counter in every mixture: orders what nobody took lately


@dataclasses.dataclass(frozen=True)
class Counters:
    """Counters of N items.

    Attributes:
        values: float32 [H, N], a row per half-life.
        time: UTC seconds that they stand at.
    """

    values: Floats
    time: int

    @classmethod
    def of(
        cls,
        items: NDArray[np.integer[Any]],
        times: NDArray[np.integer[Any]],
        *,
        n_items: int,
        time: int,
    ) -> Self:
        """Count events.

        Args:
            items: [M] item numbers below `n_items`.
            times: [M] UTC seconds, at most `time`.
            n_items: N.
            time: when the counters stand.
        """
        none = cls(np.zeros((len(HALF_LIVES_D), n_items), dtype=np.float32), time)
        return dataclasses.replace(none, values=none.values + _decayed(items, times, n_items, time))

    @property
    def n_items(self) -> int:
        """Number of items N."""
        return int(self.values.shape[1])

    @property
    def totals(self) -> Floats:
        """Events of every item, never forgotten, [N]."""
        return np.asarray(self.values[HALF_LIVES_D.index(0.0)])

    def added(self, items: NDArray[np.integer[Any]], times: NDArray[np.integer[Any]]) -> Self:
        """Return the counters with further events, at the first second after the newest one.

        Args:
            items: [M] item numbers, M may be 0.
            times: [M] UTC seconds; an event from before the counters' time adds what is left of it.
        """
        if not len(items):
            return self
        time = max(self.time, int(np.max(times)) + 1)
        values = _decayed(items, times, self.n_items, time)
        for half_life, row, old in zip(HALF_LIVES_D, values, self.values, strict=True):
            row += old * np.float32(_left(time - self.time, half_life))
        return dataclasses.replace(self, values=values, time=time)

    def log_share(self, shares: Sequence[float]) -> Floats:
        """Return the log of the mixed expectation of what is taken next, [N].

        Args:
            shares: [H] that each half-life has in the mixture; they add up to 1.
        """
        always = self.totals.astype(np.float64) + _SMOOTHING
        always /= always.sum()
        mixed = _ALWAYS * always
        for half_life, share, row in zip(HALF_LIVES_D, shares, self.values, strict=True):
            total = float(row.sum(dtype=np.float64))
            known = row / total if half_life and total > 0 else always
            mixed += (1 - _ALWAYS) * share * known
        return np.asarray(np.log(mixed), dtype=np.float32)


def _left(age_s: Any, half_life_days: float) -> Any:
    """Return what is left of events of these ages, a number or [M]."""
    return np.exp2(age_s / (-half_life_days * _DAY_S)) if half_life_days else age_s * 0.0 + 1.0


def _decayed(
    items: NDArray[np.integer[Any]], times: NDArray[np.integer[Any]], n_items: int, time: int
) -> Floats:
    age = time - np.asarray(times, dtype=np.int64)
    counts = np.zeros((len(HALF_LIVES_D), n_items), dtype=np.float32)
    for half_life, row in zip(HALF_LIVES_D, counts, strict=True):
        row += np.bincount(items, weights=_left(age, half_life), minlength=n_items)
    return counts
