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

from raysys.data.compiled import compiled, compiled_fast, half

PACKED4, INT8, FLOAT16, DENSE8 = 0, 1, 2, 3


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


@compiled
def value_of(stored: Stored, row: int, place: int) -> Any:
    """Return the value of one entry of a row of sparse codes, in units of its scale."""
    if stored.kind == PACKED4:
        return stored.codebook[place, stored.entries[row, place] & 15]
    if stored.kind == FLOAT16:
        return half(stored.values[row, place])
    return np.float32(stored.values[row, place])
