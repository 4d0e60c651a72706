"""The best K of many scores: each is one key, kept where it is among the best so far.

The higher score comes first, then the lower number. A key holds both, so that one comparison of
whole numbers tells which comes first. Keys are gathered until there are more than twice as many as
are wanted, then narrowed to the best K, the least of which is the bar for all that follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.compiled import compiled

_SIGN = np.uint32(0x80000000)
_ALL = np.uint32(0xFFFFFFFF)
_HIGH = np.uint64(32)
BLOCK = 64  # scores compared with the bar together
_ROOM = 64  # keys gathered beyond twice K
_FEW = 32  # keys that are sorted by insertion
_ODD = 8  # keys, one of which stands out of their order at most
_DIGITS, _BASE, _LAST = 4, 256, np.uint64(255)  # of a score


@compiled
def key_of(score: float, num: int) -> Any:
    """Return the uint64 key of a float32 score and a number of 32 bits: larger comes first."""
    bits = np.float32(score + np.float32(0)).view(np.uint32)  # -0 becomes 0
    bits = np.uint32(bits ^ (_ALL if bits & _SIGN else _SIGN))
    return (np.uint64(bits) << _HIGH) | np.uint64(np.uint32(_ALL - np.uint32(num)))


@compiled
def score_of(key: Any) -> Any:
    """Return the float32 score of a key."""
    bits = np.uint32(key >> _HIGH)
    return np.uint32(bits ^ (_SIGN if bits & _SIGN else _ALL)).view(np.float32)


@compiled
def num_of(key: Any) -> int:
    """Return the number of a key."""
    return int(np.uint32(_ALL - np.uint32(key & np.uint64(_ALL))))


@compiled
def room_for(top_k: int, n_most: int) -> int:
    """Return how many keys there is room for to keep the best K of at most so many."""
    return min(2 * top_k + _ROOM, n_most + 1)


@compiled
def narrowed(keys: NDArray[Any], size: int, top_k: int) -> Any:
    """Move the largest K of the first `size` keys, more than K, to the front; return the least.

    Every key is written to both sides of the pivot, and one of them moves on: no branch depends on
    a comparison, half of which a processor would guess wrong.
    """
    spare = np.empty(size, np.uint64)
    low, high = 0, size  # below low: among the largest; from high on: not
    while True:
        first, middle, final = keys[low], keys[(low + high) >> 1], keys[high - 1]
        pivot = max(min(first, middle), min(max(first, middle), final))
        front, back = low, 0
        for place in range(low, high):
            key = keys[place]
            keys[front] = spare[back] = key
            larger = key >= pivot
            front += larger
            back += not larger
        keys[front:high] = spare[:back]
        if top_k > front:
            low = front
        elif top_k < front < high:
            high = front
        elif front == high:  # the pivot is the least of them
            high -= 1
            for place in range(low, high):
                if keys[place] == pivot:
                    keys[place], keys[high] = keys[high], keys[place]
                    break
        if top_k in (front, high):
            return keys[:top_k].min()


@compiled
def best_keys(keys: NDArray[Any], size: int, top_k: int) -> Any:
    """Return the largest K of the first `size` keys, or all where they are fewer, ascending."""
    if size > top_k:
        narrowed(keys, size, top_k)
        size = top_k
    best = keys[:size]
    ascend(best)
    return best


@compiled
def ascend(keys: NDArray[Any]) -> None:
    """Sort keys in place: a few by insertion, more by the digits of their scores.

    Where most scores rise or most fall, as those of a head do, comparisons are sooner.
    """
    if keys.shape[0] <= _FEW:
        _insert(keys)
        return
    rising, falling = 0, 0
    for place in range(1, keys.shape[0]):
        rising += keys[place] >> _HIGH > keys[place - 1] >> _HIGH
        falling += keys[place] >> _HIGH < keys[place - 1] >> _HIGH
    if _ODD * min(rising, falling) < keys.shape[0]:
        keys[:] = np.sort(keys)
        return
    starts = np.zeros((_DIGITS, _BASE), np.int32)
    for key in keys:
        for digit in range(_DIGITS):
            starts[digit, (key >> _shift(digit)) & _LAST] += np.int32(1)
    for digit in range(_DIGITS):
        total = np.int32(0)
        for value in range(_BASE):
            count = starts[digit, value]
            starts[digit, value] = total
            total += count
    spare = np.empty(keys.shape[0], np.uint64)
    for digit in range(0, _DIGITS, 2):
        _place(keys, starts[digit], _shift(digit), spare)
        _place(spare, starts[digit + 1], _shift(digit + 1), keys)
    start = 0
    for place in range(1, keys.shape[0] + 1):
        if place == keys.shape[0] or keys[place] >> _HIGH != keys[start] >> _HIGH:
            if place - start > _FEW:  # equal scores
                keys[start:place] = np.sort(keys[start:place])
            elif place - start > 1:
                _insert(keys[start:place])
            start = place


@compiled
def _insert(keys: NDArray[Any]) -> None:
    """Sort a few keys in place."""
    for place in range(1, keys.shape[0]):
        key, at = keys[place], place
        while at > 0 and keys[at - 1] > key:
            keys[at] = keys[at - 1]
            at -= 1
        keys[at] = key


@compiled
def _shift(digit: int) -> Any:
    """Return where a digit of the score begins in a key."""
    return np.uint64(32 + 8 * digit)


@compiled
def _place(keys: NDArray[Any], starts: NDArray[Any], shift: Any, out: NDArray[Any]) -> None:
    """Write keys in the order of one digit, equals in their order; `starts` move on."""
    for key in keys:
        value = (key >> shift) & _LAST
        out[starts[value]] = key
        starts[value] += np.int32(1)


@compiled
def some_good(scores: NDArray[Any], start: int, stop: int, bar: Any) -> bool:
    """Tell whether one of a block of scores is not below the bar; of whole blocks in few steps."""
    good = np.int32(0)
    if stop - start == BLOCK:
        for place in range(BLOCK):
            good |= np.int32(not scores[start + place] < bar)
    else:
        for place in range(start, stop):
            good |= np.int32(not scores[place] < bar)
    return bool(good > 0)


@compiled
def best_places(scores: NDArray[Any], places: NDArray[Any]) -> None:
    """Write where the best K of scores [C], K at most C, stand to `places` [K] int, best first.

    The first of equals comes first.
    """
    top_k, size, bar = places.shape[0], 0, np.float32(-np.inf)
    if top_k == 0:
        return
    keys, full = np.empty(room_for(top_k, scores.shape[0]), np.uint64), False
    for start in range(0, scores.shape[0], BLOCK):
        stop = min(start + BLOCK, scores.shape[0])
        if not some_good(scores, start, stop, bar):
            continue
        for place in range(start, stop):
            if scores[place] < bar or (full and scores[place] == bar):  # equals came before
                continue
            keys[size] = key_of(scores[place], place)
            size += 1
            if size == keys.shape[0]:
                bar = score_of(narrowed(keys, size, top_k))
                size, full = top_k, True
    best = best_keys(keys, size, top_k)
    for place in range(top_k):
        places[place] = num_of(best[top_k - 1 - place])
