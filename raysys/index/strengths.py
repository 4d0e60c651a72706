"""How strongly items hold the atoms of their codes.

    N items, S atoms, n non-zeros of an item

An item holds an atom with a sign, and items of both signs are opposites. An atom stands for the
sign under which more of it is held, by the sum of squares: its items are those of that sign. The
tenth strongest of them holds it fully, and so do all that hold more; what others hold counts in
proportion, from 0 to 1; items of the other sign hold 0. One pass over the codes finds this; memory
goes with S, not with N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import PACKED4, Stored, value_of
from raysys.data.arrays import Floats
from raysys.data.compiled import compiled, half
from raysys.errors import SearchError
from raysys.index.heap import sift_down, sift_up, sort_heap, worse
from raysys.index.index import Index
from raysys.index.shards import Shards

N_FULL = 10  # strongest items of an atom, which hold it fully, and are kept
_FEW_CODES = 1 << 20  # non-zeros of a catalogue whose holders are kept by atom

Nums = NDArray[np.int32]


class Strengths:
    """The atoms of an index.

    Args:
        index: with sparse codes.

    Attributes:
        n_items: [S] items that hold each atom with its sign.
        full: float32 [S], the value that counts as full, with the atom's sign; 0: nobody holds it.
        strongest: int32 [S, 10] item_nums, strongest first, padded with -1.
        values: float32 [S, 10] how much they hold, 0 or more.

    Raises:
        SearchError: the codes are dense ones.
    """

    def __init__(self, index: Index | Shards) -> None:
        self._parts = index.parts if isinstance(index, Shards) else [index]
        first = self._parts[0]
        if first.codes.packing == "dense8":
            raise SearchError(
                "atoms are not there: the codes of this small catalogue are dense 8-bit vectors"
            )
        size = first.dictionary.size
        counts = np.zeros((2, size), dtype=np.int64)
        squares = np.zeros((2, size))
        nums = np.full((2, size, N_FULL), -1, dtype=np.int32)
        values = np.zeros((2, size, N_FULL), dtype=np.float32)
        for part in self._parts:
            _collect(part.stored, part.codes.unit[0], counts, squares, nums, values)
        _sort(counts, nums, values)
        side = (squares[1] > squares[0]).astype(np.int64)  # 1: the negative one
        atoms = np.arange(size)
        self.n_items: NDArray[np.int64] = counts[side, atoms]
        self.strongest: Nums = nums[side, atoms]
        self.values: Floats = values[side, atoms]
        last = np.clip(self.n_items, 1, N_FULL) - 1
        self.full: Floats = self.values[atoms, last] * np.where(side, -1, 1).astype(np.float32)
        self._ascending = np.sort(self.strongest, axis=1)
        self._of_atom: tuple[NDArray[np.int64], Nums, Floats] | None = None
        n_codes = sum(part.codes.n_items * part.codes.n_active for part in self._parts)
        if n_codes <= _FEW_CODES:
            self._of_atom = self._held_by_atom()

    @property
    def size(self) -> int:
        """Number of atoms S."""
        return len(self.full)

    def shares(self, atoms: NDArray[np.int64], weights: Floats, nums: Nums) -> Floats:
        """Return the weighted sum of what items hold of some atoms, from 0 to 1 each; float32 [C].

        Args:
            atoms: [A], each once, of which some item holds something.
            weights: float32 [A].
            nums: [C] item_nums; those that came after the index hold nothing.
        """
        out = np.empty(len(nums), dtype=np.float32)
        if self._of_atom is not None:
            _add_held(*self._of_atom, self._parts[0].n_items, atoms, weights, nums, out)
            return out
        out[:] = 0
        for part in self._parts:
            where = part.codes.unit[0], part.layout.rows, part.first_row
            _add_rows(part.stored, *where, nums, atoms, self.full, weights, out)
        return out

    def strongest_of(self, atoms: Sequence[int]) -> Nums:
        """Return the strongest items of some atoms, ten together or one each, ascending.

        An item may be there twice, and -1 stands for none.
        """
        if len(atoms) == 1:
            return np.asarray(self._ascending[atoms[0]])
        each = max(N_FULL // max(len(atoms), 1), 1)
        return np.sort(self.strongest[list(atoms), :each], axis=None)

    def items_of(self, atom: int, *, top_k: int) -> tuple[Nums, Floats]:
        """Return the strongest items of an atom and how much of it they hold, most first."""
        if top_k <= N_FULL:
            size = min(top_k, int(self.n_items[atom]))
            return self.strongest[atom, :size], self.values[atom, :size]
        size, sign = int(self.n_items[atom]), np.sign(self.full[atom])
        parts = [_holders(p.stored, p.codes.unit[0], atom, sign, size) for p in self._parts]
        nums, values = zip(*parts, strict=True)
        found, strength = np.concatenate(nums), np.concatenate(values)
        order = np.lexsort((found, -strength))[:top_k]
        return found[order].astype(np.int32), strength[order].astype(np.float32)

    def _held_by_atom(self) -> tuple[NDArray[np.int64], Nums, Floats]:
        """Return what a small catalogue holds, atom by atom: starts [S + 1], item_nums, shares."""
        pairs = [p.codes.atoms_and_values(np.arange(p.codes.n_items)) for p in self._parts]
        items = np.concatenate([np.repeat(p.layout.items, p.codes.n_active) for p in self._parts])
        atoms = np.concatenate([pair[0].reshape(-1) for pair in pairs]).astype(np.int64)
        values = np.concatenate([pair[1].reshape(-1) for pair in pairs])
        full = np.where(self.full == 0, np.float32(1), self.full)[atoms]
        shares = np.clip(values / full, 0, 1).astype(np.float32)
        order = np.argsort(atoms, kind="stable")
        order = order[shares[order] > 0]
        starts = np.searchsorted(atoms[order], np.arange(self.size + 1)).astype(np.int64)
        return starts, items[order], shares[order]


@compiled
def _held(stored: Stored, unit: Any, row: int, place: int) -> Any:
    """Return the value of one entry of a row."""
    return value_of(stored, row, place) * (half(stored.scale[row]) * unit)


@compiled
def _add_rows(
    stored: Stored,
    unit: Any,
    rows: NDArray[Any],
    first_row: int,
    nums: NDArray[Any],
    atoms: NDArray[Any],
    full: NDArray[Any],
    weights: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Add the weighted sums of what items [C] hold of atoms [A] to `out` [C], where they lie here.

    Args:
        stored: the rows.
        unit: of their values.
        rows: [N] the row of each item_num in the whole index.
        first_row: of it that is row 0 here.
        nums: [C] item_nums; from N on they have no row.
        atoms: [A], each once.
        full: [S], see `Strengths`.
        weights: [A].
        out: [C].
    """
    entries, n_active = stored.entries, stored.entries.shape[1]
    shift = 4 if stored.kind == PACKED4 else 0
    for c in range(nums.shape[0]):
        row = rows[nums[c]] - first_row if nums[c] < rows.shape[0] else -1
        if row < 0 or row >= entries.shape[0]:
            continue
        for a in range(atoms.shape[0]):
            wanted, found = np.uint16(atoms[a]), np.uint16(0)
            for j in range(n_active):  # a sum, so that many entries are compared at once
                found += np.uint16((entries[row, j] >> shift) == wanted)
            for j in range(n_active if found > 0 else 0):
                if entries[row, j] >> shift == wanted:
                    share = _held(stored, unit, row, j) / full[wanted]
                    out[c] += weights[a] * min(max(share, np.float32(0)), np.float32(1))


@compiled
def _holders(
    stored: Stored, unit: Any, atom: int, sign: float, most: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the items that hold an atom with a sign, at most `most`, and how much of it."""
    nums, values, found = np.empty(most, np.int32), np.empty(most, np.float32), 0
    shift, wanted = 4 if stored.kind == PACKED4 else 0, np.uint16(atom)
    entries = stored.entries
    for row in range(entries.shape[0]):
        there = np.uint16(0)
        for j in range(entries.shape[1]):  # as in `_add_rows`
            there += np.uint16((entries[row, j] >> shift) == wanted)
        for j in range(entries.shape[1] if there > 0 else 0):
            value = _held(stored, unit, row, j) * sign
            if entries[row, j] >> shift == wanted and value > 0:
                nums[found], values[found] = stored.items[row], value
                found += 1
    return nums[:found], values[:found]


@compiled
def _collect(
    stored: Stored,
    unit: Any,
    counts: NDArray[Any],
    squares: NDArray[Any],
    nums: NDArray[Any],
    values: NDArray[Any],
) -> None:
    """Take rows into the counts, sums of squares [2, S] and strongest [2, S, K] of both signs."""
    shift = 4 if stored.kind == PACKED4 else 0
    top_k = nums.shape[2]
    for row in range(stored.entries.shape[0]):
        num = stored.items[row]
        for j in range(stored.entries.shape[1]):
            value = _held(stored, unit, row, j)
            if value == 0:
                continue
            atom = stored.entries[row, j] >> shift
            side = 1 if value < 0 else 0
            value = abs(value)
            size = counts[side, atom]
            counts[side, atom] += 1
            squares[side, atom] += value * value
            best_nums, best_values = nums[side, atom], values[side, atom]
            if size < top_k:
                sift_up(best_nums, best_values, size, num, value)
            elif worse(best_values[0], best_nums[0], value, num):
                sift_down(best_nums, best_values, top_k, num, value)


@compiled
def _add_held(
    starts: NDArray[Any],
    items: NDArray[Any],
    shares: NDArray[Any],
    n_items: int,
    atoms: NDArray[Any],
    weights: NDArray[Any],
    nums: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """Write the weighted sums of what items `nums` [C] hold of atoms [A] to `out` [C]."""
    whole = np.zeros(n_items, np.float32)
    for a in range(atoms.shape[0]):
        for place in range(starts[atoms[a]], starts[atoms[a] + 1]):
            whole[items[place]] += weights[a] * shares[place]
    for c in range(nums.shape[0]):
        out[c] = whole[nums[c]] if nums[c] < n_items else np.float32(0)


@compiled
def _sort(counts: NDArray[Any], nums: NDArray[Any], values: NDArray[Any]) -> None:
    for side in range(2):
        for atom in range(counts.shape[1]):
            size = min(counts[side, atom], nums.shape[2])
            sort_heap(nums[side, atom], values[side, atom], size)
