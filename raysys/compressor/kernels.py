"""What compiled kernels read of stored codes: numba, without the GIL, float32.

    N items, Q queries, S atoms, n = n_active

`kind` says how a row is stored: PACKED4 atom << 4 | step of a codebook in one uint16, INT8 and
FLOAT16 atoms beside values, DENSE8 one int8 per dimension. float16 arrays are passed as their
bits (uint16), which numba can load.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.data.compiled import compiled, compiled_fast, four_products

PACKED4, INT8, FLOAT16, DENSE8 = 0, 1, 2, 3

_BLOCK_ATOMS = 32  # of a dictionary, that all queries of a batch meet at once
_LARGEST_SUM = np.float32(2**31 // 127 - 2**16)  # of |rounded query|, for sums in 32 bits


class Stored(NamedTuple):
    """What a kernel reads of the stored rows, in row order (list order in an ivf index)."""

    kind: int
    entries: NDArray[Any]  # [N, n] uint16
    values: NDArray[Any]  # [N, n], [N, D] or [N, 0]
    codebook: NDArray[Any]  # [n, 16] or [0, 16] float32
    scale: NDArray[Any]  # [N] uint16, bits of float16
    bias: NDArray[Any]  # [N, n_bias] float32
    items: NDArray[Any]  # [N] int32, item_num of each row


@compiled_fast
def nearest_step(steps: Any, value: Any) -> int:
    """Return the position of the step [16] that is nearest to a value."""
    best, error = 0, abs(steps[0] - value)
    for v in range(1, steps.shape[0]):
        if abs(steps[v] - value) < error:
            best, error = v, abs(steps[v] - value)
    return best


class Rounded(NamedTuple):
    """A rounded dictionary of S atoms and D dims; rows and columns of zeros fill it up.

    Attributes:
        whole: int8 [S', W], S' a multiple of 4 and W of `LANES`.
        steps: float32 [S'], what a whole number of each atom stands for.
    """

    whole: NDArray[Any]
    steps: NDArray[Any]


@compiled
def integer_products(
    atoms: Rounded, queries: NDArray[Any], factor: float, out: NDArray[Any]
) -> None:
    """Write factor * steps * (whole times queries [Q, D] rounded to 16 bits) to `out` [Q, S'].

    A query's largest value becomes 32767, or less where sums of many dims would overflow 32 bits.
    A block of atoms meets all queries while it lies in the nearest cache.
    """
    whole, steps = atoms.whole, atoms.steps
    rounded = np.zeros((queries.shape[0], whole.shape[1]), np.int16)
    scale = np.empty(queries.shape[0], np.float32)
    for q in range(queries.shape[0]):
        largest, total = np.float32(1e-30), np.float32(0)
        for d in range(queries.shape[1]):
            value = abs(queries[q, d])
            largest = max(largest, value)
            total += value
        step = max(largest / np.float32(32767), total / _LARGEST_SUM)
        for d in range(queries.shape[1]):
            rounded[q, d] = np.int16(np.rint(queries[q, d] / step))
        scale[q] = np.float32(step * factor)
    sums = np.empty(4, np.int32)
    for start in range(0, steps.shape[0], _BLOCK_ATOMS):
        stop = min(start + _BLOCK_ATOMS, steps.shape[0])
        for q in range(queries.shape[0]):
            query, unit, found = rounded[q], scale[q], out[q]
            for s in range(start, stop, 4):
                four_products(whole, s, query, sums)
                for r in range(4):
                    found[s + r] = np.float32(sums[r]) * (steps[s + r] * unit)
