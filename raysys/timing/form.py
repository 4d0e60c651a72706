"""How the consume score takes time into account, in a form that stays linear for retrieval.

    score(u, i) = n_u^-a  z_u . v_i (c_i + 10)^-al  +  weight * sd * b_i
    b_i = log sum_h share_h p_h(i) + gamma log(c_i + .3)

    z_u: the user's latent, a cell with m newer ones in its profile counts 2^(-m / recency)
    c_i: users of item i that the model was fitted on; p_h: shares of decayed counters
    sd: standard deviation of the personal scores, so that a weight means the same on any log

The lift exponent al takes all-time popularity out of a co-occurrence score, which would fight the
list that follows time; the length exponent a keeps long profiles, whose scores are large, from
listening less to that list. Vectors carry al, queries a and recency, and b is one number per item
outside the codes: it moves with the counters while all else stays.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np

from raysys.data.arrays import Floats
from raysys.timing.counters import HALF_LIVES_D, Counters

LIST_WEIGHT = 1000.0  # the list alone: scores only break its ties
_LIFT_OFFSET = 10.0
_COUNT_OFFSET = 0.3
_SPREAD = "prior_spread"


@dataclasses.dataclass(frozen=True)
class TimeForm:
    """The free numbers of the form.

    Attributes:
        weight: of the list, in standard deviations of personal scores; 0: no list.
        shares: [H] of the half-lives in the list, adding up to 1.
        lift: exponent al, 0 or more.
        length: exponent a, 0 or more.
        recency: newer cells that halve a cell's weight; 0: all count alike.
        popularity: gamma, 0 or less.
    """

    weight: float = 0.0
    shares: tuple[float, ...] = (*[0.0] * (len(HALF_LIVES_D) - 1), 1.0)
    lift: float = 0.0
    length: float = 0.0
    recency: float = 0.0
    popularity: float = 0.0

    @classmethod
    def single(cls, weight: float, half_life_days: float) -> Self:
        """Return the form with the list of one half-life of `HALF_LIVES_D`."""
        return cls(weight, tuple(float(h == half_life_days) for h in HALF_LIVES_D))

    def towards(self, half_life_days: float, share: float) -> Self:
        """Return the form with `share` of the list given to one half-life."""
        shares = tuple(
            p * (1 - share) + share * (h == half_life_days)
            for p, h in zip(self.shares, HALF_LIVES_D, strict=True)
        )
        return dataclasses.replace(self, shares=shares)

    def without(self, half_life_days: float) -> Self:
        """Return the form without one half-life, of several in its list."""
        rest = [p * (h != half_life_days) for p, h in zip(self.shares, HALF_LIVES_D, strict=True)]
        return dataclasses.replace(self, shares=tuple(p / sum(rest) for p in rest))

    def item_lift(self, counts: Floats) -> Floats:
        """Return what items' vectors are multiplied by, [N], from their counts [N]."""
        return np.asarray((counts + _LIFT_OFFSET) ** -self.lift, dtype=np.float32)

    def bias(self, counters: Counters, top: float | None = None) -> Floats:
        """Return weight * (b - top), [N]: what is added to a score in units of its spread.

        Args:
            counters: of the items.
            top: what b is measured from; None: its own largest value. Counters that move keep the
                first one, so that an item's bias follows from that item's share alone.
        """
        value = self._list(counters)
        top = value.max(initial=-np.inf) if top is None else top
        return np.asarray(self.weight * (value - top), dtype=np.float32)

    def top(self, counters: Counters) -> float:
        """Return the largest b of all items, 0 without items."""
        return float(self._list(counters).max()) if counters.n_items else 0.0

    def _list(self, counters: Counters) -> Floats:
        value = counters.log_share(self.shares)
        if self.popularity:
            value = value + self.popularity * np.log(counters.totals + _COUNT_OFFSET)
        return np.asarray(value)

    def as_choices(self, spread: float) -> dict[str, float]:
        """Return the numbers by name, and the spread of the scores that they go with."""
        named = {
            f"prior_share_{_label(h)}": p for h, p in zip(HALF_LIVES_D, self.shares, strict=True)
        }
        rest = dataclasses.asdict(self)
        rest.pop("shares")
        named = {name: share for name, share in named.items() if share}
        return named | {f"prior_{name}": value for name, value in rest.items()} | {_SPREAD: spread}

    @classmethod
    def of_choices(cls, choices: dict[str, float]) -> tuple[Self, float]:
        """Return what `as_choices` was given; without a list where it says nothing."""
        shares = tuple(choices.get(f"prior_share_{_label(h)}", 0.0) for h in HALF_LIVES_D)
        names = [field.name for field in dataclasses.fields(cls) if field.name != "shares"]
        rest: dict[str, Any] = {n: choices[f"prior_{n}"] for n in names if f"prior_{n}" in choices}
        if sum(shares):
            rest["shares"] = shares
        return cls(**rest), choices.get(_SPREAD, 1.0)


def _label(half_life_days: float) -> str:
    return f"{half_life_days:g}d" if half_life_days else "all"
