"""Questions to a search and its answers, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.errors import DataError

DEFAULT_GAMMA = 0.5

Items = NDArray[np.int32]
Floats = NDArray[np.floating[Any]]


class UnknownUserError(DataError):
    """A user id that the profiles do not hold."""


@dataclasses.dataclass(frozen=True)
class ProfileEntry:
    """One interaction of a posted profile.

    Attributes:
        item_id: external id.
        rating: in rating units.
        event: name of an event level, in logs that have events.
        timestamp: UTC seconds; None counts as just now.
    """

    item_id: str
    rating: float | None = None
    event: str | None = None
    timestamp: int | None = None


@dataclasses.dataclass(frozen=True)
class RecommendQuery:
    """A request for recommendations; exactly one of `user_id` and `profile` is given.

    Attributes:
        user_id: a stored user.
        profile: posted interactions; empty asks for the prior.
        top_k: length of the list, 1 or more.
        ranking: one of `Search.rankings`; None takes the first of them.
        exclude_seen: leave out the items of the profile.
        gamma: of the discover ranking, log P(like) - gamma log P(consume).
        allow: conditions on item attributes that must hold (`filters`); None: no condition.
        deny: conditions none of which may hold.
        levels: return P(level | item, profile) of every level with each hit.
    """

    user_id: str | None = None
    profile: Sequence[ProfileEntry] | None = None
    top_k: int = 20
    ranking: str | None = None
    exclude_seen: bool = True
    gamma: float = DEFAULT_GAMMA
    allow: Mapping[str, Any] | None = None
    deny: Mapping[str, Any] | None = None
    levels: bool = False


@dataclasses.dataclass
class Hit:
    """One item of an answer; probabilities are None without an autoencoder.

    `levels`, {name: probability}, is there on request only, and never for upserted items.
    """

    item_id: str
    title: str | None
    score: float
    p_consume: float | None = None
    p_like: float | None = None
    expected_rating: float | None = None
    levels: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """A recommendation list, best first.

    Attributes:
        build_id: of the index.
        ranking: what the list is sorted by.
        unknown_items: profile items that the catalogue does not hold.
        items: at most top_k hits.
    """

    build_id: str
    ranking: str
    unknown_items: list[str]
    items: list[Hit]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The list of one user, best first.

    Attributes:
        item_nums: int32 [k].
        scores: [k] of the ranking.
        p_consume, p_like: [k], None without an autoencoder.
        expected_rating: [k], None where the model has no rated levels, nan for upserted items.
        level_probs: [k, R], nan for upserted items; None without an autoencoder.
    """

    item_nums: Items
    scores: Floats
    p_consume: Floats | None = None
    p_like: Floats | None = None
    expected_rating: Floats | None = None
    level_probs: Floats | None = None
