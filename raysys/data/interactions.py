"""Interactions: the clean, deduplicated rows of a log, in parts of whole users."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.store.builds import Build
from raysys.store.kinds import Facts

_PART_PREFIX, _QUARANTINE_PREFIX = "part-", "quarantine-"


@dataclasses.dataclass(frozen=True)
class ColumnUse:
    """Where one of our columns is from: `rows` of `of` rows of the log's `source` hold a value."""

    source: str
    rows: int
    of: int


@dataclasses.dataclass(frozen=True)
class InteractionsFacts(Facts):
    """What became of a log.

    Attributes:
        rows_in, rows: of the log, of the build.
        duplicates, filtered: rows that were merged into others, and left out by their event or
            as those of erased users.
        quarantined: {reason: rows that break a rule}.
        n_users: users.
        has_ratings, has_events, has_time, has_folds: what rows hold.
        time_range: first and last UTC second, None without time.
        timestamp_units: {unit: rows read in it}.
        columns: {our column: where it is from}.
        left_out: {the log's column: why it is not read}.
        lines: {what became of a line of text: lines}; None for other formats.
        erased: rows of erased users, those that were taken out later too.
    """

    rows_in: int
    rows: int
    duplicates: int
    filtered: int
    quarantined: dict[str, int]
    n_users: int
    has_ratings: bool
    has_events: bool
    has_time: bool
    has_folds: bool
    time_range: tuple[int, int] | None
    timestamp_units: dict[str, int]
    columns: dict[str, ColumnUse]
    left_out: dict[str, str]
    lines: dict[str, int] | None
    erased: int = 0


class Interactions:
    """An `interactions` build, opened.

    Attributes:
        facts: what prepare recorded.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self.facts = InteractionsFacts.of(build)

    @classmethod
    def open(cls, build: Build) -> Interactions:
        """Open an `interactions` build; its parts are read by those who need them."""
        return cls(build)

    @property
    def part_urls(self) -> list[str]:
        """Where the parts lie, in user order: paths or URIs that any node can read."""
        return self._build.urls(".parquet", prefix=_PART_PREFIX)

    @property
    def part_paths(self) -> list[Path]:
        """Local paths of the parts, in user order."""
        return [self._build.path(n) for n in self._build.files(".parquet", prefix=_PART_PREFIX)]

    @property
    def quarantine(self) -> dict[str, Path]:
        """{name: local path} of the files of rows that break a rule."""
        names = self._build.files(prefix=_QUARANTINE_PREFIX)
        return {name.removeprefix(_QUARANTINE_PREFIX): self._build.path(name) for name in names}


def part_name(number: int) -> str:
    """Return the file name of a part."""
    return f"{_PART_PREFIX}{number:05d}.parquet"


def quarantine_name(which: str) -> str:
    """Return the file name of rows that break a rule, found in `which` piece or part."""
    return f"{_QUARANTINE_PREFIX}{which}"


def without_users(
    folder: Path, user_ids: Collection[str], facts: InteractionsFacts
) -> InteractionsFacts:
    """Take the rows of users out of the files of a build, those that break a rule too.

    Args:
        folder: that holds the files.
        user_ids: whose rows go.
        facts: of the build.

    Returns:
        The facts of what is left.
    """
    n_rows = n_users = 0
    for path in sorted(folder.glob(f"{_PART_PREFIX}*.parquet")):
        own = keep_rows(path, lambda rows: of_others(rows, user_ids))
        n_rows += len(own)
        n_users += len(pc.unique(own["user_id"])) if len(own) else 0
    for path in sorted(folder.glob(f"{_QUARANTINE_PREFIX}*")):
        keep_rows(path, lambda rows: tells_of_none(rows, user_ids))
    return dataclasses.replace(
        facts,
        rows=facts.rows - n_rows,
        n_users=facts.n_users - n_users,
        filtered=facts.filtered + n_rows,
        erased=facts.erased + n_rows,
    )


def of_others(rows: pa.Table, user_ids: Collection[str]) -> pa.Array:
    """Return which rows of a table with `user_id` are of none of these users."""
    return pc.invert(pc.is_in(rows["user_id"], pa.array(sorted(user_ids), pa.string())))


def tells_of_none(rows: pa.Table, user_ids: Collection[str]) -> pa.Array:
    """Return which rows of a quarantine name none of the users, in a column or in raw text."""
    words = "|".join(re.escape(user_id) for user_id in user_ids)
    found = pc.fill_null(
        pc.match_substring_regex(rows["text"], rf"(^|[^\pL\pN_])({words})($|[^\pL\pN_])"), False
    )
    own = pc.is_in(rows["user_id"], pa.array(sorted(user_ids), pa.string()))
    return pc.invert(pc.or_(found, own))


def keep_rows(path: Path, kept: Callable[[pa.Table], pa.Array]) -> pa.Table:
    """Write a Parquet file again with the rows for which `kept` is true; return the others."""
    with pq.ParquetFile(path) as file:
        rows = file.read()
        groups = file.metadata.num_row_groups
        compression = file.metadata.row_group(0).column(0).compression if groups else "ZSTD"
    mask = kept(rows)
    gone = rows.filter(pc.invert(mask))
    if len(gone):
        pq.write_table(rows.filter(mask), path, compression=compression)
    return gone
