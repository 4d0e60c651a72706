"""Which cells of a run a model is fitted on."""

from __future__ import annotations

import dataclasses

from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.data.schema import Window, period_windows


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
        now = int(cells.timestamp.max()) + 1 if period == "all" else (facts.cutoffs or {})[period]
    return FitData(train.users(train.counts > 0), n_items, now)
