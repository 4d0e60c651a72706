"""How loops are compiled: numba, without the GIL, cached on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile without the GIL, cached on disk where numba finds a place to write to."""
    return _jit(function, fastmath=False)


def compiled_fast(function: F) -> F:
    """Like `compiled`, and free to reorder the sum of a dot product."""
    return _jit(function, fastmath=True)


def _jit(function: F, *, fastmath: bool) -> F:
    try:
        return cast(F, numba.njit(nogil=True, cache=True, fastmath=fastmath)(function))
    except RuntimeError:  # numba: "no locator available", an install without any writable folder
        return cast(F, numba.njit(nogil=True, fastmath=fastmath)(function))


@compiled
def half(bits: int) -> Any:
    """Return the float32 value of float16 bits (finite numbers only)."""
    h = np.uint32(bits)
    sign = (h & np.uint32(0x8000)) << np.uint32(16)
    rest = (h & np.uint32(0x7FFF)) << np.uint32(13)
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)
