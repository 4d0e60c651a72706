"""Profiles as ragged arrays: one run of cells per user.

Letters: U users, M cells (observed (user, item, level) triples).
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.data.schema import PROFILE_SCHEMA

_COLUMNS = ("item_num", "level", "timestamp", "window")
AHEAD_S = 86_400  # times so much later than the clock are mistakes
_FEW = 1e-3  # of the cells, whose times may be mistakes


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of U users, user by user, sorted by (timestamp, item_num, level) within a user.

    Attributes:
        user_num: int32 [U].
        offsets: int64 [U + 1]; the cells of row u are offsets[u] .. offsets[u + 1].
        item_num: int32 [M].
        level: uint8 [M].
        timestamp: int64 [M] UTC seconds, 0 where the log has no time.
        window: uint8 [M], values of `schema.Window`.
    """

    user_num: NDArray[np.int32]
    offsets: NDArray[np.int64]
    item_num: NDArray[np.int32]
    level: NDArray[np.uint8]
    timestamp: NDArray[np.int64]
    window: NDArray[np.uint8]

    @property
    def n_users(self) -> int:
        """Number of users U, those without cells included."""
        return len(self.user_num)

    @property
    def n_cells(self) -> int:
        """Number of cells M."""
        return len(self.item_num)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the number of cells per user, [U]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rows(self) -> NDArray[np.int64]:
        """Return the user row (0 .. U-1) of every cell, [M]."""
        return np.repeat(np.arange(self.n_users), self.counts)

    @property
    def item_lists(self) -> list[NDArray[np.int32]]:
        """Return the items of every user's cells, U arrays."""
        return [self.item_num[a:b] for a, b in itertools.pairwise(self.offsets)]

    @property
    def end(self) -> int:
        """The last second of the cells, 0 without cells; a few that lie ahead do not count.

        Up to a thousandth may be later than a day from now: wrong times. More are a log that was
        made up.
        """
        if not self.n_cells:
            return 0
        past = self.timestamp[self.timestamp <= time.time() + AHEAD_S]
        few = len(past) >= (1 - _FEW) * self.n_cells
        return int((past if few else self.timestamp).max())

    def take(self, mask: NDArray[np.bool_]) -> Cells:
        """Keep the cells where `mask` [M] holds; users stay, perhaps without cells."""
        kept = np.concatenate(([0], np.cumsum(mask, dtype=np.int64)))
        return Cells(
            user_num=self.user_num,
            offsets=kept[self.offsets],
            item_num=self.item_num[mask],
            level=self.level[mask],
            timestamp=self.timestamp[mask],
            window=self.window[mask],
        )

    def in_windows(self, windows: Iterable[int]) -> Cells:
        """Keep the cells of the given windows."""
        return self.take(np.isin(self.window, np.array([int(w) for w in windows], dtype=np.uint8)))

    def users(self, rows: NDArray[Any]) -> Cells:
        """Return the users at `rows` (row numbers in any order, or a mask [U]) with their cells."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        counts = self.counts[rows]
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        source = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Cells(
            user_num=self.user_num[rows],
            offsets=offsets,
            item_num=self.item_num[source],
            level=self.level[source],
            timestamp=self.timestamp[source],
            window=self.window[source],
        )

    def to_table(self) -> pa.Table:
        """Return the cells as a table of `PROFILE_SCHEMA`, one row per user."""
        if self.n_cells > np.iinfo(np.int32).max:
            raise ValueError("more than 2^31 - 1 cells do not fit one shard")
        offsets = pa.array(self.offsets.astype(np.int32))
        lists = [pa.ListArray.from_arrays(offsets, pa.array(getattr(self, c))) for c in _COLUMNS]
        return pa.Table.from_arrays([pa.array(self.user_num), *lists], schema=PROFILE_SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table) -> Cells:
        """Read a table of `PROFILE_SCHEMA`."""
        columns = {}
        lengths = np.zeros(table.num_rows, dtype=np.int64)
        for name in _COLUMNS:
            lists = table[name].combine_chunks()
            lists = lists if isinstance(lists, pa.ListArray) else pa.concat_arrays(lists.chunks)
            columns[name] = lists.flatten().to_numpy(zero_copy_only=False)
            lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(
            user_num=table["user_num"].to_numpy().astype(np.int32, copy=False),
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            **columns,
        )

    @classmethod
    def from_lists(cls, profiles: Sequence[Sequence[tuple[int, int]]]) -> Cells:
        """Return cells of (item_num, level) pairs per user, without time, all in window FIT."""
        flat = [pair for profile in profiles for pair in profile]
        pairs = np.array(flat, dtype=np.int64).reshape(-1, 2)
        counts = [len(profile) for profile in profiles]
        return cls(
            user_num=np.arange(len(profiles), dtype=np.int32),
            offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64),
            item_num=pairs[:, 0].astype(np.int32),
            level=pairs[:, 1].astype(np.uint8),
            timestamp=np.zeros(len(pairs), dtype=np.int64),
            window=np.zeros(len(pairs), dtype=np.uint8),
        )


def concat(parts: Sequence[Cells]) -> Cells:
    """Join the users of several parts, in order."""
    offsets = [np.zeros(1, dtype=np.int64)]
    total = 0
    for part in parts:
        offsets.append(part.offsets[1:] + total)
        total += part.n_cells
    return Cells(
        user_num=np.concatenate([p.user_num for p in parts]),
        offsets=np.concatenate(offsets),
        item_num=np.concatenate([p.item_num for p in parts]),
        level=np.concatenate([p.level for p in parts]),
        timestamp=np.concatenate([p.timestamp for p in parts]),
        window=np.concatenate([p.window for p in parts]),
    )


def read_cells(paths: Sequence[Path], windows: Collection[int] | None = None) -> Cells:
    """Read profile shards (Parquet files of `PROFILE_SCHEMA`) in order.

    Args:
        paths: of the shards.
        windows: whose cells are kept; those of others are dropped shard by shard, while they are
            read, so that nobody gets to see them. Users stay. None: all.
    """
    return concat([_shard(path, windows) for path in paths])


def _shard(path: Path, windows: Collection[int] | None) -> Cells:
    cells = Cells.from_table(pq.read_table(path))
    return cells if windows is None else cells.in_windows(windows)
