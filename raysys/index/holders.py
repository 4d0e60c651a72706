"""Holders: rows that hold much of an atom, for the users whom no list serves.

    N rows, S atoms, n entries of a row

Lists bring together rows that lie in one direction as a whole. A user of rare taste asks for rows
that share one strong atom and little else: they lie in many lists, no centroid of which is near. So
an index keeps the holders of every atom with either sign: up to a thousand rows, the largest values
first, among the rows that have it among their four largest entries. A query scores the holders of
those two atoms along which a row can gain most.

What it can gain is the query's product with the atom times the largest value that a row holds of
it. Below a limit, which the build measures for each bias, no sampled query found more with them:
such queries go without.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.kernels import DENSE8, PACKED4, Stored, value_of
from raysys.data.arrays import Floats
from raysys.data.compiled import compiled, half
from raysys.index.heap import contains, sift_down, sift_up, worse
from raysys.index.rows import BLOCK_ROWS

_ROWS = BLOCK_ROWS  # of an atom and a sign at most: as many as are scored at once
_STRONGEST = 4  # entries of a row


class Holders(NamedTuple):
    """The holders of every atom: those with a positive value, of all S, then the others.

    Attributes:
        starts: [2 S + 1] int64, first of each atom's rows.
        rows: int32, ascending within an atom.
        largest: float32 [2 S], the largest |value| of each in the whole index, in units of it.
        least: float32 [n_bias], the gain from which on queries that weigh a bias score holders;
            inf: they do not.
    """

    starts: NDArray[Any]
    rows: NDArray[Any]
    largest: Floats
    least: Floats

    @classmethod
    def of(cls, stored: Stored, n_atoms: int) -> Holders:
        """Return the holders among the rows of a whole index, which all queries score.

        Where codes are dense or rows have no biases there are none.
        """
        n_bias = stored.bias.shape[1]
        if stored.kind == DENSE8 or n_bias == 0:
            return nobody(n_bias)
        counts = np.zeros(2 * n_atoms, dtype=np.int64)
        _count(stored, n_atoms, counts)
        starts = np.concatenate([[0], np.cumsum(np.minimum(counts, _ROWS))])
        rows, strengths = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
        largest = np.zeros(2 * n_atoms, dtype=np.float32)
        _collect(stored, n_atoms, starts, rows, strengths, largest)
        return cls(starts, rows, largest, np.zeros(n_bias, dtype=np.float32))

    def taken(self, start: int, stop: int) -> Holders:
        """Return what an item shard of rows [start, stop) needs; its rows count from `start`."""
        held = (self.rows >= start) & (self.rows < stop)
        starts = np.concatenate([[0], np.cumsum(held)])[self.starts]
        return self._replace(starts=starts, rows=(self.rows[held] - start).astype(np.int32))

    def gains(self, tables: Floats) -> Floats:
        """Return what rows can gain along one atom at most, float32 [Q].

        Args:
            tables: [Q, S] products of queries with the atoms, in units of the index.
        """
        both = np.concatenate([tables, -tables], axis=1) * self.largest
        return np.asarray(both.max(axis=1, initial=0), dtype=np.float32)


def nobody(n_bias: int) -> Holders:
    """Return no holders."""
    none = np.zeros(0, dtype=np.float32)
    return Holders(np.zeros(1, np.int64), np.zeros(0, np.int32), none, np.full(n_bias, np.inf, "f"))


@compiled
def _strongest(
    stored: Stored,
    row: int,
    n_atoms: int,
    every: NDArray[Any],
    places: NDArray[Any],
    values: NDArray[Any],
) -> int:
    """Write what a row holds most of; return how many entries these are.

    Args:
        stored: the rows.
        row: of them.
        n_atoms: S.
        every: float32 [n], written: the values of all its entries.
        places: int64 [4], written: the atom of a positive value, S more for others.
        values: float32 [4], written: the largest |values|.
    """
    shift, scale, found = 4 if stored.kind == PACKED4 else 0, half(stored.scale[row]), 0
    for j in range(every.shape[0]):
        every[j] = value_of(stored, row, j) * scale
    while found < min(places.shape[0], every.shape[0]):
        j = 0
        for other in range(1, every.shape[0]):
            if abs(every[other]) > abs(every[j]):
                j = other
        if every[j] == 0:
            break
        places[found] = (stored.entries[row, j] >> shift) + (n_atoms if every[j] < 0 else 0)
        values[found], every[j] = abs(every[j]), 0
        found += 1
    return found


@compiled
def _count(stored: Stored, n_atoms: int, counts: NDArray[Any]) -> None:
    """Count the rows of each atom and sign, [2 S]."""
    every, values = np.empty(stored.entries.shape[1], np.float32), np.empty(_STRONGEST, np.float32)
    places = np.empty(_STRONGEST, np.int64)
    for row in range(stored.entries.shape[0]):
        for n in range(_strongest(stored, row, n_atoms, every, places, values)):
            counts[places[n]] += 1


@compiled
def _collect(
    stored: Stored,
    n_atoms: int,
    starts: NDArray[Any],
    rows: NDArray[Any],
    strengths: NDArray[Any],
    largest: NDArray[Any],
) -> None:
    """Write the rows with the largest values of each atom and sign, ascending, and the largest."""
    every, values = np.empty(stored.entries.shape[1], np.float32), np.empty(_STRONGEST, np.float32)
    places, sizes = np.empty(_STRONGEST, np.int64), np.zeros(largest.shape[0], np.int64)
    for row in range(stored.entries.shape[0]):
        for n in range(_strongest(stored, row, n_atoms, every, places, values)):
            place, value = places[n], values[n]
            mine = rows[starts[place] : starts[place + 1]]
            theirs = strengths[starts[place] : starts[place + 1]]
            largest[place] = max(largest[place], value)
            if sizes[place] < mine.shape[0]:
                sift_up(mine, theirs, sizes[place], row, value)
                sizes[place] += 1
            elif worse(theirs[0], mine[0], value, row):
                sift_down(mine, theirs, mine.shape[0], row, value)
    for place in range(largest.shape[0]):
        rows[starts[place] : starts[place + 1]].sort()


@compiled
def least_gain(holders: Holders, weights: NDArray[Any]) -> Any:
    """Return the gain from which on a query with weights [n_bias] scores holders; inf: never."""
    least = np.float32(np.inf)
    if holders.rows.shape[0] == 0:
        return least
    for b in range(weights.shape[0]):
        if weights[b] < 0:
            return np.float32(np.inf)
        if weights[b] > 0:
            least = min(least, holders.least[b])
    return least


@compiled
def two_strongest(holders: Holders, table: NDArray[Any], least: Any) -> tuple[int, int]:
    """Return the places of the two atoms with the largest gains of `least` or more; -1: none.

    Args:
        holders: of the index.
        table: [S or more] products of a query with the atoms.
        least: of a gain.
    """
    n_atoms = holders.largest.shape[0] // 2
    first, second, most, next_most = -1, -1, np.float32(0), np.float32(0)
    for s in range(n_atoms):
        place = s if table[s] > 0 else n_atoms + s
        gain = abs(table[s]) * holders.largest[place]
        if gain < least or gain <= next_most:
            continue
        second, next_most = place, gain
        if gain > most:
            first, second, most, next_most = place, first, gain, most
    return first, second


@compiled
def rows_of(holders: Holders, place: int) -> NDArray[Any]:
    """Return the rows of an atom and a sign, ascending; none where the place is -1."""
    if place < 0:
        return holders.rows[:0]
    return holders.rows[holders.starts[place] : holders.starts[place + 1]]


@compiled
def is_one_of(some: NDArray[Any], others: NDArray[Any], row: int) -> bool:
    """Tell whether a row is among either of two runs of ascending rows."""
    return bool(contains(some, row) or contains(others, row))
