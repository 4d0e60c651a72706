"""The rankings: what each needs of a log, its exact score, and its linear form.

    consume    P(i | u)                              what the user will take next
    rating     E[rating | i, u]                      what the user will rate best
    like       P(liked | i, u)                       what the user will like
    discover   log P(liked | i, u) - gamma log P(i | u)   liked, and not found without help

A new ranking is one row of `RANKINGS`: configuration, HTTP, the linear form that candidates come
from and the exact scores that reorder them all read this table.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from raysys.errors import ConfigError

if TYPE_CHECKING:  # keeps Arrow out of the HTTP client
    from raysys.data.schema import RatingLevels

log = logging.getLogger(__name__)

SIMILAR = "similar"  # the order of builds of plain vectors: by cosine, without a model
DEFAULT_GAMMA = 0.5
MAX_GAMMA = 10.0  # that a request over HTTP may ask for
CONSUME_BIAS = 0  # the column of the biases that holds the consume scores' prior
N_CANDIDATES = 300  # of the linear form, for exact scores to reorder


class Needs(enum.Enum):
    """What a ranking needs of the levels of a log."""

    NOTHING = "nothing"
    RATED = "ratings that differ"
    LIKED = "levels that are liked, and others"


class ItemValues(Protocol):
    """What a model says of items, as NumPy arrays or Torch tensors of one shape."""

    @property
    def consume_score(self) -> Any:
        """What orders items as log P(i | u) does, and is linear in the latent."""

    @property
    def log_p_consume(self) -> Any:
        """Values log P(i | u)."""

    @property
    def log_p_like(self) -> Any:
        """Values log P(a liked level | i, u)."""

    @property
    def expected_rating(self) -> Any:
        """In rating units; there where `Needs.RATED` is met."""


class Fitted(Protocol):
    """What linear forms read of a model."""

    @property
    def link(self) -> Any:
        """Its `Link`, fitted."""

    @property
    def discover_slope(self) -> Any:
        """The fitted weight of logit P(like) in discover, a number."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a name means.

    Attributes:
        needs: levels without which no model can give the ranking.
        exact: (values, gamma) -> scores of the values' shape; higher is better.
        linear: (model, gamma) -> weights of the consume scores and of logit P(like) in the dot
            product that candidates are searched by.
        gamma: default weight of what `exact` takes it for; None: the ranking has no such weight.
        probed: the index measures its recall with queries of this ranking too.
    """

    needs: Needs
    exact: Callable[[ItemValues, float], Any]
    linear: Callable[[Fitted, float], tuple[float, float]]
    gamma: float | None = None
    probed: bool = False


def _discover_weights(model: Fitted, gamma: float) -> tuple[float, float]:
    """Return the linear form of discover; the build fitted its weight of logit P(like)."""
    return -gamma * model.link.slope(), float(model.discover_slope)


RANKINGS: dict[str, Rule] = {
    "consume": Rule(
        needs=Needs.NOTHING,
        exact=lambda values, _: values.consume_score,
        linear=lambda model, _: (1.0, 0.0),
        probed=True,
    ),
    "rating": Rule(
        needs=Needs.RATED,
        exact=lambda values, _: values.expected_rating,
        linear=lambda model, _: (0.0, 1.0),
    ),
    "like": Rule(
        needs=Needs.LIKED,
        exact=lambda values, _: values.log_p_like,
        linear=lambda model, _: (0.0, 1.0),
        probed=True,
    ),
    "discover": Rule(
        needs=Needs.LIKED,
        exact=lambda values, gamma: values.log_p_like - gamma * values.log_p_consume,
        linear=_discover_weights,
        gamma=DEFAULT_GAMMA,
    ),
}


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One ranking and its weight, from the request to the score; `discover^0.3` as text.

    Attributes:
        name: a row of `RANKINGS`, or `similar`.
        gamma: finite, 0 or more, of a ranking that has one; None takes the table's.

    Raises:
        ConfigError: the name is not in the table, or the weight is not accepted.
    """

    name: str
    gamma: float | None = None

    def __post_init__(self) -> None:
        """Check the name and the weight."""
        if self.name not in NAMES:
            raise _refused(self.name)
        if self.gamma is None:
            return
        if not _weighted(self.name):
            raise ConfigError(f"ranking={self.name}^{self.gamma:g}: {self.name} has no weight")
        if not 0 <= self.gamma < math.inf:
            accepted = "expected a finite weight of 0 or more"
            raise ConfigError(f"ranking={self.name}^{self.gamma:g} is not accepted: {accepted}")

    @classmethod
    def parse(cls, text: str, gamma: float | None = None) -> Ranking:
        """Return the ranking that a text names.

        Args:
            text: `like`, or `discover^0.3`.
            gamma: the weight where the ranking has one and the text does not say it; None: the
                table's.

        Raises:
            ConfigError: the text names none of the table's.
        """
        name, caret, weight = text.partition("^")
        if not caret:
            return cls(name, gamma if _weighted(name) else None)
        try:
            return cls(name, float(weight))
        except ValueError:
            raise _refused(text) from None

    def __str__(self) -> str:
        if not _weighted(self.name) or self.weight == self.rule.gamma:
            return self.name
        return f"{self.name}^{float(self.weight)!r}".removesuffix(".0")

    @property
    def rule(self) -> Rule:
        """The row of the table; ConfigError for `similar`, which has none."""
        if self.name not in RANKINGS:
            raise ConfigError(f"ranking={self.name}: a model has no scores for it")
        return RANKINGS[self.name]

    @property
    def weight(self) -> float:
        """Gamma, the table's where none was given; 0 of a ranking without."""
        if self.gamma is not None:
            return self.gamma
        return (self.rule.gamma or 0.0) if _weighted(self.name) else 0.0

    def exact(self, values: ItemValues) -> Any:
        """Return the scores of items; higher is better."""
        return self.rule.exact(values, self.weight)

    def linear(self, model: Fitted) -> tuple[float, float]:
        """Return the weights of the consume scores and of logit P(like) in the linear form."""
        return self.rule.linear(model, self.weight)


NAMES = (*RANKINGS, SIMILAR)


def text_of_keys(ranking: str | None, gamma: float | None) -> str | None:
    """Return the text of the keys `ranking=` and `gamma=`, the second of which is an old one.

    Raises:
        ConfigError: as `Ranking`; or the ranking is not one of a model's.
    """
    if gamma is not None and not 0 <= gamma < math.inf:
        raise ConfigError(f"gamma={gamma!r} is not accepted: expected a finite number, 0 or more")
    if ranking is None:
        if gamma is not None:
            warn_of_lone_gamma()
        return None
    chosen = Ranking.parse(ranking, gamma)
    if chosen.name not in RANKINGS:
        accepted = ", ".join(text for text in spellings() if text != SIMILAR)
        raise ConfigError(f"ranking={ranking!r} is not accepted: expected one of {accepted}")
    if gamma is not None:
        log.warning("key gamma is going: write ranking=%s", chosen)
    return str(chosen)


def warn_of_lone_gamma() -> None:
    """Say that `gamma=` does nothing without `ranking=`: the default ranking has no weight."""
    log.warning("key gamma is ignored without a ranking: write ranking=discover^GAMMA")


def rankings_of(levels: RatingLevels) -> tuple[str, ...]:
    """Return the rankings that a model of these levels can give, the default first."""
    return tuple(name for name, rule in RANKINGS.items() if meets(levels, rule.needs))


def meets(levels: RatingLevels, needs: Needs) -> bool:
    """Tell whether a log of these levels has what a ranking needs."""
    if needs is Needs.RATED:
        return levels.n_rated > 1
    return needs is Needs.NOTHING or (any(levels.liked) and not all(levels.liked))


def spellings() -> tuple[str, ...]:
    """Return what the text of a ranking may be, the place of a weight as `GAMMA`."""
    weighted = [f"{name}^GAMMA" for name in RANKINGS if _weighted(name)]
    return (*RANKINGS, *weighted, SIMILAR)


def _weighted(name: str) -> bool:
    return name in RANKINGS and RANKINGS[name].gamma is not None


def _refused(text: str) -> ConfigError:
    return ConfigError(
        f"ranking={text!r} is not accepted: expected one of {', '.join(spellings())}"
    )
