"""Interactions: the clean, deduplicated rows of a log, in parts of whole users."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
        duplicates, filtered: rows that were merged into others, and left out by their event.
        quarantined: {reason: rows that break a rule}.
        n_users: users.
        has_ratings, has_events, has_time, has_folds: what rows hold.
        time_range: first and last UTC second, None without time.
        timestamp_units: {unit: rows read in it}.
        columns: {our column: where it is from}.
        left_out: {the log's column: why it is not read}.
        lines: {what became of a line of text: lines}; None for other formats.
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
