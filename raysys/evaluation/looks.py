"""Intervals of an experiment that is read once, at a time that was set before. Users are the unit.

A user's impressions are correlated, so nothing here counts impressions as if they were independent.
A share of users has Wilson's interval. A ratio of sums over users has the variance of the jackknife
over users (Efron, Stein, Annals of Statistics 9, 1981), which is that of the delta method (Deng,
Knoblich, Lu, KDD 2018, arXiv 1803.06336, section 3) where there are many alike. Where a few users
carry the variance, Student's t has as many degrees of freedom as the variance has users:

    df = (n - 1) / n (sum e^2)^2 / sum e^4   (Satterthwaite, Biometrics 2, 1946)

with e the residuals of n users.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

Span = tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A share or ratio of n users; None where there is nothing to divide by.

    Attributes:
        value: the estimate.
        low, high: its interval.
        error: standard error; 0 where no user differs from another.
        freedom: degrees of freedom of the error; None: so many that they do not matter.
    """

    value: float | None
    low: float | None
    high: float | None
    error: float = 0.0
    freedom: float | None = None


@dataclasses.dataclass(frozen=True)
class Gap:
    """An arm minus the control.

    Attributes:
        difference, low, high: in units of the outcome.
        lift, lift_low, lift_high: relative to the control; None where that is 0.
    """

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    lift: float | None = None
    lift_low: float | None = None
    lift_high: float | None = None


def share_of(converted: NDArray[np.bool_], *, alpha: float) -> Mean:
    """Return the share of users that converted, with Wilson's interval (JASA 22, 1927)."""
    n = len(converted)
    if not n:
        return Mean(None, None, None)
    share, z = float(converted.mean()), float(norm.ppf(1 - alpha / 2))
    centre, room = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, (centre - half) / room), min(1.0, (centre + half) / room)
    return Mean(share, low, high, math.sqrt(share * (1 - share) / n))


def ratio_of(amounts: NDArray[np.float64], sizes: NDArray[np.float64], *, alpha: float) -> Mean:
    """Return sum(amounts) / sum(sizes) over users.

    Args:
        amounts: [n] of each user, 0 or more, e.g. conversions.
        sizes: [n] of each user, e.g. impressions; ones make it a mean.
        alpha: the interval covers with 1 - alpha.
    """
    n, total = len(amounts), float(sizes.sum())
    if total <= 0:
        return Mean(None, None, None)
    ratio = float(amounts.sum()) / total
    if n < 2:
        return Mean(ratio, None, None)
    residuals = amounts - ratio * sizes
    without = residuals / (total - sizes)  # the ratio's change when a user is left out
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    if error == 0:
        return Mean(ratio, None, None)
    squares = residuals**2
    freedom = (n - 1) / n * float(squares.sum() ** 2 / (squares**2).sum())
    half = float(student.ppf(1 - alpha / 2, freedom)) * error
    return Mean(ratio, max(0.0, ratio - half), ratio + half, error, freedom)


def gap(arm: Mean, control: Mean, *, alpha: float, hybrid: bool = False) -> Gap:
    """Return an arm minus the control, and the lift.

    Args:
        arm: of some users.
        control: of others.
        alpha: the intervals cover with 1 - alpha.
        hybrid: square and add the arms' own intervals (Newcombe, Statistics in Medicine 17, 1998,
            method 10), which have to be made with the same alpha; otherwise standard errors.
    """
    if arm.value is None or control.value is None:
        return Gap()
    difference = arm.value - control.value
    low, high = _span(arm, control, alpha=alpha, hybrid=hybrid)
    if control.value <= 0:
        return Gap(difference, low, high)
    lift = difference / control.value
    if arm.value <= 0 or not (arm.error and control.error):
        return Gap(difference, low, high, lift)
    # The logarithm of a ratio of positive means is closer to normal than the ratio.
    half = _half([(arm.error / arm.value, arm), (control.error / control.value, control)], alpha)
    ends = ((1 + lift) * math.exp(-half) - 1, (1 + lift) * math.exp(half) - 1)
    return Gap(difference, low, high, lift, *ends)


def _span(arm: Mean, control: Mean, *, alpha: float, hybrid: bool) -> Span:
    assert arm.value is not None
    assert control.value is not None
    difference = arm.value - control.value
    if not hybrid:
        half = _half([(arm.error, arm), (control.error, control)], alpha)
        return (difference - half, difference + half) if half else (None, None)
    assert None not in (arm.low, arm.high, control.low, control.high)
    down = math.hypot(arm.value - (arm.low or 0), (control.high or 0) - control.value)
    up = math.hypot((arm.high or 0) - arm.value, control.value - (control.low or 0))
    return difference - down, difference + up


def _half(parts: Sequence[tuple[float, Mean]], alpha: float) -> float:
    """Return half an interval of a difference (Welch, Biometrika 34, 1947); 0 without errors."""
    variance = sum(error**2 for error, _ in parts)
    if variance == 0:
        return 0.0
    share = sum(error**4 / mean.freedom for error, mean in parts if mean.freedom is not None)
    freedom = variance**2 / share if share else math.inf
    return float(student.ppf(1 - alpha / 2, freedom)) * math.sqrt(variance)
