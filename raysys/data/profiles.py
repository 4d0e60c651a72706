"""Profiles: the numbered users and items of a log, and every user's cells in time order."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.cells import Cells, read_cells
from raysys.data.schema import RatingLevels, Window
from raysys.store.builds import Build
from raysys.store.drafts import Draft
from raysys.store.kinds import Facts

SHARD_PREFIX = "shard-"
LEVELS = "levels.json"
_ITEMS, _USERS = "items.parquet", "users.parquet"


@dataclasses.dataclass(frozen=True)
class Core:
    """Counts taken to drop rare items and users, and whether another one would drop nothing."""

    rounds: int
    settled: bool


@dataclasses.dataclass(frozen=True)
class ProfilesFacts(Facts):
    """What prepare found in a log.

    Attributes:
        split: temporal, users or ratings.
        n_users, n_items: all windows, all periods.
        catalogue: {period: number of items}; `all` is the whole log.
        cutoffs: {"val", "test"} in UTC seconds; None where time plays no part.
        has_time: whether timestamps mean anything.
        n_cells: {name of a window: cells}.
        folds: whether the windows are published folds of that split.
        filtered: {reason: rows that became no cell}.
        core: of the counting.
        n_described_items: items that the item file describes.
        levels: names of the levels.
    """

    split: str
    n_users: int
    n_items: int
    catalogue: dict[str, int]
    cutoffs: dict[str, int] | None
    has_time: bool
    n_cells: dict[str, int]
    folds: bool = False
    filtered: dict[str, int] = dataclasses.field(default_factory=dict)
    core: Core | None = None
    n_described_items: int = 0
    levels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Profiles:
    """A `profiles` build, opened.

    Attributes:
        items: one row per item, row number = item_num: item_num int32, item_id string,
            title string or null, first_seen int64 or null, n_fit int64, then the attributes of
            the item file.
        user_ids: string [U], position = user_num.
        levels: the interaction levels.
        facts: what prepare recorded.
        shard_paths: the user shards, in user_num order.
    """

    items: pa.Table
    user_ids: pa.ChunkedArray
    levels: RatingLevels
    facts: ProfilesFacts
    shard_paths: tuple[Path, ...]

    @classmethod
    def open(cls, build: Build) -> Profiles:
        """Open a `profiles` build; cells are read when asked for."""
        return cls(
            items=read_items(build),
            user_ids=pq.read_table(build.path(_USERS))["user_id"],
            levels=RatingLevels.load(build.path(LEVELS)),
            facts=ProfilesFacts.of(build),
            shard_paths=tuple(build.path(name) for name in shard_names(build)),
        )

    @property
    def n_users(self) -> int:
        """Number of users, all windows."""
        return self.facts.n_users

    @property
    def n_items(self) -> int:
        """Number of items, all periods."""
        return self.facts.n_items

    def cells(self, windows: Collection[Window] | None = None) -> Cells:
        """Read the cells of all users, of some windows or of all."""
        return read_cells(self.shard_paths, windows)

    def iter_shards(self, windows: Collection[Window] | None = None) -> Iterator[Cells]:
        """Read one user shard after the other, see `cells`."""
        for path in self.shard_paths:
            yield read_cells([path], windows)


def write_tables(
    draft: Draft, *, items: pa.Table, user_ids: pa.ChunkedArray, levels: RatingLevels
) -> None:
    """Write what a `profiles` build holds beside its shards.

    Args:
        draft: the build that is being made.
        items: as in `Profiles`.
        user_ids: string [U], position = user_num.
        levels: the interaction levels.
    """
    pq.write_table(items, draft.path(_ITEMS))
    user_num = pa.array(range(len(user_ids)), pa.int32())
    pq.write_table(pa.table({"user_num": user_num, "user_id": user_ids}), draft.path(_USERS))
    levels.save(draft.path(LEVELS))


def read_items(build: Build) -> pa.Table:
    """Return the items of a `profiles` build, as in `Profiles`."""
    return pq.read_table(build.path(_ITEMS))


def shard_name(number: int) -> str:
    """Return the file name of a user shard."""
    return f"{SHARD_PREFIX}{number:05d}.parquet"


def shard_names(build: Build) -> list[str]:
    """Return the file names of the user shards of a `profiles` build, in user_num order."""
    return build.files(".parquet", prefix=SHARD_PREFIX)


def without_users(
    folder: Path, user_ids: Collection[str], facts: ProfilesFacts
) -> tuple[ProfilesFacts, int]:
    """Empty the profiles of users in the files of a build; their numbers stay, without a name.

    Args:
        folder: that holds the files.
        user_ids: who are forgotten.
        facts: of the build.

    Returns:
        The facts of what is left, and how many of the users there were.
    """
    path = folder / _USERS
    users = pq.read_table(path)
    own = pc.is_in(users["user_id"], pa.array(sorted(user_ids), pa.string())).to_numpy()
    names = users["user_id"].to_pylist()
    for num in np.flatnonzero(own):
        names[num] = tombstone()
    column = users.schema.get_field_index("user_id")
    pq.write_table(users.set_column(column, "user_id", pa.array(names, pa.string())), path)
    left = dict(facts.n_cells)
    for path in sorted(folder.glob(f"{SHARD_PREFIX}*.parquet")):
        shard = pq.read_table(path)
        rows = np.flatnonzero(own[shard["user_num"].to_numpy()])
        if not len(rows):
            continue
        windows = pc.list_flatten(shard["window"].take(pa.array(rows))).to_numpy()
        for window, count in zip(*np.unique(windows, return_counts=True), strict=True):
            left[Window(int(window)).name] -= int(count)
        for at, field in enumerate(shard.schema):
            if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
                cells = pa.concat_arrays(
                    [*shard.column(at).chunks, pa.array([[]], field.type)]  # and an empty one
                )
                taken = np.arange(len(shard))
                taken[rows] = len(shard)
                shard = shard.set_column(at, field, cells.take(pa.array(taken)))
        pq.write_table(shard, path, compression="zstd", compression_level=1)
    n_cells = sum(facts.n_cells.values()) - sum(left.values())
    gone = facts.filtered.get("erased_users", 0) + n_cells
    filtered = facts.filtered | ({"erased_users": gone} if gone else {})
    return dataclasses.replace(facts, n_cells=left, filtered=filtered), int(own.sum())


def tombstone() -> str:
    """Return what stands in place of the id of a user who is forgotten; no two are the same."""
    return f"erased {secrets.token_hex(8)}"
