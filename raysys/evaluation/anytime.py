"""Comparing two arms of an experiment, read at any time; and whether users are split as configured.

Letters: n users in order of their first impression, y outcome, p share of the arm among both.

    centred    c_n = y_n - mean(y_1..y_{n-1})             users of both arms
    sign       d_n = 1 / p_n in the arm, -1 / (1 - p_n) in the control
    effect     z_n = d_n c_n,  E[z_n | past] = mean outcome in the arm minus that in the control

A user's arm is drawn independently of all else, so z is unbiased whatever the users are like and
however they drift: it is the augmented inverse-probability estimate with known shares. What follows
is the running mean of z, so the effect that an interval holds is that of the users so far.

The interval is an asymptotic confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
arXiv 2103.06476, theorem 2.2 (the boundary) and section 3 (z as the effect). Here its variance is
the larger of two: that of z so far, and mean(c^2) (1 / p + 1 / (1 - p)), which is that of z where
arms do not differ. The first alone is small just where a small arm missed its rare high outcomes.

The decision does not rest on asymptotics. Where the arm changes no user's outcome, d is independent
of all outcomes, and its distribution is known: for any eta

    M_n = prod exp(eta x_i d_i) / (p_i e^(eta x_i / p_i) + (1 - p_i) e^(-eta x_i / (1 - p_i)))

with x_i = c_i / scale of the outcomes until i is a martingale of mean 1, and so is a mixture over
eta: a test by betting on the assignment. By Ville's inequality it reaches 1 / alpha with chance
alpha at most, over all n, for any outcomes. The evidence is the smaller of this mixture and of the
one behind the interval, so that a decision never contradicts its interval.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw
from scipy.stats import chi2

Floats = NDArray[np.float64]

BURN_IN = 100  # users of both arms before the first interval, which holds asymptotically
SHARP_AT = 5_000  # users at which the interval is narrowest; a quarter is lost at a tenth of them
SPLIT_ALPHA = 0.01  # of the check of the split
_NODES = 32  # of the mixture over eta, on each side
_FARTHEST = 4.0  # node, in standard deviations of eta
_SMALLEST = 1e-3  # node, of the farthest
_BLOCK = 1 << 16  # users at once
_PRIOR = 500.0  # users that the configured split counts for
_MAX_USERS = 10**9
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Running:
    """A comparison after each of n users, [n] each; intervals are infinite before `BURN_IN`.

    Attributes:
        effect: mean outcome in the arm minus that in the control, of the users so far.
        low, high: the confidence sequence of the effect.
        p_value: valid at any time, never rises.
        deviation: of one user's z, its standard deviation.
    """

    effect: Floats
    low: Floats
    high: Floats
    p_value: Floats
    deviation: Floats

    def decided_at(self, alpha: float) -> int | None:
        """Return after how many users the arms were called different, None: they are not yet."""
        at = np.flatnonzero(self.p_value <= alpha)
        return int(at[0]) + 1 if len(at) else None


def compare(in_arm: NDArray[np.bool_], outcome: Floats, share: Floats, *, alpha: float) -> Running:
    """Compare an arm with the control after every user.

    Args:
        in_arm: [n] the user is in the arm, not in the control; in order of first impressions.
        outcome: [n] of each user over the same horizon.
        share: [n] configured chance to be in the arm rather than in the control, 0 < p < 1.
        alpha: 0..1, chance that the effect leaves the sequence at any time.
    """
    count = np.arange(1, len(outcome) + 1, dtype=np.float64)
    before = np.concatenate(([0.0], np.cumsum(outcome)[:-1]))
    centred = outcome - before / np.maximum(count - 1, 1)
    sign = np.where(in_arm, 1 / share, -1 / (1 - share))
    z = sign * centred
    effect = np.cumsum(z) / count
    alike = np.cumsum(centred**2 * (1 / share + 1 / (1 - share))) / count
    variance = np.maximum(np.maximum(np.cumsum(z**2) / count - effect**2, alike), _TINY)
    deviation = np.sqrt(variance)
    width = np.where(count < BURN_IN, np.inf, half_width(count, deviation, alpha=alpha))
    seen = count * spread(alpha)
    likelihood = count * effect**2 / variance * seen / (1 + seen) / 2 - np.log1p(seen) / 2
    likelihood[: BURN_IN - 1] = -np.inf
    bets = _bets(in_arm, centred / np.sqrt(np.maximum(alike, _TINY)), share, alpha)
    evidence = np.maximum.accumulate(np.minimum(likelihood, bets))
    return Running(
        effect, effect - width, effect + width, np.exp(-np.maximum(evidence, 0)), deviation
    )


def spread(alpha: float) -> float:
    """Return rho^2 of the boundary that is narrowest at `SHARP_AT` (arXiv 2103.06476, appendix)."""
    return float(-lambertw(-(alpha**2) / math.e, -1).real - 1) / SHARP_AT


def half_width(count: Floats, deviation: Floats, *, alpha: float) -> Floats:
    """Return half of the confidence sequence after `count` users (arXiv 2103.06476, thm. 2.2).

    Args:
        count: n, 1 or more.
        deviation: standard deviation of one user's z.
        alpha: chance of an error at any time.
    """
    seen = count * spread(alpha)
    bound: Floats = np.sqrt(2 * (1 + 1 / seen) * (np.log1p(seen) / 2 - math.log(alpha)) / count)
    return deviation * bound


def users_needed(effect: float, deviation: float, *, alpha: float) -> int | None:
    """Return how many users decide an effect of this size on average; None: above a billion."""
    low, high = BURN_IN, _MAX_USERS

    def decides(count: int) -> bool:
        n, width = np.array([float(count)]), np.array([deviation])
        return bool(half_width(n, width, alpha=alpha)[0] <= abs(effect))

    if not decides(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle + 1, high)
    return high


def _bets(in_arm: NDArray[np.bool_], x: Floats, share: Floats, alpha: float) -> Floats:
    """Return the logarithm of the mixture of bets on the assignment after every user, [n]."""
    deviation = math.sqrt(spread(alpha))
    half = _FARTHEST * deviation * np.geomspace(_SMALLEST, 1, _NODES)
    nodes = np.concatenate((-half[::-1], half))
    weights = np.exp(-((nodes / deviation) ** 2) / 2) * np.gradient(nodes)
    total = np.log(weights / weights.sum())  # of every node until now
    result = np.empty(len(x))
    for start in range(0, len(x), _BLOCK):
        part = slice(start, start + _BLOCK)
        own, other = x[part] / share[part], -x[part] / (1 - share[part])
        drawn = np.where(in_arm[part], own, other)
        log_own, log_other = np.log(share[part]), np.log1p(-share[part])
        mixed = np.full(len(drawn), -np.inf)
        for at, eta in enumerate(nodes):
            gains = eta * drawn - np.logaddexp(log_own + eta * own, log_other + eta * other)
            path = total[at] + np.cumsum(gains)
            total[at] = path[-1]
            np.logaddexp(mixed, path, out=mixed)
        result[part] = mixed
    return result


@dataclasses.dataclass(frozen=True)
class Split:
    """Whether users are split as configured.

    Attributes:
        p_value: valid at any time: the smallest until now.
        chi_square: p-value of the chi-square test, valid if it is read once.
        expected: [K] users that the configured shares would give.
    """

    p_value: float
    chi_square: float
    expected: Floats

    @property
    def is_as_configured(self) -> bool:
        """False where the comparison is not to be trusted."""
        return self.p_value > SPLIT_ALPHA


def check_split(arm: NDArray[np.int64], shares: Floats) -> Split:
    """Hold the users' arms against the configured shares.

    The evidence is the likelihood ratio of a forecast of each user's arm, made from the users
    before, to the configured share; with fixed shares it is the Dirichlet mixture of Lindon and
    Malek, arXiv 2011.03567. It reaches 1 / alpha with chance alpha at most, over all n. Shares may
    change: the forecast then tilts those of the moment.

    Args:
        arm: [n] number of each user's arm, in order of first impressions.
        shares: [n, K] configured shares for that user, rows sum to 1.
    """
    n_arms = shares.shape[1]
    drawn = np.eye(n_arms)[arm]
    prior = _PRIOR * shares.mean(axis=0)
    seen, due = prior + _before(drawn), prior + _before(shares)
    forecast = shares * seen / np.maximum(due, _TINY)
    forecast /= np.maximum(forecast.sum(axis=1, keepdims=True), _TINY)
    rows = np.arange(len(arm))
    gains = np.log(np.maximum(forecast[rows, arm], _TINY) / np.maximum(shares[rows, arm], _TINY))
    evidence = float(np.cumsum(gains).max(initial=0.0))
    expected = shares.sum(axis=0)
    statistic = float(((drawn.sum(axis=0) - expected) ** 2 / np.maximum(expected, _TINY)).sum())
    chance = float(chi2.sf(statistic, n_arms - 1)) if n_arms > 1 else 1.0
    return Split(math.exp(-evidence), chance, expected)


def _before(values: Floats) -> Floats:
    """Return the sums of all rows before each."""
    sums: Floats = np.cumsum(values, axis=0) - values
    return sums
