"""Entries of a graph index: items that its routing space cannot tell apart are one entry.

hnswlib cannot hold copies: more of them than a row has links are linked to one another alone, and
then neither they nor what lies behind them is found. So the graph holds every row once, and what it
returns stands for all items that have this row.

For `cosine` a row is the direction of the code, so the same entries and values at any positive
scale are one entry; for `inner_product` scale and biases count too. The items of an entry keep
their own codes and are scored by them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.codes import Codes
from raysys.data.arrays import Floats


def number_entries(codes: Codes, bias: Floats, similarity: str) -> NDArray[np.int32]:
    """Return the entry [N] of each item; entries are numbered by their first items.

    Args:
        codes: of N items, one or more.
        bias: [N, n_bias].
        similarity: `cosine` or `inner_product`.
    """
    if similarity == "cosine":
        parts: list[NDArray[Any]] = [np.sign(codes.scale).astype(np.int8)]
    else:
        parts = [codes.scale, np.asarray(bias, dtype=np.float32) + np.float32(0)]  # -0 becomes 0
    parts = [codes.entries, codes.values, *parts]
    key = np.concatenate([_bytes(part) for part in parts], axis=1)
    key = key.view(f"V{key.shape[1]}")[:, 0]
    _, first, entry = np.unique(key, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int32)
    place[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return place[entry.reshape(-1)]


def _bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes [N, *] of rows."""
    return np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
