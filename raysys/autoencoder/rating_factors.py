"""Bayesian factors of ratings, solved in turns: what item vectors a level block starts from.

    M ratings of U users and N items, F factors

    rating = b_i + f_u0 + sum_p v_ip f_up + noise,    every unknown normal around zero

Variational Bayes with a diagonal posterior for either side (Lim and Teh, "Variational Bayesian
Approach to Movie Rating Prediction", KDD Cup 2007, there with full covariances): in turns, users
given items and items given users are ridge regressions in which an uncertain value also counts by
its variance. The variances of priors and noise are those that the posterior implies, so nothing is
tuned; factors that the ratings do not support fade by themselves. Noise has a floor: ratings that
are explained exactly would leave nothing to weigh one against another.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.training.threads import follow_torch

N_FACTORS = 16
_ROUNDS = 20
_START_STD = 0.1
_START_PRECISION = 5.0
_START_NOISE = 0.6
_LEAST_NOISE = 1e-3
_LEAST_VARIANCE = 1e-6  # of a prior
_LEAST_PENALTY = 1e-4


@dataclasses.dataclass(frozen=True)
class RatingFactors:
    """The items' side; a user's follows from it by a ridge regression (`ragged_ops.user_levels`).

    Attributes:
        item_bias: [N] b.
        loadings: [N, 1 + F] what a user's factors are multiplied by: 1, then v_i.
        variance: [N, 1 + F] of these: 0, then the posterior's.
        penalties: [1 + F] precision of a user's factors times the variance of the noise.
    """

    item_bias: Floats
    loadings: Floats
    variance: Floats
    penalties: Floats


def no_factors(n_items: int) -> RatingFactors:
    """Return the factors without any ratings."""
    loadings = np.zeros((n_items, 1 + N_FACTORS), dtype=np.float32)
    loadings[:, 0] = 1
    penalties = np.full(1 + N_FACTORS, 1.0, dtype=np.float32)
    return RatingFactors(np.zeros(n_items, np.float32), loadings, 0 * loadings, penalties)


def rating_factors(
    rows: NDArray[np.integer[Any]],
    items: NDArray[np.integer[Any]],
    values: NDArray[np.floating[Any]],
    *,
    n_items: int,
) -> RatingFactors:
    """Fit factors to ratings.

    Args:
        rows: [M] user of each, 0 or more; users without ratings may lie between.
        items: [M] its item.
        values: [M] ratings of mean 0 and variance 1 or so.
        n_items: N.
    """
    none = no_factors(n_items)
    if not len(values):
        return none
    by_user, by_item = _Side.of(rows, items), _Side.of(items, rows, n_items)
    follow_torch()
    values = values.astype(np.float32)
    size = 1 + N_FACTORS
    loadings, variance = none.loadings, none.variance
    draw = np.random.default_rng(0)  # tells factors apart; any seed does
    loadings[:, 1:] = draw.standard_normal((n_items, N_FACTORS), dtype=np.float32) * _START_STD
    variance[:, 1:] = _START_STD**2
    user, item = _Posterior.zeros(by_user.size, size), _Posterior.zeros(n_items, size)
    user_precision, item_precision = np.ones(size), np.full(size, _START_PRECISION)
    noise, item_bias = _START_NOISE, none.item_bias
    for _ in range(_ROUNDS):
        _solve(*by_user.arrays, loadings, variance, values, item_bias, noise, user_precision, *user)
        given, spread = user.mean.copy(), user.variance.copy()
        bias = given[:, 0].copy()
        given[:, 0], spread[:, 0] = 1, 0
        _solve(*by_item.arrays, given, spread, values, bias, noise, item_precision, *item)
        item_bias = item.mean[:, 0].copy()
        loadings[:, 1:], variance[:, 1:] = item.mean[:, 1:], item.variance[:, 1:]
        user_precision = user.precision(by_user.rated)
        item_precision = item.precision(by_item.rated)
        errors = np.empty(by_user.size)
        sides = (user.mean, user.variance, loadings, variance)
        _errors(*by_user.arrays, values, item_bias, item.variance[:, 0].copy(), *sides, errors)
        noise = max(float(errors.sum() / len(values)), _LEAST_NOISE)
    penalties = np.maximum(noise * user_precision, _LEAST_PENALTY).astype(np.float32)
    return RatingFactors(item_bias, loadings, variance, penalties)


@dataclasses.dataclass(frozen=True)
class _Side:
    """The ratings of each user (or item): those at order[starts[a] : starts[a + 1]].

    Attributes:
        starts: [A + 1].
        order: [M] numbers of ratings.
        other: [M] the item (or user) of each rating.
    """

    starts: NDArray[np.int64]
    order: NDArray[np.int64]
    other: NDArray[np.int64]

    @classmethod
    def of(cls, own: NDArray[Any], other: NDArray[Any], size: int | None = None) -> _Side:
        counts = np.bincount(own, minlength=size or 0)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(starts, np.argsort(own, kind="stable"), other.astype(np.int64))

    @property
    def size(self) -> int:
        return len(self.starts) - 1

    @property
    def rated(self) -> NDArray[np.bool_]:
        """Tell who has ratings, [A]."""
        return np.asarray(np.diff(self.starts) > 0)

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        return self.starts, self.order, self.other


@dataclasses.dataclass(frozen=True)
class _Posterior:
    """Mean and variance [A, 1 + F] of one side."""

    mean: Floats
    variance: Floats

    @classmethod
    def zeros(cls, rows: int, columns: int) -> _Posterior:
        shape = rows, columns
        return cls(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))

    def __iter__(self) -> Any:
        return iter((self.mean, self.variance))

    def precision(self, rated: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the precision [1 + F] of the prior that explains the posterior of `rated` best."""
        squares = np.square(self.mean[rated], dtype=np.float64) + self.variance[rated]
        return np.asarray(1 / np.maximum(squares.mean(axis=0), _LEAST_VARIANCE))


@numba.njit(parallel=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator]
def _solve(
    starts: Any,
    order: Any,
    other: Any,
    given: Any,
    spread: Any,
    values: Any,
    offset: Any,
    noise: float,
    precision: Any,
    mean: Any,
    variance: Any,
) -> None:
    """Write mean and variance [A, 1 + F] of one side given [B, 1 + F] those of the other.

    `offset` [B] is taken from the ratings of each of the other side.
    """
    size = given.shape[1]
    for a in numba.prange(len(starts) - 1):
        gram = np.zeros((size, size), dtype=np.float32)
        right = np.zeros(size, dtype=np.float32)
        widths = np.zeros(size, dtype=np.float32)
        for at in range(starts[a], starts[a + 1]):
            rating = order[at]
            row, wide = given[other[rating]], spread[other[rating]]
            value = values[rating] - offset[other[rating]]
            for p in range(size):
                right[p] += row[p] * value
                widths[p] += wide[p]
            for p in range(size):  # whole rows, not a triangle: these compile to vectors
                factor, line = row[p], gram[p]
                for q in range(size):
                    line[q] += factor * row[q]
        for p in range(size):
            gram[p, p] += widths[p] + np.float32(noise * precision[p])
        inverse = np.linalg.inv(gram)
        solved = inverse @ right
        for p in range(size):
            mean[a, p] = solved[p]
            variance[a, p] = noise * inverse[p, p]


@numba.njit(parallel=True, fastmath=True, cache=True)  # type: ignore[untyped-decorator]
def _errors(
    starts: Any,
    order: Any,
    other: Any,
    values: Any,
    item_bias: Any,
    bias_variance: Any,
    user: Any,
    user_variance: Any,
    loadings: Any,
    variance: Any,
    errors: Any,
) -> None:
    """Write every user's expected sum of squared errors [U] under the posterior."""
    size = user.shape[1]
    for a in numba.prange(len(starts) - 1):
        total = 0.0
        for at in range(starts[a], starts[a + 1]):
            rating = order[at]
            i = other[rating]
            left = values[rating] - item_bias[i]
            wide = bias_variance[i]
            for p in range(size):
                left -= user[a, p] * loadings[i, p]
                wide += user[a, p] ** 2 * variance[i, p]
                wide += user_variance[a, p] * (loadings[i, p] ** 2 + variance[i, p])
            total += left * left + wide
        errors[a] = total
