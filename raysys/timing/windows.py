"""A stretch of the log that forms are rehearsed on: users before it, and what they took in it.

Letters: U users, N items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.data.cells import Cells
from raysys.evaluation.protocols import new_targets
from raysys.timing.counters import Counters
from raysys.timing.form import TimeForm
from raysys.timing.kernels import list_gains
from raysys.training.threads import follow_torch

MAX_USERS = 1500
MAX_ELEMENTS = 1 << 26  # of the scores [U, N]
SPREAD_USERS = 256
_KEPT = 2  # matrices of scores


class RehearsalWindow:
    """Judges forms on one stretch.

    Args:
        personal: profiles and recency -> personal scores [U, N], before lift and length.
        history: profiles of U users at the start.
        targets: what they took for the first time in the stretch, each item once; everyone has
            some.
        counters: at the start.
        sample: profiles of some users that the model was fitted on, for the spread of scores.
        pooled: exponent of the popularity that pooled recall penalises.
    """

    def __init__(
        self,
        personal: Callable[[Cells, float], Floats],
        history: Cells,
        targets: Cells,
        counters: Counters,
        *,
        sample: Cells,
        pooled: float,
    ) -> None:
        self._personal, self._history, self.counters = personal, history, counters
        self._targets, self._sample = targets, sample
        share = np.maximum(counters.totals, 1) / max(float(counters.totals.max()), 1.0)
        self._weights = share.astype(np.float64) ** -pooled
        self._scores: dict[float, Floats] = {}
        self._spreads: dict[tuple[float, float, float], float] = {}

    @property
    def n_users(self) -> int:
        """Number of users U."""
        return self._history.n_users

    def gains(self, form: TimeForm) -> NDArray[np.float64]:
        """Return recall@20, ndcg@100 and the weights of the targets found, [U, 3]."""
        out = np.empty((self.n_users, 3))
        follow_torch()
        list_gains(
            self.scores(form.recency),
            _factor(self._history, form),
            form.item_lift(self.counters.totals),
            form.bias(self.counters) * np.float32(self.spread(form)),
            self._history.offsets,
            self._history.item_num,
            self._targets.offsets,
            self._targets.item_num,
            self._weights,
            out,
        )
        return out

    def scores(self, recency: float) -> Floats:
        """Return the personal scores [U, N]; those of the last two values are kept."""
        if recency not in self._scores:
            while len(self._scores) >= _KEPT:
                self._scores.pop(next(name for name in self._scores))
            self._scores[recency] = self._personal(self._history, recency)
        return self._scores[recency]

    def spread(self, form: TimeForm) -> float:
        """Return the standard deviation of the scores that the form's list is added to."""
        key = form.lift, form.length, form.recency
        if key not in self._spreads:
            few = self._personal(self._sample, form.recency)
            few = few * _factor(self._sample, form)[:, None]
            self._spreads[key] = float((few * form.item_lift(self.counters.totals)).std())
        return self._spreads[key]


def _factor(profiles: Cells, form: TimeForm) -> Floats:
    return np.asarray(np.maximum(profiles.counts, 1.0) ** -form.length, dtype=np.float32)


def window_of(
    personal: Callable[[Cells, float], Floats],
    cells: Cells,
    *,
    start: int,
    stop: int,
    n_items: int,
    pooled: float,
    seed: int,
) -> RehearsalWindow | None:
    """Return the window from `start` to `stop`, UTC seconds; None where nobody has targets in it.

    Args:
        personal: as of `RehearsalWindow`, of a model fitted on cells before `start`.
        cells: of all users.
        start: of the targets.
        stop: where they end.
        n_items: N, items beyond are left out.
        pooled: as of `RehearsalWindow`.
        seed: picks the users where there are many.
    """
    cells = cells.take(cells.item_num < n_items)
    history = cells.take(cells.timestamp < start)
    counters = Counters.of(history.item_num, history.timestamp, n_items=n_items, time=start)
    targets = cells.take((cells.timestamp >= start) & (cells.timestamp < stop))
    targets, _ = new_targets(history, targets, n_items)
    targets = targets.take(counters.totals[targets.item_num] > 0)
    rng = np.random.default_rng([seed, 0x77])
    most = max(1, MAX_ELEMENTS // n_items)

    def some(rows: NDArray[np.int64], n_users: int) -> NDArray[np.int64]:
        return np.sort(rng.permutation(rows)[: min(n_users, most)])

    sample = history.users(some(np.flatnonzero(history.counts > 0), SPREAD_USERS))
    rows = some(np.flatnonzero((history.counts > 0) & (targets.counts > 0)), MAX_USERS)
    if len(rows) == 0:
        return None
    return RehearsalWindow(
        personal,
        history.users(rows),
        targets.users(rows),
        counters,
        sample=sample,
        pooled=pooled,
    )
