"""Lists of many users at once, judged as they are made.

Letters: U users, N items.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from raysys.data.compiled import compiled_with
from raysys.evaluation.row_kernels import best_of_row

LISTED = 100
_LOWEST = np.float32(-3e38)  # infinities are none of fast math's numbers


@compiled_with(parallel=True, fastmath=True)
def list_gains(
    scores: Any,
    factor: Any,
    lift: Any,
    bias: Any,
    seen_offsets: Any,
    seen: Any,
    target_offsets: Any,
    targets: Any,
    weights: Any,
    gains: Any,
) -> None:
    """Write recall@20, ndcg@100 and the weights found among the first 20, per user.

    Lists are by factor_u * scores[u, i] * lift_i + bias_i.

    Args:
        scores: float32 [U, N].
        factor: float32 [U].
        lift: float32 [N].
        bias: float32 [N]; items below -1e30 are not listed.
        seen_offsets: int64 [U + 1], into `seen`.
        seen: int32 items not to be listed.
        target_offsets: int64 [U + 1], into `targets`; everyone has some.
        targets: int32 items, once per user.
        weights: float64 [N].
        gains: float64 [U, 3], written.
    """
    n_items = scores.shape[1]
    for u in numba.prange(len(factor)):
        mine = np.empty(n_items, np.float32)
        for i in range(n_items):
            mine[i] = factor[u] * scores[u, i] * lift[i] + bias[i]
        for k in range(seen_offsets[u], seen_offsets[u + 1]):
            mine[seen[k]] = _LOWEST
        items = np.empty(LISTED, np.int32)
        listed = best_of_row(mine, np.empty(LISTED, np.float32), items)
        first, last = target_offsets[u], target_offsets[u + 1]
        wanted = np.sort(targets[first:last])
        hits, gain, weight = 0.0, 0.0, 0.0
        for place in range(listed):
            item = items[place]
            at = np.searchsorted(wanted, item)
            if at < len(wanted) and wanted[at] == item:
                gain += 1 / np.log2(place + 2.0)
                if place < 20:
                    hits += 1
                    weight += weights[item]
        ideal = 0.0
        for place in range(min(last - first, LISTED)):
            ideal += 1 / np.log2(place + 2.0)
        gains[u, 0] = hits / min(last - first, 20)
        gains[u, 1] = gain / ideal
        gains[u, 2] = weight
