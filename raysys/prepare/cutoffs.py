"""Where the fit, val and test windows of a time split begin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.errors import DataError
from raysys.prepare.clean import FOLDS
from raysys.prepare.splits import fold_codes
from raysys.store.storage import open_filesystem

_BINS = 1 << 20


def resolve_cutoffs(
    uris: Sequence[str], cuts: tuple[float, float], *, time_range: tuple[int, int], n_rows: int
) -> tuple[int, int]:
    """Return (val, test) UTC seconds.

    Args:
        uris: parts of an `interactions` build; only their times are read, one part at a time.
        cuts: quantiles of time (below 1) or absolute seconds.
        time_range: first and last second of the log.
        n_rows: rows of the log.

    Raises:
        DataError: a cut leaves a window empty.
    """
    quantiles = [cut for cut in cuts if cut < 1]
    ranks = [min(int(cut * n_rows), n_rows - 1) for cut in quantiles]
    found = iter(_order_statistics(uris, ranks, time_range) if ranks else [])
    val, test = (next(found) if cut < 1 else int(cut) for cut in cuts)
    first, last = time_range
    if not first < val < test <= last:
        raise DataError(
            f"cuts at {val} and {test} leave an empty window: times go from {first} to {last}; "
            "set val_cut= and test_cut= (quantiles or UTC seconds), or another split="
        )
    return val, test


def backtest_cutoffs(
    time_range: tuple[int, int], *, n_folds: int, step_s: int
) -> list[tuple[int, int, int]]:
    """Return (val, test, end) seconds of rolling backtests, the earliest first.

        fold 0   fit ------------> [val) [test) end
        fold 1   fit -------------------> [val) [test) end
                                          |step|

    Windows are half-open and of `step_s` each; the last fold ends after the last second of the
    log. A fold is `prepare val_cut=VAL test_cut=TEST` on rows before END.

    Raises:
        DataError: the first fold would have nothing to fit.
    """
    first, last = time_range
    if n_folds < 1 or step_s < 1:
        raise DataError(f"n_folds={n_folds} step_s={step_s}: expected 1 or more")
    ends = [last + 1 - step_s * (n_folds - 1 - fold) for fold in range(n_folds)]
    cuts = [(end - 2 * step_s, end - step_s, end) for end in ends]
    if cuts[0][0] <= first:
        raise DataError(
            f"{n_folds} folds of {step_s} s leave nothing to fit: times go from {first} to {last}"
        )
    return cuts


def cutoffs_of_folds(uris: Sequence[str]) -> tuple[int, int]:
    """Return the first times of folds val and test of a time split that was given.

    Folds may share the second of a cut: their author may have known more exact times.

    Raises:
        DataError: the folds overlap in time, or one is empty.
    """
    first = dict.fromkeys(("train", "val", "test"), np.iinfo(np.int64).max)
    last = dict.fromkeys(("train", "val", "test"), -1)
    for uri in uris:
        filesystem, path = open_filesystem(uri)
        table = pq.read_table(path, filesystem=filesystem, columns=["timestamp", "fold"])
        time = table["timestamp"].to_numpy()
        fold = fold_codes(table["fold"].combine_chunks())
        for name in first:
            of_fold = time[fold == FOLDS.index(name)]
            if len(of_fold):
                first[name] = min(first[name], int(of_fold.min()))
                last[name] = max(last[name], int(of_fold.max()))
    for earlier, later in (("train", "val"), ("val", "test")):
        if last[earlier] < 0 or last[later] < 0:
            empty = earlier if last[earlier] < 0 else later
            raise DataError(f"split=temporal needs rows in fold {empty!r}, there are none")
        if last[earlier] > first[later]:
            raise DataError(
                f"split=temporal, but a row of fold {earlier!r} has timestamp {last[earlier]}, "
                f"after the first of fold {later!r} at {first[later]}"
            )
    return first["val"], first["test"]


def _order_statistics(
    uris: Sequence[str], ranks: Sequence[int], time_range: tuple[int, int]
) -> list[int]:
    """Return the times at the given ranks exactly, by a histogram and a second look."""
    start, width = time_range[0], (time_range[1] - time_range[0]) // _BINS + 1
    counts = np.zeros(_BINS, dtype=np.int64)
    for uri in uris:
        counts += np.bincount((_times(uri) - start) // width, minlength=_BINS)
    ends = np.cumsum(counts)
    bins = np.searchsorted(ends, ranks, side="right")
    if width == 1:
        return [int(start + found) for found in bins]
    inside: list[list[NDArray[np.int64]]] = [[] for _ in ranks]
    for uri in uris:
        times = _times(uri)
        of_bin = (times - start) // width
        for kept, wanted in zip(inside, bins, strict=True):
            kept.append(times[of_bin == wanted])
    result = []
    for kept, wanted, rank in zip(inside, bins, ranks, strict=True):
        within = rank - int(ends[wanted] - counts[wanted])
        result.append(int(np.partition(np.concatenate(kept), within)[within]))
    return result


def _times(uri: str) -> NDArray[np.int64]:
    filesystem, path = open_filesystem(uri)
    times: NDArray[np.int64] = pq.read_table(path, filesystem=filesystem, columns=["timestamp"])[
        "timestamp"
    ].to_numpy()
    return times
