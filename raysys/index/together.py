"""Rows that many queries score, like those of a head: read once for sixteen queries.

    Q queries, S atoms, K = top_k

The products of sixteen queries with an atom lie side by side, so that one load serves them all.
Sums run over a row's entries in the same order as those of `rows.py`: the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import PACKED4, Stored
from raysys.data.compiled import SIXTEEN, compiled, half, side_sums
from raysys.index.best import key_of, narrowed, score_of
from raysys.index.heap import contains, may_be, some_of

FEWEST = 8  # queries for which laying their products side by side pays
_BLOCK_ROWS = 256


@compiled
def pays(stored: Stored, n_queries: int) -> bool:
    """Tell whether so many queries score the same rows together sooner than one by one."""
    return bool(stored.kind == PACKED4 and n_queries >= FEWEST)


@compiled
def score_together(
    stored: Stored,
    runs: tuple[NDArray[Any], NDArray[Any]],
    asking: NDArray[Any],
    tables: NDArray[Any],
    weights: NDArray[Any],
    barred: tuple[Any, ...],
    best: tuple[Any, ...],
) -> None:
    """Score runs of rows for some queries, and keep the best K of each.

    Args:
        stored: the rows.
        runs: first rows, and rows after the last, of each run.
        asking: int64, numbers of the queries.
        tables: [Q, S] the products of the queries with the atoms.
        weights: [Q, n_bias] of the biases.
        barred: what is not returned: denied [N] bool or [0], items excluded from single queries,
            ascending, with their offsets [Q + 1], and for every row the columns whose head it is in
            with those [Q] that each query has scored, which are 0 where rows are in no head.
        best: keys [Q, room], how many there are [Q], the least of the best K [Q], and K.
    """
    for first in range(0, asking.shape[0], SIXTEEN):
        _sixteen(stored, runs, asking[first : first + SIXTEEN], tables, weights, barred, best)


@compiled
def _sixteen(
    stored: Stored,
    runs: tuple[NDArray[Any], NDArray[Any]],
    asking: NDArray[Any],
    tables: NDArray[Any],
    weights: NDArray[Any],
    barred: tuple[Any, ...],
    best: tuple[Any, ...],
) -> None:
    """Do what `score_together` does, for at most sixteen queries."""
    leasts, n_bias = best[2], weights.shape[1]
    side = np.zeros((tables.shape[1], SIXTEEN), np.float32)
    bars, factors = np.full(SIXTEEN, np.inf, np.float32), np.zeros((n_bias, SIXTEEN), np.float32)
    for first in range(0, tables.shape[1], SIXTEEN):  # a few lines of the cache at a time
        last = min(first + SIXTEEN, tables.shape[1])
        for lane in range(asking.shape[0]):
            table = tables[asking[lane]]
            for s in range(first, last):
                side[s, lane] = table[s]
    for lane in range(asking.shape[0]):
        for b in range(n_bias):
            factors[b, lane] = weights[asking[lane], b]
        least = leasts[asking[lane]]
        bars[lane] = score_of(least) if least > 0 else np.float32(-np.inf)
    zero = np.float32(0)
    weighed = [b for b in range(n_bias) if np.any(factors[b] != 0)]
    scores, good = np.empty((_BLOCK_ROWS, SIXTEEN), np.float32), np.empty(SIXTEEN, np.int32)
    for run in range(runs[0].shape[0]):
        for start in range(runs[0][run], runs[1][run], _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, runs[1][run])
            good[:] = 0
            for row in range(start, stop):
                side_sums(stored.entries, row, stored.codebook, side, scores, row - start)
            for row in range(start, stop):
                mine, scale = scores[row - start], half(stored.scale[row])
                for lane in range(SIXTEEN):
                    mine[lane] *= scale
                for b in weighed:
                    bias = stored.bias[row, b]
                    for lane in range(SIXTEEN):
                        mine[lane] += bias * factors[b, lane] if factors[b, lane] != 0 else zero
                for lane in range(SIXTEEN):
                    good[lane] |= np.int32(not mine[lane] < bars[lane])
            for lane in range(asking.shape[0]):
                if good[lane]:
                    part = scores[: stop - start, lane]
                    bars[lane] = _keep(stored, start, asking[lane], part, bars[lane], barred, best)


@compiled
def _keep(
    stored: Stored,
    start: int,
    q: int,
    scores: NDArray[Any],
    bar: Any,
    barred: tuple[Any, ...],
    best: tuple[Any, ...],
) -> Any:
    """Take the keys of rows from `start` on whose scores are good enough; return the bar."""
    denied, excluded, offsets, columns, done = barred
    keys, size, least, top_k = best[0][q], best[1][q], best[2][q], best[3]
    mine, scored = excluded[offsets[q] : offsets[q + 1]], done[q]
    some = some_of(mine)
    for place in range(scores.shape[0]):
        if scores[place] < bar:
            continue
        num = stored.items[start + place]
        key = key_of(scores[place], num)
        if key < least:
            continue
        if denied.shape[0] > 0 and denied[num]:
            continue
        if scored and columns[start + place] & scored:
            continue
        if may_be(some, num) and contains(mine, num):
            continue
        keys[size] = key
        size += 1
        if size == keys.shape[0]:
            least = narrowed(keys, size, top_k)
            bar, size = score_of(least), top_k
    best[1][q], best[2][q] = size, least
    return bar
