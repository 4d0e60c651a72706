"""Profiles: the numbered users and items of a log, and every user's cells in time order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data.cells import Cells, read_cells
from raysys.data.schema import RatingLevels
from raysys.store.builds import Build

SHARD_PREFIX = "shard-"


@dataclasses.dataclass(frozen=True)
class Profiles:
    """A `profiles` build, opened.

    Attributes:
        items: one row per item, row number = item_num: item_num int32, item_id string,
            title string or null, first_seen int64 or null, n_fit int64, then the attributes of
            the item file.
        user_ids: string [U], position = user_num.
        levels: the interaction levels.
        facts: what prepare recorded: split, protocol, n_users, n_items, catalogue, cutoffs,
            has_time, n_cells per window.
        shard_paths: the user shards, in user_num order.
    """

    items: pa.Table
    user_ids: pa.ChunkedArray
    levels: RatingLevels
    facts: dict[str, Any]
    shard_paths: tuple[Path, ...]

    @classmethod
    def load(cls, build: Build) -> Profiles:
        """Open a `profiles` build; cells are read when asked for."""
        return cls(
            items=pq.read_table(build.path("items.parquet")),
            user_ids=pq.read_table(build.path("users.parquet"))["user_id"],
            levels=RatingLevels.load(build.path("levels.json")),
            facts=build.facts,
            shard_paths=tuple(build.path(f) for f in build.files(".parquet", prefix=SHARD_PREFIX)),
        )

    @property
    def n_users(self) -> int:
        """Number of users, all windows."""
        return int(self.facts["n_users"])

    @property
    def n_items(self) -> int:
        """Number of items, all periods."""
        return int(self.facts["n_items"])

    def cells(self) -> Cells:
        """Read the cells of all users."""
        return read_cells(self.shard_paths)

    def iter_shards(self) -> Iterator[Cells]:
        """Read one user shard after the other."""
        for path in self.shard_paths:
            yield read_cells([path])
