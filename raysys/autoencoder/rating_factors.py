"""Bayesian factors of ratings, solved in turns: what item vectors a level block starts from.

    M ratings of U users and N items, F factors

    rating = b_i + f_u0 + sum_p v_ip f_up + noise,    every unknown normal around zero

Variational Bayes with a diagonal posterior for either side (Lim and Teh, "Variational Bayesian
Approach to Movie Rating Prediction", KDD Cup 2007, there with full covariances): in turns, users
given items and items given users are ridge regressions in which an uncertain value also counts by
its variance. The variances of priors and noise are those that the posterior implies, so nothing is
tuned; factors that the ratings do not support fade by themselves. Noise has a floor: ratings that
are explained exactly would leave nothing to weigh one against another.

How many factors there are, held-out ratings say: variances of both sides at once (mean field)
take weak factors for none where there are too many. For the same reason the first rounds know no
variances.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.autoencoder.factor_kernels import expected_errors, solve
from raysys.data.arrays import Floats
from raysys.training.threads import blas_on_one_thread, follow_torch

log = logging.getLogger(__name__)

_NUMBERS = (16, 32, 64, 128)  # of factors; what is too many for a log fades, up to a point
_HELD_OUT = 20  # one rating of so many decides
_LEAST_HELD = 30  # of them; fewer decide by luck
_CLEARLY = 2.0  # standard errors that a larger number has to gain by
_CHOICE_ROUNDS = 10
_ROUNDS = 20
_SURE_ROUNDS = 3  # at first variances and priors stay as they are
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


def no_factors(n_items: int, n_factors: int = 0) -> RatingFactors:
    """Return the factors without any ratings."""
    loadings = np.zeros((n_items, 1 + n_factors), dtype=np.float32)
    loadings[:, 0] = 1
    penalties = np.full(1 + n_factors, 1.0, dtype=np.float32)
    return RatingFactors(np.zeros(n_items, np.float32), loadings, 0 * loadings, penalties)


def rating_factors(
    rows: NDArray[np.integer[Any]],
    items: NDArray[np.integer[Any]],
    values: NDArray[np.floating[Any]],
    *,
    n_items: int,
    n_factors: int | None = None,
) -> RatingFactors:
    """Fit factors to ratings.

    Args:
        rows: [M] user of each, 0 or more; users without ratings may lie between.
        items: [M] its item.
        values: [M] ratings of mean 0 and variance 1 or so.
        n_items: N.
        n_factors: F; None lets `n_factors_of` choose.
    """
    values = values.astype(np.float32)
    if n_factors is None:
        n_factors = n_factors_of(rows, items, values, n_items=n_items)
    if not len(values):
        return no_factors(n_items, n_factors)
    fit = _Fit.of(rows, items, values, n_items, n_factors)
    for number in range(_ROUNDS):
        fit.round(sure=number < _SURE_ROUNDS)
    return fit.factors()


def n_factors_of(
    rows: NDArray[np.integer[Any]],
    items: NDArray[np.integer[Any]],
    values: NDArray[np.floating[Any]],
    *,
    n_items: int,
) -> int:
    """Return the number of factors that predicts held-out ratings best.

    From 16 on the number doubles as long as the squared errors fall by two standard errors of
    their difference. The work is in proportion to the ratings, at no more than twice as many
    factors as pay.

    Args:
        rows: [M] user of each rating, as in `rating_factors`.
        items: [M] its item.
        values: [M] ratings of mean 0 and variance 1 or so.
        n_items: N.
    """
    held = np.random.default_rng([0, 0x5F]).random(len(values)) * _HELD_OUT < 1
    if held.sum() < _LEAST_HELD or held.all():
        return _NUMBERS[0]

    def errors(n_factors: int) -> NDArray[np.float64]:
        fit = _Fit.of(rows[~held], items[~held], values[~held], n_items, n_factors)
        for number in range(_CHOICE_ROUNDS):
            fit.round(sure=number < _SURE_ROUNDS)
        found = np.square(values[held] - fit.predict(rows[held], items[held]))
        log.info("factors=%d held_out_mse=%.5g", n_factors, found.mean())
        return found

    best = errors(_NUMBERS[0])
    for narrow, wide in itertools.pairwise(_NUMBERS):
        wider = errors(wide)
        if not _clearly(best - wider):
            return narrow
        best = wider
    return _NUMBERS[-1]


def _clearly(gains: NDArray[np.float64]) -> bool:
    """Tell whether gains are above zero by more than luck."""
    return bool(gains.mean() * np.sqrt(len(gains)) > _CLEARLY * gains.std())


class _Fit:
    """Both sides of a fit, improved in rounds."""

    def __init__(self, by_user: _Side, by_item: _Side, values: Floats, n_factors: int) -> None:
        follow_torch()
        self._by_user, self._by_item, self._values = by_user, by_item, values
        n_items, size = by_item.size, 1 + n_factors
        none = no_factors(n_items, n_factors)
        self._loadings, self._variance = none.loadings, none.variance
        self._item_bias = none.item_bias
        draw = np.random.default_rng(0)  # tells factors apart; any seed does
        start = draw.standard_normal((n_items, n_factors), dtype=np.float32)
        self._loadings[:, 1:] = start * _START_STD
        self._user, self._item = (_Posterior.zeros(s.size, size) for s in (by_user, by_item))
        self._user_precision, self._item_precision = np.ones(size), np.full(size, _START_PRECISION)
        self._noise = _START_NOISE

    @classmethod
    def of(
        cls,
        rows: NDArray[np.integer[Any]],
        items: NDArray[np.integer[Any]],
        values: Floats,
        n_items: int,
        n_factors: int,
    ) -> _Fit:
        return cls(_Side.of(rows, items), _Side.of(items, rows, n_items), values, n_factors)

    @blas_on_one_thread()
    def round(self, *, sure: bool) -> None:
        """Solve either side given the other; `sure`: as if all were known without a doubt."""
        user, item, noise = self._user, self._item, self._noise
        users, given = self._by_user.arrays, (self._loadings, self._variance, self._values)
        solve(*users, *given, self._item_bias, noise, self._user_precision, *user)
        mean, spread = user.mean.copy(), user.variance.copy()
        bias = mean[:, 0].copy()
        mean[:, 0], spread[:, 0] = 1, 0
        if sure:
            spread[:] = 0
        arrays = self._by_item.arrays
        solve(*arrays, mean, spread, self._values, bias, noise, self._item_precision, *item)
        self._item_bias = item.mean[:, 0].copy()
        self._loadings[:, 1:] = item.mean[:, 1:]
        if sure:
            return
        self._variance[:, 1:] = item.variance[:, 1:]
        self._user_precision = user.precision(self._by_user.rated)
        self._item_precision = item.precision(self._by_item.rated)
        errors = np.empty(self._by_user.size)
        sides = (user.mean, user.variance, self._loadings, self._variance)
        bias_variance = item.variance[:, 0].copy()
        expected_errors(*users, self._values, self._item_bias, bias_variance, *sides, errors)
        self._noise = max(float(errors.sum() / len(self._values)), _LEAST_NOISE)

    def predict(
        self, rows: NDArray[np.integer[Any]], items: NDArray[np.integer[Any]]
    ) -> NDArray[np.float64]:
        """Return the ratings of users and items, [M]."""
        known = rows < self._by_user.size
        found: NDArray[np.float64] = self._item_bias[items].astype(np.float64)
        users = self._user.mean[rows[known]]
        found[known] += np.einsum("mf,mf->m", users, self._loadings[items[known]])
        return found

    def factors(self) -> RatingFactors:
        penalties = np.maximum(self._noise * self._user_precision, _LEAST_PENALTY)
        return RatingFactors(
            self._item_bias, self._loadings, self._variance, penalties.astype(np.float32)
        )


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
