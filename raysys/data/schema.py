"""Names, Arrow schemas and small value types that every stage shares.

A cell's `window` says what a split made of it. Which windows a period uses:

    split      period  model is fitted on   history     targets
    temporal   val     FIT                  FIT         VAL
    temporal   test    FIT, VAL             FIT, VAL    TEST
    ratings    val     FIT                  FIT         VAL
    ratings    test    FIT                  FIT         TEST
    users      val     FIT                  VAL_IN      VAL
    users      test    FIT                  TEST_IN     TEST
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.errors import ConfigError

INTERACTION_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("rating", pa.float32()),  # null: not rated
        ("timestamp", pa.int64()),  # UTC seconds; null in logs without time
        ("event", pa.string()),  # null in logs without events
    ]
)

PROFILE_SCHEMA = pa.schema(
    [
        ("user_num", pa.int32()),
        ("item_num", pa.list_(pa.int32())),
        ("level", pa.list_(pa.uint8())),
        ("timestamp", pa.list_(pa.int64())),
        ("window", pa.list_(pa.uint8())),
    ]
)

SPLITS = ("temporal", "users", "ratings")
PERIODS = ("val", "test")


class Window(enum.IntEnum):
    """What a split made of a cell."""

    FIT = 0
    VAL = 1
    TEST = 2
    VAL_IN = 3
    TEST_IN = 4


@dataclasses.dataclass(frozen=True)
class PeriodWindows:
    """The windows that one period of one split uses."""

    fitted: tuple[Window, ...]
    history: tuple[Window, ...]
    targets: tuple[Window, ...]

    @property
    def used(self) -> frozenset[Window]:
        """All of them; an evaluation of the period reads no others."""
        return frozenset((*self.fitted, *self.history, *self.targets))


_PERIOD_WINDOWS = {
    ("temporal", "val"): PeriodWindows((Window.FIT,), (Window.FIT,), (Window.VAL,)),
    ("temporal", "test"): PeriodWindows(
        (Window.FIT, Window.VAL), (Window.FIT, Window.VAL), (Window.TEST,)
    ),
    ("ratings", "val"): PeriodWindows((Window.FIT,), (Window.FIT,), (Window.VAL,)),
    ("ratings", "test"): PeriodWindows((Window.FIT,), (Window.FIT,), (Window.TEST,)),
    ("users", "val"): PeriodWindows((Window.FIT,), (Window.VAL_IN,), (Window.VAL,)),
    ("users", "test"): PeriodWindows((Window.FIT,), (Window.TEST_IN,), (Window.TEST,)),
}


def period_windows(split: str, period: str) -> PeriodWindows:
    """Return the windows of a period.

    Raises:
        ConfigError: the split or the period is not one of those above.
    """
    try:
        return _PERIOD_WINDOWS[split, period]
    except KeyError:
        raise ConfigError(
            f"split={split!r} period={period!r}: expected {SPLITS} and {PERIODS}"
        ) from None


@dataclasses.dataclass(frozen=True)
class RatingLevels:
    """The interaction levels of a log: rating values or bins, then events, then unrated rows.

    Attributes:
        names: one per level, shown to users (`"4.5"`, `"purchase"`, `"unrated"`).
        values: rating in rating units per level; None for unordered levels (events, unrated,
            plain presence).
        liked: whether consuming at this level counts as liking.
        edges: upper edges (exclusive, the last omitted) of binned ratings, or None where each
            distinct value is a level of its own.
        scale: lowest and highest rating of the fit window; None where ratings do not tell the
            level (events, plain presence), and in builds of before it was kept.
    """

    names: tuple[str, ...]
    values: tuple[float | None, ...]
    liked: tuple[bool, ...]
    edges: tuple[float, ...] | None = None
    scale: tuple[float, float] | None = None

    @property
    def n_levels(self) -> int:
        """Number of levels R, 1 or more."""
        return len(self.names)

    @property
    def rated(self) -> NDArray[np.bool_]:
        """Mask [R] of the levels that carry a rating value."""
        return np.array([value is not None for value in self.values], dtype=bool)

    @property
    def n_rated(self) -> int:
        """Number of levels that carry a rating value; they come first."""
        return int(self.rated.sum())

    def value_array(self) -> NDArray[np.float32]:
        """Return [R] rating values, NaN for unordered levels."""
        return np.array([np.nan if v is None else v for v in self.values], dtype=np.float32)

    def liked_array(self) -> NDArray[np.bool_]:
        """Return the mask [R] of liked levels."""
        return np.array(self.liked, dtype=bool)

    def level_of_rating(self, ratings: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Return the level of each rating: the nearest value, or the bin it falls in.

        Args:
            ratings: [M] finite rating values.
        """
        if self.edges is not None:
            return np.searchsorted(np.array(self.edges), ratings, side="right").astype(np.uint8)
        values = np.array([v for v in self.values if v is not None])
        if not len(values):  # ratings that never differed: one level, the first
            return np.zeros(len(ratings), dtype=np.uint8)
        middles = (values[1:] + values[:-1]) / 2
        return np.searchsorted(middles, ratings, side="right").astype(np.uint8)

    def level_of_name(self, name: str) -> int | None:
        """Return the level called `name`, or None."""
        return self.names.index(name) if name in self.names else None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write the levels as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> RatingLevels:
        """Read what `save` wrote."""
        record: dict[str, Any] = json.loads(path.read_text())
        fields = {name: None if v is None else tuple(v) for name, v in record.items()}
        return cls(**fields)  # type: ignore[arg-type]


def default_liked(values: Sequence[float | None]) -> tuple[bool, ...]:
    """Return which rated levels count as liked: value >= min + 0.75 (max - min)."""
    rated = [value for value in values if value is not None]
    if not rated:
        return tuple(True for _ in values)
    cut = min(rated) + 0.75 * (max(rated) - min(rated))
    return tuple(value is not None and value >= cut for value in values)
