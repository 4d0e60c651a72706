"""Splits: which window every row falls in.

    temporal      FIT          [val cut)      VAL      [test cut)     TEST
                  -------------------------------------------------------> time

    users         hash(seed, user) -> FIT, or held out for val or test; of a held-out user's
                  items a fifth are targets (VAL, TEST), the rest is history (VAL_IN, TEST_IN)
    ratings       hash(seed, user, item) -> FIT, VAL or TEST
    given         the `fold` column says

Windows are half-open; all rows of a (user, item) pair fall in one window, except in time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import Window
from raysys.errors import DataError
from raysys.prepare.clean import FOLDS
from raysys.prepare.hashing import combine, hash_ids, unit

Name = Callable[[int], str]

TARGET_SHARE = 0.2  # of a held-out user's items (users split)
_SHOWN = 5
_FOLD_WINDOWS = np.array(
    [Window.FIT, Window.VAL, Window.TEST, Window.VAL_IN, Window.VAL, Window.TEST_IN, Window.TEST],
    dtype=np.uint8,
)


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """Everything that decides a row's window.

    Attributes:
        split: temporal, users or ratings.
        given: windows come from the `fold` column.
        seed: key of the hashes.
        cutoffs: (val, test) UTC seconds of the temporal split; rows before the first are FIT.
        val_share, test_share: shares of users or of (user, item) pairs.
        min_user_rows: users with fewer rows (users split) or fewer rows in the fit window, but
            not none (other splits), are dropped.
        max_user_rows: users with more of those rows are dropped; None keeps all.
    """

    split: str
    given: bool = False
    seed: int = 0
    cutoffs: tuple[int, int] | None = None
    val_share: float = 0.1
    test_share: float = 0.1
    min_user_rows: int = 1
    max_user_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of some users in numbers: users U, items I, rows M.

    Attributes:
        users: [U] ids in row order.
        user: [M] position in `users`, ascending.
        items: [I] ids.
        item: [M] position in `items`.
        rating: [M] NaN where unrated.
        timestamp: [M] UTC seconds, 0 where the log has no time.
        events: distinct events.
        event: [M] position in `events`, -1 where missing.
        fold: [M] position in `FOLDS`; None where the log has none.
    """

    users: pa.Array
    user: NDArray[np.int64]
    items: pa.Array
    item: NDArray[np.int64]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]
    events: list[str]
    event: NDArray[np.int64]
    fold: NDArray[np.int64] | None = None


def assign_windows(
    rows: Rows, plan: SplitPlan, *, counted: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the window of every row [M] and which users [U] are kept.

    Args:
        rows: whole users.
        plan: the split.
        counted: rows [M] that count towards `min_user_rows`; None is all.
    """
    n_users = len(rows.users)
    if plan.given:
        assert rows.fold is not None
        window = _FOLD_WINDOWS[rows.fold]
    elif plan.split == "users":
        window = _by_users(rows, plan)
    elif plan.split == "ratings":
        draw = unit(_pair_hash(rows, f"raysys ratings split {plan.seed}"))
        window = _draw_windows(draw, plan)
    else:
        assert plan.cutoffs is not None
        window = np.searchsorted(plan.cutoffs, rows.timestamp, side="right").astype(np.uint8)
    of_fit = np.ones(len(rows.user), bool) if plan.split == "users" else window == Window.FIT
    counts = np.bincount(rows.user[of_fit], minlength=n_users)
    if counted is None:
        enough = counts >= plan.min_user_rows
    else:
        enough = np.bincount(rows.user[of_fit & counted], minlength=n_users) >= plan.min_user_rows
    if plan.split != "users":
        enough |= counts == 0
    few_enough = counts <= (plan.max_user_rows or np.iinfo(np.int64).max)
    return window, enough & few_enough


def audit(
    cells: Cells,
    *,
    split: str,
    cutoffs: tuple[int, int] | None,
    n_fit_items: int,
    shared_second: bool = False,
    user: Name = str,
    item: Name = str,
) -> None:
    """Check that no window of these users knows what it must not know.

    Args:
        cells: whole users.
        split: temporal, users or ratings.
        cutoffs: (val, test) seconds of the temporal split.
        n_fit_items: size of the catalogue of period val.
        shared_second: windows may share the second of a cut (given folds).
        user: user_num -> user_id, for messages.
        item: item_num -> item_id, for messages.

    Raises:
        DataError: naming at most five of the offending cells.
    """
    of_user = cells.user_num[cells.rows]

    def refuse(mask: NDArray[np.bool_], what: str) -> None:
        if mask.any():
            examples = ", ".join(
                f"user {user(int(of_user[row]))} item {item(int(cells.item_num[row]))} timestamp "
                f"{cells.timestamp[row]} window {Window(int(cells.window[row])).name}"
                for row in np.flatnonzero(mask)[:_SHOWN]
            )
            raise DataError(f"leakage: {what}: {int(mask.sum())} cells: {examples}")

    late = (cells.window == Window.FIT) & (cells.item_num >= n_fit_items)
    refuse(late, "a fitted cell has an item outside the catalogue of its period")
    repeated_user = len(np.unique(cells.user_num)) != cells.n_users
    if repeated_user:
        raise DataError("leakage: a user has two rows in one user shard")
    if split == "temporal":
        assert cutoffs is not None
        latest = np.searchsorted(cutoffs, cells.timestamp, side="right")
        earliest = np.searchsorted(cutoffs, cells.timestamp, side="left")
        wrong = (cells.window > latest) | (cells.window < (earliest if shared_second else latest))
        refuse(wrong, f"a cell is on the wrong side of a cut {cutoffs}")
        backwards = np.zeros(cells.n_cells, dtype=bool)
        backwards[1:] = (np.diff(cells.timestamp) < 0) & (np.diff(of_user) == 0)
        refuse(backwards, "a profile is not in time order")
        return
    pair = of_user.astype(np.int64) << 32 | cells.item_num
    order = np.lexsort((cells.window, pair))
    torn = np.zeros(cells.n_cells, dtype=bool)
    same = np.diff(pair[order]) == 0
    torn[order[1:]] = same & (np.diff(cells.window[order].astype(np.int16)) != 0)
    refuse(torn, "a (user, item) pair is in two windows")
    if split == "users":
        side = np.array([0, 1, 2, 1, 2], dtype=np.int8)[cells.window]
        mixed = np.zeros(cells.n_cells, dtype=bool)
        mixed[1:] = (np.diff(side) != 0) & (np.diff(of_user) == 0)
        refuse(mixed, "a user is both fitted and held out")


def fold_codes(folds: pa.Array) -> NDArray[np.int64]:
    """Return the position in `FOLDS` of every fold name."""
    encoded = folds if pa.types.is_dictionary(folds.type) else folds.dictionary_encode()
    table = np.array([FOLDS.index(name) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    codes: NDArray[np.int64] = table[encoded.indices.to_numpy()]
    return codes


def _by_users(rows: Rows, plan: SplitPlan) -> NDArray[np.uint8]:
    """Hold out whole users; the targets are a hash-ordered fifth of a user's distinct items."""
    draw = unit(hash_ids(rows.users, key=f"raysys users split {plan.seed}"))
    role = _draw_windows(draw, plan)[rows.user]
    held = np.flatnonzero(role != Window.FIT)
    window = np.zeros(len(rows.user), dtype=np.uint8)
    if not len(held):
        return window
    pair_hash = _pair_hash(rows, f"raysys user targets {plan.seed}")[held]
    user = rows.user[held]
    order = np.lexsort((rows.item[held], pair_hash, user))
    pair = user[order] * np.int64(len(rows.items)) + rows.item[held][order]
    first = np.concatenate(([True], pair[1:] != pair[:-1]))
    number = np.cumsum(first) - 1  # of the pair, over all held-out users
    pair_user = user[order][first]
    n_pairs = np.bincount(pair_user, minlength=len(rows.users))
    begins = np.cumsum(n_pairs) - n_pairs
    rank = np.arange(len(pair_user)) - begins[pair_user]
    n_targets = np.maximum(np.floor(TARGET_SHARE * n_pairs + 0.5), 1)
    n_targets = np.minimum(n_targets, n_pairs - 1)
    target = (rank < n_targets[pair_user])[number]
    inside = np.where(role[held][order] == Window.VAL, Window.VAL_IN, Window.TEST_IN)
    window[held[order]] = np.where(target, role[held][order], inside)
    return window


def _pair_hash(rows: Rows, key: str) -> NDArray[np.uint64]:
    users, items = hash_ids(rows.users, key=key), hash_ids(rows.items, key=key)
    return combine(users[rows.user], items[rows.item])


def _draw_windows(draw: NDArray[np.float64], plan: SplitPlan) -> NDArray[np.uint8]:
    window = np.zeros(len(draw), dtype=np.uint8)
    window[draw < plan.val_share + plan.test_share] = Window.TEST
    window[draw < plan.val_share] = Window.VAL
    return window
