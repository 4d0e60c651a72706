"""Compiled scores of stored rows.

    N items, S atoms, n = n_active

Sums run over a row's entries in a fixed order, so an item has the same score in every kind of
index, on every processor, and ties are real.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import FLOAT16, INT8, PACKED4, Stored
from raysys.data.compiled import (
    SIXTEEN,
    compiled,
    half,
    prefetch,
    scores_sixteen,
    sixteen_sums,
)

BLOCK_ROWS = 1024
_FOUR = np.uintp(4)
_STEP_MASK = np.uintp(15)
_AHEAD = 32  # rows between asking for one and reading it


@compiled
def packed_by_four(
    entries: NDArray[Any],
    codebook: NDArray[Any],
    table: NDArray[Any],
    rows: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write sum_j codebook[j, step_j] * table[atom_j] of `rows` [M] to `out`: on any processor.

    Four rows at a time do not wait for each other.
    """
    n_active, n_rows = entries.shape[1], rows.shape[0]
    for m in range(min(_AHEAD, n_rows)):
        prefetch(entries, rows[m])
    fours = n_rows - n_rows % 4
    for m in range(0, fours, 4):
        for ahead in range(m + _AHEAD, min(m + _AHEAD + 4, n_rows)):
            prefetch(entries, rows[ahead])
        row_0, row_1, row_2, row_3 = rows[m], rows[m + 1], rows[m + 2], rows[m + 3]
        sum_0 = sum_1 = sum_2 = sum_3 = np.float32(0)
        for j in range(n_active):
            entry = np.uintp(entries[row_0, j])
            sum_0 += codebook[j, entry & _STEP_MASK] * table[entry >> _FOUR]
            entry = np.uintp(entries[row_1, j])
            sum_1 += codebook[j, entry & _STEP_MASK] * table[entry >> _FOUR]
            entry = np.uintp(entries[row_2, j])
            sum_2 += codebook[j, entry & _STEP_MASK] * table[entry >> _FOUR]
            entry = np.uintp(entries[row_3, j])
            sum_3 += codebook[j, entry & _STEP_MASK] * table[entry >> _FOUR]
        out[m], out[m + 1], out[m + 2], out[m + 3] = sum_0, sum_1, sum_2, sum_3
    for m in range(fours, n_rows):
        total = np.float32(0)
        for j in range(n_active):
            entry = np.uintp(entries[rows[m], j])
            total += codebook[j, entry & _STEP_MASK] * table[entry >> _FOUR]
        out[m] = total


@compiled
def packed_by_sixteen(
    entries: NDArray[Any],
    codebook: NDArray[Any],
    table: NDArray[Any],
    rows: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write what `packed_by_four` does, the same bits, sixteen rows at a time."""
    n_rows = rows.shape[0]
    whole = n_rows - n_rows % SIXTEEN
    for m in range(min(_AHEAD, whole)):
        prefetch(entries, rows[m])
    for m in range(0, whole, SIXTEEN):
        for ahead in range(m + _AHEAD, min(m + _AHEAD + SIXTEEN, n_rows)):
            prefetch(entries, rows[ahead])
        sixteen_sums(entries, rows, m, codebook, table, out)
    packed_by_four(entries, codebook, table, rows[whole:], out[whole:])


_packed = packed_by_sixteen if scores_sixteen() else packed_by_four


@compiled
def score_rows(
    stored: Stored,
    table: NDArray[Any],
    weights: NDArray[Any],
    rows: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write scale * sum_j value_j * table[atom_j] + bias . weights of `rows` [M] to `out` [M].

    One call for many rows, arrays taken out of the tuple once: a call per row costs four times as
    much as the scoring itself. Rows may lie anywhere: they are asked for ahead of their turn.
    """
    entries, values, codebook = stored.entries, stored.values, stored.codebook
    n_active, dim = entries.shape[1], values.shape[1]
    n_rows = rows.shape[0]
    if stored.kind == PACKED4:
        _packed(entries, codebook, table, rows, out)
    elif stored.kind == INT8:
        for m in range(n_rows):
            total = np.float32(0)
            for j in range(n_active):
                total += np.float32(values[rows[m], j]) * table[np.uintp(entries[rows[m], j])]
            out[m] = total
    elif stored.kind == FLOAT16:
        for m in range(n_rows):
            total = np.float32(0)
            for j in range(n_active):
                total += half(values[rows[m], j]) * table[np.uintp(entries[rows[m], j])]
            out[m] = total
    else:
        for m in range(n_rows):
            total = np.float32(0)
            for d in range(dim):
                total += np.float32(values[rows[m], d]) * table[d]
            out[m] = total
    scale, bits = stored.scale, np.empty(n_rows, np.uint16)
    for m in range(n_rows):  # first looked up, then converted by the register
        bits[m] = scale[rows[m]]
    for m in range(n_rows):
        out[m] *= half(bits[m])
    for b in range(weights.shape[0]):
        if weights[b] == 0:
            continue
        for m in range(n_rows):
            out[m] += stored.bias[rows[m], b] * weights[b]


@compiled
def score_all(
    stored: Stored, table: NDArray[Any], weights: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write the score of every row to its item_num's place in `out` [N]."""
    items = stored.items
    scores = np.empty(BLOCK_ROWS, np.float32)
    for start in range(0, items.shape[0], BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, items.shape[0]))
        score_rows(stored, table, weights, rows, scores)
        out[items[rows]] = scores[: rows.shape[0]]
