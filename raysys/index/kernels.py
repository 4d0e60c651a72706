"""Compiled search over stored codes: score rows, keep the best.

    N items, Q queries, S atoms, L lists, K = top_k, n = n_active

One call answers all queries of a block, without the GIL: it scores runs of consecutive rows, and
rows that spilled from other lists, and keeps the best K; a flat scan is one run. Sums run over a
row's entries in a fixed order, so an item has the same score in every kind of index and ties are
real: the higher score comes first, then the lower item_num.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import DENSE8, Stored
from raysys.data.compiled import compiled, compiled_fast, compiled_short
from raysys.data.products import Rounded, integer_products
from raysys.index.best import (
    BLOCK,
    best_keys,
    key_of,
    narrowed,
    num_of,
    room_for,
    score_of,
    some_good,
)
from raysys.index.heap import contains, may_be, some_of
from raysys.index.holders import Holders, is_one_of, least_gain, rows_of, two_strongest
from raysys.index.rows import BLOCK_ROWS, score_rows
from raysys.index.together import pays, score_together


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


class Heads(NamedTuple):
    """The rows of each bias's head, see `head.py`.

    Attributes:
        starts: [n_bias + 1] int64, first row of each column's head in `stored`.
        columns: [N] uint8 by row of the index, bit b: the row is in the head of column b.
        own: the same of each row of `stored`.
        stored: copies of the rows of each head, by falling bias, one head after another.
    """

    starts: NDArray[Any]
    columns: NDArray[Any]
    own: NDArray[Any]
    stored: Stored


class Runs(NamedTuple):
    """Runs of rows, and which of them each query scores.

    Attributes:
        starts: [P] int64, first row of each run.
        stops: [P] int64, row after the last of each.
        lists: [P] int64, the lists whose runs these are, where rows may have spilled; else [0].
        first: [Q] int64, the first run of each query.
        last: [Q] int64, the run after its last; queries may share runs.
    """

    starts: NDArray[Any]
    stops: NDArray[Any]
    lists: NDArray[Any]
    first: NDArray[Any]
    last: NDArray[Any]


class Excluded(NamedTuple):
    """Item_nums [M] int32 that single queries never get, in any order, and `offsets` [Q + 1]."""

    items: NDArray[Any]
    offsets: NDArray[Any]


@compiled_short
def combined(
    queries: NDArray[Any], weights: NDArray[Any], axes: NDArray[Any], out: NDArray[Any]
) -> None:
    """Write [queries [Q, D], weights [Q, n]] times the first D + n rows of axes to `out` [Q, W].

    The same bits in every batch, so a query probes the same lists in each.
    """
    dim = queries.shape[1]
    for q in range(queries.shape[0]):
        total = out[q]
        total[:] = 0
        for d in range(dim):
            value, axis = queries[q, d], axes[d]
            for w in range(axis.shape[0]):
                total[w] += value * axis[w]
        for b in range(weights.shape[1]):
            value, axis = weights[q, b], axes[dim + b]
            for w in range(axis.shape[0]):
                total[w] += value * axis[w]


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


@compiled_short
def unit_queries(
    queries: NDArray[Any], weights: NDArray[Any], cosine: bool, out: NDArray[Any]
) -> bool:
    """Write queries [Q, D], for cosine divided by their lengths, to `out`.

    Returns False where a length is not finite or, for cosine, not positive in float32, or where one
    of the weights [Q, n_bias] is not finite.
    """
    for q in range(queries.shape[0]):
        for b in range(weights.shape[1]):
            if not np.isfinite(weights[q, b]):
                return False
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
def search_queries(
    stored: Stored,
    atoms: Rounded,
    queries: NDArray[Any],
    factor: float,
    weights: NDArray[Any],
    runs: Runs,
    spills: Spills,
    heads: Heads,
    holders: Holders,
    denied: NDArray[Any],
    exclude: Excluded,
    nums: NDArray[Any],
    scores: NDArray[Any],
    found: NDArray[Any],
) -> None:
    """Keep the best K of some rows for every query, best first.

    Args:
        stored: the rows.
        atoms: of the dictionary.
        queries: [Q, D].
        factor: that they are multiplied with.
        weights: [Q, n_bias] weights of the biases.
        runs: what each query scores.
        spills: rows that belong to other lists and are near these as well.
        heads: rows that a query scores whatever its lists.
        holders: the same.
        denied: [N] by item_num, True: never returned; [0] when nothing is denied.
        exclude: item_nums that are never returned to one query.
        nums: [Q, K] int32, written, padded with -1.
        scores: [Q, K] float32, written, padded with -inf.
        found: [Q] int64, written.
    """
    if stored.kind == DENSE8:
        tables = queries * np.float32(factor)
    else:
        tables = np.empty((queries.shape[0], atoms.steps.shape[0]), np.float32)
        integer_products(atoms, queries, factor, tables)
    n_queries, top_k = nums.shape
    excluded, offsets = exclude.items.copy(), exclude.offsets
    for q in range(n_queries):
        excluded[offsets[q] : offsets[q + 1]].sort()
    room = room_for(top_k, stored.items.shape[0])
    keys = np.empty((n_queries, room), np.uint64)
    sizes, leasts = np.zeros(n_queries, np.int64), np.zeros(n_queries, np.uint64)
    done = np.zeros(n_queries, np.uint8)  # columns whose heads each query has scored
    best = keys, sizes, leasts, top_k
    if pays(stored, n_queries):
        for column in range(heads.starts.shape[0] - 1):
            asking = np.flatnonzero(weights[:, column] > 0)
            if heads.starts[column] < heads.starts[column + 1] and pays(stored, asking.shape[0]):
                part = heads.starts[column : column + 1], heads.starts[column + 1 : column + 2]
                barred = denied, excluded, offsets, heads.own, done
                score_together(heads.stored, part, asking, tables, weights, barred, best)
                for one in range(asking.shape[0]):
                    done[asking[one]] |= np.uint8(1 << column)
    shared = runs.first.max() == runs.first.min() and runs.last.max() == runs.last.min()
    beside = heads.starts[-1] > 0 or holders.rows.shape[0] > 0  # what only some of them score
    together = shared and not beside and pays(stored, n_queries)
    if together:
        same = slice(runs.first[0], runs.last[0])
        part = runs.starts[same], runs.stops[same]
        barred = denied, excluded, offsets, heads.own, done
        score_together(stored, part, np.arange(n_queries), tables, weights, barred, best)
    for q in range(n_queries):
        if not together:
            mine = excluded[offsets[q] : offsets[q + 1]]
            asked = stored, tables[q], weights[q], denied, mine
            mine_runs = runs.first[q], runs.last[q]
            _search_rows(asked, runs, mine_runs, spills, heads, holders, done[q], q, best)
        ordered = best_keys(keys[q], sizes[q], top_k)
        found[q] = ordered.shape[0]
        for place in range(found[q]):
            key = ordered[found[q] - 1 - place]
            nums[q, place], scores[q, place] = num_of(key), score_of(key)
        nums[q, found[q] :] = -1
        scores[q, found[q] :] = -np.inf


@compiled
def _search_rows(
    asked: tuple[Any, ...],
    runs: Runs,
    part: tuple[int, int],
    spills: Spills,
    heads: Heads,
    holders: Holders,
    chosen: Any,
    q: int,
    best: tuple[Any, ...],
) -> None:
    """Keep the best K of one query's rows, its holders, and heads that are not yet `chosen`."""
    stored, table, weights, denied, excluded = asked
    in_head, top_k, nobody = heads.columns, best[3], rows_of(holders, -1)
    keys, size, least = best[0][q], best[1][q], best[2][q]
    rows, filled = np.empty(BLOCK_ROWS, np.int64), 0
    for column in range(heads.starts.shape[0] - 1):
        bit = np.uint8(1 << column)
        if chosen & bit or not weights[column] > 0:
            continue
        from_head = (heads.stored, table, weights, denied, excluded, nobody, nobody)
        for place in range(heads.starts[column], heads.starts[column + 1]):
            rows[filled] = place
            filled += not heads.own[place] & chosen
            if filled == BLOCK_ROWS:
                size, least = _keep_best(from_head, rows, keys, size, least, top_k)
                filled = 0
        size, least = _keep_best(from_head, rows[:filled], keys, size, least, top_k)
        filled = 0
        if heads.starts[column] < heads.starts[column + 1]:
            chosen |= bit
    gain = least_gain(holders, weights)
    first, second = two_strongest(holders, table, gain) if np.isfinite(gain) else (-1, -1)
    held, also_held = rows_of(holders, first), rows_of(holders, second)
    for mine, other in ((held, nobody), (also_held, held)):
        for row in mine:
            rows[filled] = row
            filled += not in_head[row] & chosen
        from_holders = (stored, table, weights, denied, excluded, other, nobody)
        size, least = _keep_best(from_holders, rows[:filled], keys, size, least, top_k)
        filled = 0
    query = (stored, table, weights, denied, excluded, held, also_held)
    for run in range(part[0], part[1]):
        row = runs.starts[run]
        while row < runs.stops[run]:
            count = min(runs.stops[run] - row, BLOCK_ROWS - filled)
            if chosen:
                for next_row in range(row, row + count):
                    rows[filled] = next_row
                    filled += not in_head[next_row] & chosen
            else:
                for n in range(count):
                    rows[filled + n] = row + n
                filled += count
            row += count
            if filled == BLOCK_ROWS:
                size, least = _keep_best(query, rows, keys, size, least, top_k)
                filled = 0
    if spills.rows.shape[0] > 0 and runs.lists.shape[0] > 0:
        probed = np.zeros(spills.starts.shape[0], np.bool_)
        for run in range(part[0], part[1]):
            probed[runs.lists[run]] = True
        for run in range(part[0], part[1]):
            list_num = runs.lists[run]
            for place in range(spills.starts[list_num], spills.starts[list_num + 1]):
                row = spills.rows[place]
                rows[filled] = row
                filled += not probed[spills.homes[place]]
                if chosen and not probed[spills.homes[place]]:
                    filled -= (in_head[row] & chosen) > 0
                if filled == BLOCK_ROWS:
                    size, least = _keep_best(query, rows, keys, size, least, top_k)
                    filled = 0
    size, least = _keep_best(query, rows[:filled], keys, size, least, top_k)
    best[1][q], best[2][q] = size, least


@compiled
def _keep_best(
    query: tuple[Any, ...],
    rows: NDArray[Any],
    keys: NDArray[Any],
    size: int,
    least: Any,
    top_k: int,
) -> Any:
    """Take the keys of what is good enough of `rows` after `size` others; return size and least."""
    stored, table, weights, denied, excluded, held, also_held = query
    n_held, some = held.shape[0] + also_held.shape[0], some_of(excluded)
    scores = np.empty(rows.shape[0], np.float32)
    score_rows(stored, table, weights, rows, scores)
    items, bar = stored.items, score_of(least) if least > 0 else np.float32(-np.inf)
    for start in range(0, rows.shape[0], BLOCK):
        stop = min(start + BLOCK, rows.shape[0])
        if not some_good(scores, start, stop, bar):
            continue
        for m in range(start, stop):
            if scores[m] < bar:
                continue
            num = items[rows[m]]
            key = key_of(scores[m], num)
            if key < least:
                continue
            if denied.shape[0] > 0 and denied[num]:
                continue
            if may_be(some, num) and contains(excluded, num):
                continue
            if n_held > 0 and is_one_of(held, also_held, rows[m]):
                continue
            keys[size] = key
            size += 1
            if size == keys.shape[0]:
                least = narrowed(keys, size, top_k)
                bar, size = score_of(least), top_k
    return size, least
