"""The best K of many scores: a heap whose root is the worst of those kept.

The higher score comes first, then the lower number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.compiled import compiled


@compiled
def contains(ordered: NDArray[Any], num: int) -> bool:
    """Tell whether ascending numbers hold one."""
    low, high = 0, ordered.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if ordered[middle] < num:
            low = middle + 1
        else:
            high = middle
    return bool(low < ordered.shape[0] and ordered[low] == num)


@compiled
def some_of(nums: NDArray[Any]) -> Any:
    """Return 64 bits that tell of most other numbers that they are none of these, see `may_be`."""
    bits = np.uint64(0)
    for num in nums:
        bits |= np.uint64(1) << np.uint64(num & 63)
    return bits


@compiled
def may_be(bits: Any, num: int) -> bool:
    """Tell whether a number may be one of those of `some_of`."""
    return bool(bits >> np.uint64(num & 63) & np.uint64(1))


@compiled
def worse(score_a: float, num_a: int, score_b: float, num_b: int) -> bool:
    """Tell whether entry a comes after b: a lower score, or an equal one and a higher number."""
    return score_a < score_b or (score_a == score_b and num_a > num_b)


@compiled
def sift_up(nums: NDArray[Any], scores: NDArray[Any], size: int, num: int, score: float) -> None:
    """Add to a heap of `size` entries whose root is the worst of them."""
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        if not worse(score, num, scores[parent], nums[parent]):
            break
        scores[child], nums[child] = scores[parent], nums[parent]
        child = parent
    scores[child], nums[child] = score, num


@compiled
def sift_down(nums: NDArray[Any], scores: NDArray[Any], size: int, num: int, score: float) -> None:
    """Replace the root of a heap of `size` entries."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        right = child + 1
        if right < size and worse(scores[right], nums[right], scores[child], nums[child]):
            child = right
        if not worse(scores[child], nums[child], score, num):
            break
        scores[parent], nums[parent] = scores[child], nums[child]
        parent = child
    scores[parent], nums[parent] = score, num


@compiled
def sort_heap(nums: NDArray[Any], scores: NDArray[Any], size: int) -> None:
    """Order the heap best first, in place."""
    for last in range(size - 1, 0, -1):
        num, score = nums[last], scores[last]
        nums[last], scores[last] = nums[0], scores[0]
        sift_down(nums, scores, last, num, score)
