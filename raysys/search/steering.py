"""Steering: a query raises or mutes what atoms of the codes stand for.

    score_i + spread * sum over a of w_a h_ia

h_ia is what item i holds of atom a, from 0 to 1 (see `index/strengths.py`), w_a the query's weight.
The spread is the user's own: the best score among the candidates less the 50th best of those that
hold none of the steered atoms. So at -1 what holds an atom fully stands behind fifty others,
and at 1 such an item from the 50th place comes up to the best. This changes scores
alone; probabilities stay the model's, and so does what they are normalised by.

Candidates are those of the unsteered query and the ten strongest items of raised atoms. Where muted
ones fill them, more are searched.

Source of the idea: arXiv 2601.11182, which steers a sparse autoencoder inside the model; here the
atoms are those of the index's codes, and nothing is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.data.compiled import compiled
from raysys.errors import SearchError
from raysys.index.heap import sift_down, sift_up
from raysys.index.strengths import Strengths

MIDDLE = 50  # place that one unit reaches down to
_WIDER = 16  # times as many candidates as without, at most: a muted atom may be everywhere

Nums = NDArray[np.int32]


class Steering:
    """What one query raises and mutes.

    Args:
        given: {atom: weight}, none of 0, of atoms that some item holds; one or more.
        strengths: says what items hold.

    Attributes:
        mutes, raises: whether a weight is below 0, or above.
    """

    def __init__(self, given: Mapping[int, float], strengths: Strengths) -> None:
        self._given, self._strengths = given, strengths
        self._atoms = np.array([*given], dtype=np.int64)
        self._weights = np.array([*given.values()], dtype=np.float32)
        self.mutes, self.raises = min(given.values()) < 0, max(given.values()) > 0

    @functools.cached_property
    def strongest(self) -> Nums:
        """The strongest items of the atoms that are raised, see `Strengths.strongest_of`."""
        return self._strengths.strongest_of([a for a, w in self._given.items() if w > 0])

    def shares(self, nums: Nums) -> Floats:
        """Return the weighted sum of what items [C] hold of the atoms."""
        return self._strengths.shares(self._atoms, self._weights, nums)


Steerings = Sequence[Steering | None] | None
"""What each of some users raises and mutes; None: nothing."""


class Limits(NamedTuple):
    """What the lists of some users may hold.

    Attributes:
        exclude: per user, items that no list holds; None: none.
        alive: [N] which items may be listed at all.
        allow: [N] which of them may be; None: all.
    """

    exclude: Sequence[Nums] | None
    alive: NDArray[np.bool_]
    allow: NDArray[np.bool_] | None


def steering_of(given: Mapping[str, float], strengths: Strengths) -> Steering | None:
    """Return the weights of a query; None: nothing is steered.

    Args:
        given: {decimal atom number: weight}.
        strengths: of the atoms.

    Raises:
        SearchError: there is no such atom.
    """
    size, full = strengths.size, strengths.full
    weights: dict[int, float] = {}
    for text, weight in given.items():
        atom = int(text) if text.isdecimal() and text.isascii() else size
        if atom >= size:
            raise SearchError(f"atoms: {text!r} is no atom of this build: 0..{size - 1} are")
        if atom in weights:
            raise SearchError(f"atoms: {text!r} names atom {atom} again")
        weights[atom] = weight
    weights = {atom: weight for atom, weight in weights.items() if weight and full[atom]}
    return Steering(weights, strengths) if weights else None


def shares_of(steerings: Steerings, row: int, nums: Nums) -> Floats | None:
    """Return the shares [C] of items for one of some users; None: nothing is steered."""
    steering = None if steerings is None else steerings[row]
    return None if steering is None else steering.shares(nums)


def steered_candidates(
    found: Sequence[Nums],
    steerings: Sequence[Steering | None],
    limits: Limits,
    *,
    top_k: int,
    more: Callable[[int, int], Nums],
) -> tuple[list[Nums], list[Floats | None]]:
    """Return the candidates of users: what was found, and the strongest items of raised atoms.

    Args:
        found: per user, item_nums that an index found.
        steerings: what users raise and mute.
        limits: what lists may hold.
        top_k: length of the lists.
        more: (row, size) -> item_nums [1, size] that the index finds for one, padded with -1.

    Returns:
        item_nums [C] by user, and the shares [C] of each; None: nothing is steered.
    """
    candidates = list(found)
    shares: list[Floats | None] = [None] * len(found)
    exclude, alive, allow = limits
    allow = alive if allow is None else allow
    for row, steering in enumerate(steerings):
        if steering is None:
            continue
        nums, size = found[row], len(found[row])
        held = steering.shares(nums) if steering.mutes else None
        most = min(_WIDER * size, len(alive))
        while held is not None and len(nums) == size < most:
            if np.count_nonzero(held >= 0) >= max(top_k, MIDDLE):
                break
            size = min(4 * size, most)
            nums = more(row, size).reshape(-1)
            nums = nums[nums >= 0]
            held = steering.shares(nums)
        if steering.raises:
            left_out = nums[:0] if exclude is None else exclude[row]
            joined = _joined(nums, steering.strongest, left_out, alive, allow)
            if held is not None:
                held = np.concatenate([held, steering.shares(joined[len(nums) :])])
            nums = joined
        held = steering.shares(nums) if held is None else held
        candidates[row], shares[row] = nums, held
    return candidates, shares


def lifted(scores: Floats, shares: Floats) -> Floats:
    """Return the scores [C] of the items that a list could show with what steering adds, float32.

    Args:
        scores: of the ranking.
        shares: [C] of `Steering.shares`.
    """
    out = np.empty(len(scores), dtype=np.float32)
    _lift(np.ascontiguousarray(scores, dtype=np.float32), shares, MIDDLE, out)
    return out


@compiled
def _lift(scores: NDArray[Any], shares: NDArray[Any], middle: int, out: NDArray[Any]) -> None:
    """Write scores + spread * shares to `out`; see the module's docstring."""
    if scores.shape[0] == 0:
        return
    best, worst = scores[0], scores[0]
    kept, places, size = np.empty(middle, np.float32), np.empty(middle, np.int32), 0
    for place in range(scores.shape[0]):
        score = scores[place]
        best, worst = max(best, score), min(worst, score)
        if shares[place] != 0:
            continue
        if size < middle:
            sift_up(places, kept, size, place, score)
            size += 1
        elif score > kept[0]:
            sift_down(places, kept, size, place, score)
    spread = best - (kept[0] if size > 0 else worst)
    for place in range(scores.shape[0]):
        out[place] = scores[place] + spread * shares[place]


@compiled
def _joined(
    nums: NDArray[Any],
    wanted: NDArray[Any],
    exclude: NDArray[Any],
    alive: NDArray[Any],
    allow: NDArray[Any],
) -> NDArray[Any]:
    """Return numbers and those of some ascending others that are new and may be there.

    Of equals among the others the first is looked at; negative ones are none.
    """
    size = wanted.shape[0]
    kept = np.empty(size, np.bool_)
    for place in range(size):
        num, again = wanted[place], place > 0 and wanted[place] == wanted[place - 1]
        kept[place] = num >= 0 and not again and alive[num] and allow[num]
    for some in (nums, exclude):
        for num in some:
            low, high = 0, size
            while low < high:
                middle = (low + high) >> 1
                if wanted[middle] < num:
                    low = middle + 1
                else:
                    high = middle
            if low < size and wanted[low] == num:
                kept[low] = False
    out = np.empty(nums.shape[0] + kept.sum(), np.int32)
    out[: nums.shape[0]] = nums
    last = nums.shape[0]
    for place in range(size):
        if kept[place]:
            out[last] = wanted[place]
            last += 1
    return out
