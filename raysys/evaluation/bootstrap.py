"""Poisson bootstrap over users that any partition of the users reproduces bit for bit.

Letters: U users, B bootstrap replicates, C columns of sums.

A user's weight in a replicate is a function of (seed, user_id, replicate) alone. Values are int64
fixed point, so that sums do not depend on their order; the weighted sums run on float64 matrix
products of parts so small that every product and partial sum is an exact integer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 32
ONE = 1 << FRACTION_BITS

_LIMB_BITS = 30
_SMALL_BITS = 37
_MAX_USERS = 4096  # 2^37 (value) * 2^4 (weight) * 2^12 (users) = 2^53, exact in float64
_LANES = 4  # 16-bit lanes of one 64-bit hash


def user_keys(user_ids: Iterable[Any]) -> NDArray[np.uint64]:
    """Hash external user ids; the same id has the same key in every run and numbering."""
    digests = [hashlib.blake2b(str(u).encode(), digest_size=8).digest() for u in user_ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def fixed_point(values: Any) -> NDArray[np.int64]:
    """Round real values to multiples of 2^-32."""
    return np.rint(np.asarray(values, dtype=np.float64) * ONE).astype(np.int64)


def poisson_weights(keys: NDArray[np.uint64], *, seed: int, replicates: int) -> NDArray[np.uint8]:
    """Return Poisson(1) weights, [U, B].

    Each weight reads 16 bits of a splitmix64 hash; rounding the distribution to multiples of
    2^-16 moves its mean by less than 1e-5.
    """
    lanes = np.arange(-(-replicates // _LANES), dtype=np.uint64)
    start = _mix(np.array([seed], dtype=np.int64).view(np.uint64))
    state = _mix(keys ^ start)[:, None] + lanes * np.uint64(0x9E3779B97F4A7C15)
    draws = np.ascontiguousarray(_mix(state)).astype("<u8", copy=False).view("<u2")
    weights: NDArray[np.uint8] = _POISSON[draws[:, :replicates]]
    return weights


def weighted_sums(weights: NDArray[np.uint8], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return weights.T @ values exactly, int64 [B, C].

    Args:
        weights: [U, B] below 16.
        values: [U, C] with absolute values below 2^60.
    """
    total = np.zeros((weights.shape[1], values.shape[1]), dtype=np.int64)
    for start in range(0, len(values), _MAX_USERS):
        part = values[start : start + _MAX_USERS]
        w = weights[start : start + _MAX_USERS].T.astype(np.float64)
        if np.abs(part).max(initial=0) < 1 << _SMALL_BITS:
            total += (w @ part.astype(np.float64)).astype(np.int64)
            continue
        high = part >> _LIMB_BITS
        low = part - (high << _LIMB_BITS)
        total += (w @ low.astype(np.float64)).astype(np.int64)
        total += (w @ high.astype(np.float64)).astype(np.int64) << _LIMB_BITS
    return total


def interval(replicates: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the 2.5 and 97.5 percentiles, or (None, None) without replicates."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return None, None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finish splitmix64 (Steele, Lea, Flood, OOPSLA 2014); wraps around on purpose."""
    with np.errstate(over="ignore"):
        z = state + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _poisson_table() -> NDArray[np.uint8]:
    """Return the Poisson(1) quantile of each 16-bit number."""
    masses = np.array([math.exp(-1) / math.factorial(k) for k in range(12)])
    edges = np.rint(np.cumsum(masses) * 65536)
    return np.searchsorted(edges, np.arange(65536), side="right").astype(np.uint8)


_POISSON = _poisson_table()
