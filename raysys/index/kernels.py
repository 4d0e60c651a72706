"""Compiled search over stored codes: score rows, keep the best.

    N items, Q queries, S atoms, L lists, K = top_k, n = n_active

One entry point scores runs of consecutive rows, and rows that spilled from other lists, and keeps
the best K; a flat scan is one run. Sums run over a row's entries in a fixed order, so an item has
the same score in every kind of index and ties are real: the higher score comes first, then the
lower item_num.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import FLOAT16, INT8, PACKED4, Stored
from raysys.data.compiled import compiled, compiled_fast, half, prefetch

_FOUR = np.uintp(4)
_STEP_MASK = np.uintp(15)
_BLOCK_ROWS = 1024
_AHEAD = 16  # rows between asking for one and reading it


class Spills(NamedTuple):
    """Second lists of rows: a query that probes one finds the row without probing the first.

    Attributes:
        starts: [L + 1] int64, first entry of each list.
        rows: int32, the rows of each list's entries, ascending.
        homes: int32, the first list of each of these rows.
    """

    starts: NDArray[Any]
    rows: NDArray[Any]
    homes: NDArray[Any]


NO_SPILLS = Spills(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))


@compiled_fast
def products(matrix: NDArray[Any], vectors: NDArray[Any], out: NDArray[Any]) -> None:
    """Write vectors [Q, D] times matrix [S, D] transposed to `out` [Q, S].

    As fast as BLAS for one query (both wait for memory) and, unlike BLAS, with the same bits
    whatever the batch and the number of threads: results of shards and batches compare equal.
    """
    for q in range(vectors.shape[0]):
        for s in range(matrix.shape[0]):
            total = np.float32(0)
            for d in range(matrix.shape[1]):
                total += matrix[s, d] * vectors[q, d]
            out[q, s] = total


@compiled
def unit_queries(queries: NDArray[Any], cosine: bool, out: NDArray[Any]) -> bool:
    """Write queries [Q, D], for cosine divided by their lengths, to `out`.

    Returns False where a length is not finite or, for cosine, not positive in float32.
    """
    for q in range(queries.shape[0]):
        square = np.float32(0)
        for d in range(queries.shape[1]):
            square += queries[q, d] * queries[q, d]
        if not np.isfinite(square) or (cosine and square <= 0):
            return False
        length = np.sqrt(square) if cosine else np.float32(1)
        for d in range(queries.shape[1]):
            out[q, d] = queries[q, d] / length
    return True


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
        for m in range(min(_AHEAD, n_rows)):
            prefetch(entries, rows[m])
        fours = n_rows - n_rows % 4  # four rows at a time do not wait for each other
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
    scale, bias = stored.scale, stored.bias
    for m in range(n_rows):
        score = out[m] * half(scale[rows[m]])
        for b in range(weights.shape[0]):
            score += bias[rows[m], b] * weights[b]
        out[m] = score


@compiled
def score_all(
    stored: Stored, table: NDArray[Any], weights: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write the score of every row to its item_num's place in `out` [N]."""
    items = stored.items
    scores = np.empty(_BLOCK_ROWS, np.float32)
    for start in range(0, items.shape[0], _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, items.shape[0]))
        score_rows(stored, table, weights, rows, scores)
        out[items[rows]] = scores[: rows.shape[0]]


@compiled
def search_rows(
    stored: Stored,
    table: NDArray[Any],
    weights: NDArray[Any],
    starts: NDArray[Any],
    stops: NDArray[Any],
    lists: NDArray[Any],
    spills: Spills,
    head: NDArray[Any],
    in_head: NDArray[Any],
    denied: NDArray[Any],
    excluded: NDArray[Any],
    best_nums: NDArray[Any],
    best_scores: NDArray[Any],
) -> int:
    """Keep the best K of some rows, best first, and return how many there are.

    Args:
        stored: the rows.
        table: what entries look up, [S] or [D].
        weights: [n_bias] weights of the biases.
        starts: [P] first row of each run of rows.
        stops: [P] row after the last of each run.
        lists: [P] the lists whose runs these are, where lists have spilled rows; else [0].
        spills: rows that belong to other lists and are near these as well.
        head: rows that are scored whatever the lists.
        in_head: [N] bool by row, which rows these are; [0] where there are none.
        denied: [N] by item_num, True: never returned; [0] when nothing is denied.
        excluded: sorted item_nums that are never returned.
        best_nums: [K] int32, written up to the number returned.
        best_scores: [K] float32, likewise.
    """
    rows, filled, found = np.empty(_BLOCK_ROWS, np.int64), 0, 0
    query, headed = (stored, table, weights, denied, excluded), head.shape[0] > 0
    for start in range(0, head.shape[0], _BLOCK_ROWS):
        part = head[start : start + _BLOCK_ROWS]
        found = _keep_best(query, part, best_nums, best_scores, found)
    for run in range(starts.shape[0]):
        row = starts[run]
        while row < stops[run]:
            stop = min(stops[run], row + _BLOCK_ROWS - filled)
            while row < stop:
                rows[filled] = row
                filled += not (headed and in_head[row])
                row += 1
            if filled == _BLOCK_ROWS:
                found = _keep_best(query, rows, best_nums, best_scores, found)
                filled = 0
    probed = np.zeros(spills.starts.shape[0], np.bool_)
    for list_num in lists:
        probed[list_num] = True
    for list_num in lists:
        for spilled in range(spills.starts[list_num], spills.starts[list_num + 1]):
            row = spills.rows[spilled]
            if not (probed[spills.homes[spilled]] or (headed and in_head[row])):
                rows[filled] = row
                filled += 1
                if filled == _BLOCK_ROWS:
                    found = _keep_best(query, rows, best_nums, best_scores, found)
                    filled = 0
    found = _keep_best(query, rows[:filled], best_nums, best_scores, found)
    _sort_heap(best_nums, best_scores, found)
    return found


@compiled
def best_places(scores: NDArray[Any], places: NDArray[Any]) -> None:
    """Write where the best K of scores [C], K at most C, stand to `places` [K] int32, best first.

    The first of equals comes first.
    """
    best = np.empty(places.shape[0], np.float32)
    for place in range(places.shape[0]):
        _sift_up(places, best, place, place, scores[place])
    for place in range(places.shape[0], scores.shape[0]):
        if scores[place] > best[0]:
            _sift_down(places, best, places.shape[0], place, scores[place])
    _sort_heap(places, best, places.shape[0])


@compiled
def _keep_best(
    query: tuple[Any, ...],
    rows: NDArray[Any],
    best_nums: NDArray[Any],
    best_scores: NDArray[Any],
    found: int,
) -> int:
    """Take what is good enough of `rows` into a heap of `found` entries; return their number."""
    stored, table, weights, denied, excluded = query
    scores = np.empty(rows.shape[0], np.float32)
    score_rows(stored, table, weights, rows, scores)
    items, top_k = stored.items, best_nums.shape[0]
    for m in range(rows.shape[0]):
        score = scores[m]
        if found == top_k and score < best_scores[0]:
            continue
        num = items[rows[m]]
        if found == top_k and score == best_scores[0] and num > best_nums[0]:
            continue
        if denied.shape[0] > 0 and denied[num]:
            continue
        if excluded.shape[0] > 0 and _contains(excluded, num):
            continue
        if found < top_k:
            _sift_up(best_nums, best_scores, found, num, score)
            found += 1
        else:
            _sift_down(best_nums, best_scores, found, num, score)
    return found


@compiled
def _contains(ordered: NDArray[Any], num: int) -> bool:
    low, high = 0, ordered.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if ordered[middle] < num:
            low = middle + 1
        else:
            high = middle
    return bool(low < ordered.shape[0] and ordered[low] == num)


@compiled
def _worse(score_a: float, num_a: int, score_b: float, num_b: int) -> bool:
    return score_a < score_b or (score_a == score_b and num_a > num_b)


@compiled
def _sift_up(nums: NDArray[Any], scores: NDArray[Any], size: int, num: int, score: float) -> None:
    """Add to a heap of `size` entries whose root is the worst of them."""
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        if not _worse(score, num, scores[parent], nums[parent]):
            break
        scores[child], nums[child] = scores[parent], nums[parent]
        child = parent
    scores[child], nums[child] = score, num


@compiled
def _sift_down(nums: NDArray[Any], scores: NDArray[Any], size: int, num: int, score: float) -> None:
    """Replace the root of a heap of `size` entries."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        right = child + 1
        if right < size and _worse(scores[right], nums[right], scores[child], nums[child]):
            child = right
        if not _worse(scores[child], nums[child], score, num):
            break
        scores[parent], nums[parent] = scores[child], nums[child]
        parent = child
    scores[parent], nums[parent] = score, num


@compiled
def _sort_heap(nums: NDArray[Any], scores: NDArray[Any], size: int) -> None:
    """Order the heap best first, in place."""
    for last in range(size - 1, 0, -1):
        num, score = nums[last], scores[last]
        nums[last], scores[last] = nums[0], scores[0]
        _sift_down(nums, scores, last, num, score)
