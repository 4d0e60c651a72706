"""From a user's cells to histories and targets.

    cutoff   one row per user                        history          | targets
                                                     ----------------(T)---------> time
    lloo     one row per time at which the user has new items in the target window:
             history = strictly earlier items, also those after T
    loo      one row per item of the target window: history = all the user's other items

A target is new (its item stands in no history cell), inside the period's catalogue, and counts
once, at its first appearance. Under `lloo` items of one instant are never in each other's history.
What is left out is counted.

Letters: U users, M cells, N items of the catalogue.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import PeriodWindows, Window

PROTOCOLS = ("cutoff", "lloo", "loo")
_MAX_CELLS = 2_000_000


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows to rank, each with its history and at least one target.

    Attributes:
        history: what the ranker may see, in time order.
        targets: new items of the catalogue, each once per row, for the same rows.
        dropped: {reason: count} of users and targets that were left out.
    """

    history: Cells
    targets: Cells
    dropped: Counter[str]


def cutoff_task(
    cells: Cells, windows: PeriodWindows, *, n_items: int, need_history: bool = True
) -> Task:
    """Split every user's cells at the cut.

    Args:
        cells: all windows of some users.
        windows: of the period.
        n_items: size of the period's catalogue; items at or above it are unknown.
        need_history: leave out users without history in the catalogue.
    """
    history = cells.in_windows(windows.history)
    targets = cells.in_windows(windows.targets)
    had_targets = targets.counts > 0
    targets, dropped = new_targets(history, targets, n_items)
    known = history.take(history.item_num < n_items).counts > 0
    kept = targets.counts > 0
    dropped["users_without_new_target"] = int((had_targets & ~kept).sum())
    if need_history:
        dropped["users_without_history"] = int((kept & ~known).sum())
        kept &= known
    return Task(history.users(kept), targets.users(kept), dropped)


def leave_one_out_tasks(
    cells: Cells, windows: PeriodWindows, *, n_items: int, last: bool
) -> Iterator[Task]:
    """Yield rows of the `lloo` (last=True) or `loo` protocol, a bounded number of cells at a time.

    Rows of one user share its user_num.
    """
    allowed = {*windows.history, *windows.targets, *windows.fitted, Window.FIT}
    cells = first_appearances(cells.in_windows(allowed))
    cells = cells.take(cells.item_num < n_items)
    size = cells.counts.astype(np.int64) ** 2
    start = 0
    while start < cells.n_users:
        stop = start + 1
        total = int(size[start])
        while stop < cells.n_users and total + size[stop] <= _MAX_CELLS:
            total += int(size[stop])
            stop += 1
        part = cells.users(np.arange(start, stop))
        yield _expand(part, windows, last=last)
        start = stop


def first_appearances(cells: Cells) -> Cells:
    """Keep each (user, item) pair once, at its first cell."""
    return cells.take(_first_mask(cells))


def new_targets(history: Cells, targets: Cells, n_items: int) -> tuple[Cells, Counter[str]]:
    """Drop unknown, repeated and already consumed items, counting each."""
    dropped: Counter[str] = Counter()
    inside = targets.item_num < n_items
    dropped["targets_outside_catalogue"] = int((~inside).sum())
    targets = targets.take(inside)
    seen = np.isin(pair_keys(targets), pair_keys(history))
    dropped["targets_in_history"] = int(seen.sum())
    targets = targets.take(~seen)
    first = _first_mask(targets)
    dropped["targets_repeated"] = int((~first).sum())
    return targets.take(first), dropped


def pair_keys(cells: Cells) -> NDArray[np.int64]:
    """Return one number per (user row, item) pair, [M]."""
    return cells.rows << 32 | cells.item_num.astype(np.int64)


def _first_mask(cells: Cells) -> NDArray[np.bool_]:
    mask = np.zeros(cells.n_cells, dtype=bool)
    mask[np.unique(pair_keys(cells), return_index=True)[1]] = True
    return mask


def _expand(cells: Cells, windows: PeriodWindows, *, last: bool) -> Task:
    """Make one row per target instant (last) or per target (not last) of each user."""
    wanted = np.isin(cells.window, [int(w) for w in windows.targets])
    rows = cells.rows
    begins = np.ones(cells.n_cells, dtype=bool)
    if last:
        begins[1:] = (rows[1:] != rows[:-1]) | (cells.timestamp[1:] != cells.timestamp[:-1])
    group = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    before = first - cells.offsets[rows[first]]
    others = before if last else cells.counts[rows[first]] - 1
    has_target = np.bincount(group, weights=wanted, minlength=len(first)) > 0
    kept = np.flatnonzero(has_target & (others > 0))
    dropped: Counter[str] = Counter()
    dropped["rows_without_history"] = int((has_target & (others <= 0)).sum())
    counts = before[kept] if last else cells.counts[rows[first[kept]]]
    history = _runs(cells, rows[first[kept]], cells.offsets[rows[first[kept]]], counts)
    if not last:
        itself = np.repeat(first[kept], counts)
        position = np.repeat(cells.offsets[rows[first[kept]]], counts) + _ramp(counts)
        history = history.take(position != itself)
    sizes = np.diff(np.append(first, cells.n_cells))[kept]
    targets = _runs(cells, rows[first[kept]], first[kept], sizes)
    return Task(history, targets.in_windows(windows.targets), dropped)


def _runs(
    cells: Cells, users: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> Cells:
    """Return rows made of the cells starts .. starts + counts of the given users."""
    source = np.repeat(starts, counts) + _ramp(counts)
    return Cells(
        user_num=cells.user_num[users],
        offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        item_num=cells.item_num[source],
        level=cells.level[source],
        timestamp=cells.timestamp[source],
        window=cells.window[source],
    )


def _ramp(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0 .. counts[0]-1, 0 .. counts[1]-1, and so on."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) - np.repeat(ends - counts, counts)
