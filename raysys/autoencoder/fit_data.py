"""Which cells of a run a model is fitted on, and what follows from them alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from raysys import progress
from raysys.autoencoder.level_init import LevelStart, level_start
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.data.schema import RatingLevels, Window, period_windows
from raysys.timing.counters import Counters

_DAY_S = 86_400


@dataclasses.dataclass(frozen=True)
class FitData:
    """What a model may see.

    Attributes:
        train: users with at least one cell, and these cells.
        n_items: catalogue N of the period.
        now: the period's cut in UTC seconds, None where time plays no part.
    """

    train: Cells
    n_items: int
    now: int | None

    def level_start(self, levels: RatingLevels) -> LevelStart:
        """Return where the level block starts."""
        train = self.train
        with progress.stage("rating factors", lines=progress.STEPS):
            return level_start(
                train.rows, train.item_num, train.level, n_items=self.n_items, levels=levels
            )

    def log_share(self, half_life_days: float) -> Tensor:
        """Return the log share of each item in the cells, [N], decayed towards the cut.

        Args:
            half_life_days: in days; 0 never forgets.
        """
        weight = np.ones(self.train.n_cells)
        if half_life_days and self.now is not None:
            weight = np.exp2((self.train.timestamp - self.now) / (half_life_days * _DAY_S))
        counts = np.bincount(self.train.item_num, weight, minlength=self.n_items) + 0.3
        return torch.from_numpy(np.log(counts / counts.sum())).float()

    def counters(self) -> Counters:
        """Return the items' decayed counters at the cut; a log without time has none."""
        assert self.now is not None
        train = self.train
        return Counters.of(train.item_num, train.timestamp, n_items=self.n_items, time=self.now)

    def sample(self, n_users: int, seed: int) -> Cells:
        """Return the cells of so many users, or of all."""
        rng = np.random.default_rng([seed, 0x11])
        return self.train.users(np.sort(rng.permutation(self.train.n_users)[:n_users]))


def fit_data(profiles: Profiles, period: str, *, cells: Cells) -> FitData:
    """Return the training cells of a period: `val`, `test`, or `all` for the whole log.

    Args:
        profiles: the run's profiles.
        period: whose windows to fit on.
        cells: all cells of the profiles, read once for whatever a process fits.
    """
    facts = profiles.facts
    n_items = facts.catalogue[period]
    windows = Window if period == "all" else period_windows(facts.split, period).fitted
    train = cells.in_windows(windows)
    train = train.take(train.item_num < n_items)
    now = None
    if facts.split == "temporal":
        now = cells.end + 1 if period == "all" else (facts.cutoffs or {})[period]
        train = dataclasses.replace(train, timestamp=np.minimum(train.timestamp, now))
    return FitData(train.users(train.counts > 0), n_items, now)
