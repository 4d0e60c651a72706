"""Compiled steps of the rating factors: one side's posterior given the other's.

A rows of a side, B of the other, M ratings, F factors
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from raysys.data.compiled import compiled_with


@compiled_with()
def solve_one(
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
    """Write one row of `solve` from one rating: what `solve_few` would, but for its last bits.

    Those differed from run to run where a matrix has one row.
    """
    b, size = other[order[0]], given.shape[1]
    gram = np.float32(1)
    for p in range(size):
        diagonal = np.float32(noise * precision[p]) + spread[b, p]
        variance[p] = diagonal
        mean[p] = given[b, p] / diagonal
        gram += mean[p] * given[b, p]
    weight = (values[order[0]] - offset[b]) / gram
    for p in range(size):
        known = mean[p] * mean[p] / gram
        variance[p] = noise * max(np.float32(1) / variance[p] - known, np.float32(0))
        mean[p] *= weight


@compiled_with(fastmath=True)
def solve_few(
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
    """Write one row of `solve` from fewer ratings than unknowns, by the matrix of the ratings."""
    count, size = len(order), given.shape[1]
    diagonal = (noise * precision).astype(np.float32)
    left = np.empty(count, dtype=np.float32)
    rows = np.empty((count, size), dtype=np.float32)
    for at in range(count):
        b = other[order[at]]
        left[at] = values[order[at]] - offset[b]
        rows[at] = given[b]
        diagonal += spread[b]
    scaled = rows / diagonal
    inverse = np.linalg.inv(scaled @ rows.T + np.eye(count, dtype=np.float32))
    mean[:] = (inverse @ left) @ scaled
    known = (inverse @ scaled) * scaled
    for p in range(size):
        variance[p] = noise * max(1 / diagonal[p] - known[:, p].sum(), np.float32(0))


@compiled_with(parallel=True, fastmath=True)
def solve(
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
        if starts[a + 1] - starts[a] < size:
            here = order[starts[a] : starts[a + 1]]
            known = (other, given, spread, values, offset, noise, precision)
            if len(here) == 1:
                solve_one(here, *known, mean[a], variance[a])
            else:
                solve_few(here, *known, mean[a], variance[a])
            continue
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


@compiled_with(parallel=True, fastmath=True)
def expected_errors(
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
