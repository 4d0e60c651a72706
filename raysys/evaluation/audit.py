"""Leakage audit: pure checks on cells and on what the manifests record.

Each check raises DataError with the offending rows (at most five). Checks of time run for temporal
splits only; `named` turns numbers into the user's ids in messages.

    model        fitted past the cut-off, on other windows, or on a larger catalogue
    shards       a user in two shards
    windows      a fitted or history cell at or past the cut-off, a target before it
    pairs        a (user, item) pair both in history (or training) and in the targets
    catalogue    an item first seen at or past the cut-off inside the period's catalogue,
                 numbers that do not follow (period, first_seen, item_id)
    popularity   recorded counts that are not those of the fit window
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import PERIODS, PeriodWindows, Window
from raysys.errors import DataError
from raysys.evaluation.protocols import pair_keys

log = logging.getLogger(__name__)

_SHOWN = 5

Name = Callable[[int], str]


class Fitted(Protocol):
    """What a model was fitted on, as its build says."""

    @property
    def n_items(self) -> int:
        """Items that it knows."""

    @property
    def fitted_windows(self) -> tuple[int, ...]:
        """Numbers of windows."""

    @property
    def fitted_until(self) -> int | None:
        """UTC seconds; None where time plays no part, or the whole log was taken."""


def check_model(
    model: Fitted,
    *,
    period: str,
    windows: PeriodWindows,
    cutoffs: Mapping[str, int] | None,
    n_items: int,
) -> None:
    """Refuse a model that saw more than the period's evaluation assumes.

    Args:
        model: facts of the autoencoder build.
        period: val or test.
        windows: of the period.
        cutoffs: {"val": s, "test": s} of temporal splits, else None.
        n_items: size of the period's catalogue.
    """
    allowed = {window.name for window in windows.fitted}
    extra = sorted({Window(window).name for window in model.fitted_windows} - allowed)
    fitted_until = model.fitted_until
    if cutoffs is not None and fitted_until is not None and fitted_until > cutoffs[period]:
        raise DataError(
            f"leak: the model was fitted on data until {fitted_until}, period={period} is "
            f"evaluated from cut-off {cutoffs[period]} on ({describe(cutoffs)}); "
            f"train a model for this period"
        )
    if extra:
        raise DataError(
            f"leak: the model was fitted on windows {', '.join(extra)}, period={period} assumes "
            f"{', '.join(sorted(allowed))} only; train a model for this period"
        )
    if model.n_items > n_items:
        raise DataError(
            f"leak: the model knows {model.n_items} items, the catalogue of period={period} "
            f"holds {n_items}; train a model for this period"
        )


def check_shards(shards: Iterable[tuple[str, NDArray[np.int32]]], *, user: Name = str) -> None:
    """Refuse a user that stands in two shards, or twice in one.

    Args:
        shards: (name, user_num [U]) of each shard.
        user: user_num -> user_id.
    """
    seen: dict[int, str] = {}
    for name, nums in shards:
        repeated = {int(n) for n in nums if int(n) in seen}
        unique, counts = np.unique(nums, return_counts=True)
        repeated |= {int(n) for n in unique[counts > 1]}
        if repeated:
            shown = ", ".join(
                f"{user(n)} (user_num {n}, also in {seen.get(n, name)})" for n in sorted(repeated)
            )
            raise DataError(f"leak: users stand twice in the profiles, in {name}: {shown}")
        seen.update(dict.fromkeys(map(int, nums), name))


def check_windows(
    cells: Cells,
    *,
    period: str,
    windows: PeriodWindows,
    cutoffs: Mapping[str, int] | None,
    user: Name = str,
    item: Name = str,
) -> None:
    """Refuse training or history cells past the cut-off, and targets before it."""
    if cutoffs is None:
        return
    cut = cutoffs[period]
    past = cells.in_windows({*windows.fitted, *windows.history})
    _refuse(
        past,
        past.timestamp >= cut,
        f"history or training cells at or past the {period} cut-off {cut}",
        user,
        item,
    )
    targets = cells.in_windows(windows.targets)
    _refuse(
        targets,
        targets.timestamp < cut,
        f"targets older than the {period} cut-off {cut}",
        user,
        item,
    )


def check_pairs(history: Cells, targets: Cells, *, user: Name = str, item: Name = str) -> None:
    """Refuse a (user, item) pair in both `history` and `targets` (of the same users)."""
    both = np.isin(pair_keys(targets), pair_keys(history))
    _refuse(targets, both, "(user, item) pairs in both history and targets", user, item)


def check_order(history: Cells, targets: Cells, *, user: Name = str, item: Name = str) -> None:
    """Refuse a history item newer than the user's first target; equal times pass."""
    first = np.full(history.n_users, np.iinfo(np.int64).max)
    np.minimum.at(first, targets.rows, targets.timestamp)
    _refuse(
        history,
        history.timestamp > first[history.rows],
        "history items newer than their targets",
        user,
        item,
    )


def check_catalogue(
    items: pa.Table,
    *,
    catalogue: Mapping[str, int],
    cutoffs: Mapping[str, int] | None,
    numbers_kept: bool = False,
) -> None:
    """Refuse a period's catalogue that knows the future, or numbers in another order.

    Args:
        items: item_num, item_id, first_seen in row order.
        catalogue: {period: number of items} prefixes.
        cutoffs: of temporal splits, else None.
        numbers_kept: the log was appended to, and items kept their numbers. Rows that arrived late
            then move first_seen but not the number, and stretch a prefix over later items, which
            have no training rows: that is logged, not refused.
    """
    nums = items["item_num"].to_numpy()
    ids = items["item_id"].to_pylist()
    if not np.array_equal(nums, np.arange(len(nums))):
        at = int(np.flatnonzero(nums != np.arange(len(nums)))[0])
        raise DataError(f"leak: row {at} of the catalogue holds item_num {nums[at]} ({ids[at]!r})")
    if cutoffs is None:
        return
    first_seen = items["first_seen"].to_numpy()
    for period in PERIODS:
        late = np.flatnonzero(first_seen[: catalogue[period]] >= cutoffs[period])
        if len(late) and numbers_kept:
            log.warning("audit catalogue period=%s items_first_seen_later=%d", period, len(late))
        elif len(late):
            examples = ", ".join(f"{ids[n]!r} (first seen {first_seen[n]})" for n in late[:_SHOWN])
            raise DataError(
                f"leak: {len(late)} items of the {period} catalogue were first seen at or past "
                f"its cut-off {cutoffs[period]}: {examples}"
            )
    if numbers_kept:
        return
    borders = [0, *(catalogue[p] for p in PERIODS), len(nums)]
    for start, stop in itertools.pairwise(borders):
        part = list(zip(first_seen[start:stop].tolist(), ids[start:stop], strict=True))
        for place in range(1, len(part)):
            if part[place - 1] > part[place]:
                raise DataError(
                    f"leak: item_num does not follow (first_seen, item_id): {part[place - 1]} has "
                    f"number {start + place - 1}, {part[place]} has {start + place}"
                )


def check_popularity(
    recorded: NDArray[np.int64], counted: NDArray[np.int64], *, ids: Sequence[str]
) -> None:
    """Refuse recorded counts per item that are not those of the fit window.

    Args:
        recorded: [N] `n_fit` of the catalogue.
        counted: [N] cells of window FIT per item.
        ids: [N] item ids, for the message.
    """
    wrong = np.flatnonzero(recorded != counted)
    if len(wrong):
        shown = ", ".join(f"{ids[n]!r} ({recorded[n]}, not {counted[n]})" for n in wrong[:_SHOWN])
        raise DataError(f"leak: popularity was not counted in the fit window: {shown}")


def describe(cutoffs: Mapping[str, int]) -> str:
    """Return the cut-offs as text."""
    return ", ".join(f"{period} cut-off {cut}" for period, cut in sorted(cutoffs.items()))


def _refuse(cells: Cells, wrong: NDArray[np.bool_], what: str, user: Name, item: Name) -> None:
    found = np.flatnonzero(wrong)
    if not len(found):
        return
    rows = cells.rows
    shown = ", ".join(
        f"user {user(int(cells.user_num[rows[n]]))} item {item(int(cells.item_num[n]))} "
        f"time {cells.timestamp[n]}"
        for n in found[:_SHOWN]
    )
    raise DataError(f"leak: {len(found)} {what}: {shown}")
