"""exp and log of float32 for compiled loops, in steps that a register takes sixteen at a time.

numba calls the C library for each number. Errors here are at most three units in the last place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raysys.data.compiled import compiled_with

_compiled = compiled_with(nogil=True, error_model="numpy")  # a check of divisions ends a loop

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2
_LOWEST = np.float32(-87.0)  # exp of less would not be a normal number
_ONE = np.float32(1)
_SQRT2_BITS = np.uint32(0x3FB504F3)
_EXPONENT, _MANTISSA = np.uint32(23), np.uint32(0x007FFFFF)


@_compiled
def exp_of(x: Any) -> Any:
    """Return exp(x) of a float32 number of at most 0; of less than -87 what it is there."""
    x = max(x, _LOWEST)
    whole = np.floor(x * _LOG2_E + np.float32(0.5))
    rest = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    power = np.uint32(np.int32(whole) + np.int32(127)) << _EXPONENT
    series = np.float32(1 / 720)  # Taylor's, |rest| <= ln(2) / 2
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(0.5)
    return (series * rest * rest + rest + _ONE) * np.uint32(power).view(np.float32)


@_compiled
def log1p_of(u: Any) -> Any:
    """Return log(1 + u) of a float32 number from -0.3 to 1: 2 artanh(u / (2 + u))."""
    s = u / (np.float32(2) + u)
    square = s * s
    series = np.float32(1 / 13)
    series = series * square + np.float32(1 / 11)
    series = series * square + np.float32(1 / 9)
    series = series * square + np.float32(1 / 7)
    series = series * square + np.float32(1 / 5)
    series = series * square + np.float32(1 / 3)
    return np.float32(2) * (s + s * square * series)


@_compiled
def log_of(x: Any) -> Any:
    """Return log(x) of a positive normal float32 number."""
    bits = np.float32(x).view(np.uint32)
    shifted = np.uint32(bits - _SQRT2_BITS)  # carries into the exponent from sqrt(2) on
    exponent = np.int32(shifted) >> np.int32(23)
    mantissa = np.uint32(np.uint32(bits) - (np.uint32(exponent + np.int32(1)) << _EXPONENT))
    part = log1p_of(np.uint32(mantissa).view(np.float32) - _ONE)
    whole = np.float32(exponent + np.int32(1))
    return whole * _LN2_HIGH + (whole * _LN2_LOW + part)
