"""Reads the fixed folds as cells, without the prepare job."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, Window, default_liked

_WINDOWS = {
    "train": Window.FIT,
    "val": Window.VAL,
    "test": Window.TEST,
    "val_in": Window.VAL_IN,
    "val_out": Window.VAL,
    "test_in": Window.TEST_IN,
    "test_out": Window.TEST,
}


@dataclasses.dataclass(frozen=True)
class Fold:
    cells: Cells
    levels: RatingLevels
    user_ids: list[str]
    catalogue: dict[str, int]


def read_fold(path: Path) -> Fold:
    table = pq.read_table(path)
    users = pc.dictionary_encode(table["user_id"].combine_chunks())
    folds = table["fold"].cast("string").to_pylist()
    window = np.array([int(_WINDOWS[f]) for f in folds], dtype=np.uint8)
    times = table["timestamp"].to_numpy()
    protocol = path.stem.rsplit("-", 1)[1]
    known = {
        "T": np.array([0, 1, 2, 9, 9])[window],
        "S": np.where(window == Window.FIT, 0, 9),
        "E": np.where(window == Window.FIT, 0, 9),
    }[protocol]
    items, n_known = _number(table["item_id"].to_numpy().astype(str), times, known)
    ratings = table["rating"].to_numpy()
    values = tuple(float(v) for v in np.unique(ratings[np.isfinite(ratings)]))
    if values:
        levels = RatingLevels(tuple(f"{v:g}" for v in values), values, default_liked(values))
        level = levels.level_of_rating(ratings)
    else:
        levels = RatingLevels(("purchase",), (None,), (True,))
        level = np.zeros(len(times), dtype=np.uint8)
    user = users.indices.to_numpy().astype(np.int64)
    order = np.lexsort((level, items, times, user))
    ids = users.dictionary.to_pylist()
    counts = np.bincount(user, minlength=len(ids))
    cells = Cells(
        user_num=np.arange(len(ids), dtype=np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        item_num=items[order].astype(np.int32),
        level=level[order],
        timestamp=times[order],
        window=window[order],
    )
    at = {"val": n_known[0], "test": n_known[0] + (n_known[1] if protocol == "T" else 0)}
    return Fold(cells, levels, ids, at)


def _number(
    ids: NDArray[np.str_], times: NDArray[np.int64], known: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[int]]:
    unique, inverse = np.unique(ids, return_inverse=True)
    first = np.full(len(unique), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, times)
    period = np.full(len(unique), 9)
    np.minimum.at(period, inverse, known)
    order = np.lexsort((unique, first, period))
    number = np.empty(len(unique), dtype=np.int64)
    number[order] = np.arange(len(unique))
    return number[inverse], [int((period == p).sum()) for p in (0, 1)]


@pytest.fixture(scope="session")
def fold(data_dir: Path) -> Callable[[str], Fold]:
    cache: dict[str, Fold] = {}

    def read(name: str) -> Fold:
        if name not in cache:
            path = data_dir / "splits" / f"{name}.parquet"
            if not path.exists():
                pytest.skip(f"no fixed folds {path}")
            cache[name] = read_fold(path)
        return cache[name]

    return read
