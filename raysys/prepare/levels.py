"""Which interaction levels a log has, decided from its fit window.

    ratings that differ          a level per value, or bins; and one of unrated rows
    else events                  a level per event
    else one rating, some unrated rows   `rated` and `unrated`, without a scale
    else                         one level, `consumed`

One rating value throughout says no more than that a row is there, so it makes no scale.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.schema import RatingLevels, default_liked
from raysys.errors import ConfigError

log = logging.getLogger(__name__)

MAX_DISTINCT = 11
N_BINS = 10
RATED = "rated"
UNRATED = "unrated"
CONSUMED = "consumed"
NO_EVENT = "unspecified"  # rows without an event in a log that has events


@dataclasses.dataclass(frozen=True)
class LevelCounts:
    """Rows of the fit window per kind.

    Attributes:
        ratings: {rating value: rows}.
        n_unrated: rows without a rating.
        events: {event, None where missing: rows}.
    """

    ratings: Mapping[float, int]
    n_unrated: int
    events: Mapping[str | None, int]


def build_levels(
    counts: LevelCounts,
    *,
    liked_levels: Sequence[str] | None = None,
    negative_events: Sequence[str] = (),
) -> RatingLevels:
    """Return the levels (see the module's docstring), with a warning where ratings do not differ.

    Args:
        counts: of the fit window alone.
        liked_levels: names of the levels that count as liked; None takes ratings of at least
            min + 0.75 (max - min), and every event but the negative ones.
        negative_events: events that do not count as liked.

    Raises:
        ConfigError: a name in `liked_levels` or `negative_events` is not a level.
    """
    edges: tuple[float, ...] | None = None
    scale = (min(counts.ratings), max(counts.ratings)) if counts.ratings else None
    has_events = any(event is not None for event in counts.events)
    if len(counts.ratings) > 1:
        names, values, edges = _rated(counts.ratings)
        if counts.n_unrated:
            names, values = [*names, UNRATED], [*values, None]
    elif has_events:
        names = sorted(NO_EVENT if event is None else event for event in counts.events)
        values, scale = [None] * len(names), None
    elif counts.ratings and counts.n_unrated:
        names, values = [RATED, UNRATED], [None, None]
    else:
        names, values = [CONSUMED], [None]
    if len(counts.ratings) == 1:
        log.warning(
            "ratings of the fit window are all %s: they make no scale, levels=%s",
            _shortest(next(iter(counts.ratings))),
            ",".join(names),
        )
    if len(names) > 256:
        raise ConfigError(f"{len(names)} events are too many: at most 256 levels are possible")
    levels = RatingLevels(tuple(names), tuple(values), (True,) * len(names), edges, scale)
    return with_liked(levels, liked_levels=liked_levels, negative_events=negative_events)


def with_liked(
    levels: RatingLevels,
    *,
    liked_levels: Sequence[str] | None = None,
    negative_events: Sequence[str] = (),
) -> RatingLevels:
    """Return the levels with other ones that count as liked; arguments as of `build_levels`."""
    names, values = list(levels.names), list(levels.values)
    if liked_levels is not None:
        liked_names = [_spelling(name, names, values) for name in liked_levels]
        _check_names("liked_levels", liked_names, names)
        liked = [name in liked_names for name in names]
    elif levels.n_rated:
        liked = list(default_liked(values))
    elif levels.scale is not None or names == [CONSUMED]:
        liked = [name != UNRATED for name in names]
    else:
        _check_names("negative_events", negative_events, names)
        liked = [name not in negative_events for name in names]
    return dataclasses.replace(levels, liked=tuple(liked))


def assign_levels(
    levels: RatingLevels, *, rating: NDArray[np.float32], event: NDArray[Any], events: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return every row's level [M] and which rows have none because the fit window had none.

    Args:
        levels: the levels.
        rating: [M], NaN where unrated.
        event: [M] numbers of `events`, -1 where missing.
        events: the distinct events.
    """
    if levels.names == (CONSUMED,):
        return np.zeros(len(rating), dtype=np.uint8), np.zeros(len(rating), dtype=bool)
    if levels.n_rated or levels.scale is not None:
        unrated = levels.level_of_name(UNRATED)
        rated = ~np.isnan(rating)
        level = np.full(len(rating), unrated or 0, dtype=np.uint8)
        level[rated] = levels.level_of_rating(rating[rated])
        unknown = ~rated if unrated is None else np.zeros(len(rating), dtype=bool)
        return level, unknown
    found = [levels.level_of_name(name) for name in [*events, NO_EVENT]]
    table = np.array([-1 if level is None else level for level in found])[event]
    return np.maximum(table, 0).astype(np.uint8), table < 0


def _rated(
    ratings: Mapping[float, int],
) -> tuple[list[str], list[float | None], tuple[float, ...] | None]:
    """Return names, values and edges of the rated levels."""
    distinct = np.array(sorted(ratings))
    if len(distinct) <= MAX_DISTINCT:
        return [_shortest(v) for v in distinct], [float(v) for v in distinct], None
    weights = np.array([ratings[value] for value in sorted(ratings)], dtype=np.float64)
    share = np.cumsum(weights) / weights.sum()
    cuts = np.searchsorted(share, np.arange(1, N_BINS) / N_BINS, side="left") + 1
    cuts = np.unique(cuts[cuts < len(distinct)])
    if not len(cuts):  # nearly all rows have the highest value: it is a bin of its own
        cuts = np.array([len(distinct) - 1])
    bins = list(zip(np.split(distinct, cuts), np.split(weights, cuts), strict=True))
    values: list[float | None] = [float(np.average(v, weights=w)) for v, w in bins]
    names = [f"{_shortest(v[0])}..{_shortest(v[-1])}" for v, _ in bins]
    return names, values, tuple(float(v[0]) for v, _ in bins[1:])


def _shortest(rating: float) -> str:
    """Return the shortest text that float32 reads as this rating: 4, 4.1, 16777215."""
    return np.format_float_positional(np.float32(rating), trim="-")


def _spelling(name: str, names: Sequence[str], values: Sequence[float | None]) -> str:
    """Return the level that `name` means: `4.0` and `4` are the same rating."""
    if name in names:
        return name
    try:
        number = np.float32(name)
    except ValueError:
        return name
    same = (
        n for n, v in zip(names, values, strict=True) if v is not None and np.float32(v) == number
    )
    return next(same, name)


def _check_names(key: str, asked: Sequence[str], names: Sequence[str]) -> None:
    for name in asked:
        if name not in names:
            raise ConfigError(f"{key}: {name!r} is not a level of this log: {', '.join(names)}")
