"""What the atoms of sparse codes mean: who uses an atom, and which atoms two items share.

    N items, n = n_active, S = code_dim atoms

The code of an item says xhat = sum_j v_j d_j. An atom d is described by the items in which its
|v| is largest; two items are alike, as far as codes can tell, by xhat . yhat = sum_ij v_i w_j
d_i . d_j, of which the atoms that both hold give v w each (atoms have length 1).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.codes import Codes
from raysys.config import require
from raysys.data.arrays import Floats
from raysys.errors import SearchError

_CHUNK_ROWS = 65_536


@dataclasses.dataclass(frozen=True)
class SharedAtom:
    """An atom that two items hold.

    Attributes:
        atom: its row in the dictionary.
        first, second: its values in the two items.
        product: first * second, what it adds to their dot product.
        share: product divided by the dot product of the two reconstructions.
    """

    atom: int
    first: float
    second: float
    product: float
    share: float


def atom_usage(codes: Codes, code_dim: int) -> NDArray[np.int64]:
    """Return how many items hold each atom, [S]; zero: the atom is dead."""
    _check_sparse(codes)
    counts = np.zeros(code_dim, dtype=np.int64)
    for start in range(0, codes.n_items, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, codes.n_items))
        counts += np.bincount(codes.atoms_and_values(rows)[0].ravel(), minlength=code_dim)
    return counts


def items_of_atom(codes: Codes, atom: int, *, top_k: int) -> tuple[NDArray[np.int32], Floats]:
    """Return the rows in which an atom is strongest and its values there, both signs, by |value|.

    Args:
        codes: codes of all items; rows in any order.
        atom: row of the dictionary.
        top_k: length of the list, 1 or more.

    Raises:
        SearchError: the codes are dense ones.
    """
    _check_sparse(codes)
    require(top_k >= 1, "top_k", top_k, "1 or more")
    nums, values = [], []
    for start in range(0, codes.n_items, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, codes.n_items))
        atoms, scaled = codes.atoms_and_values(rows)
        row, position = np.nonzero(atoms == atom)
        nums.append(rows[row])
        values.append(scaled[row, position])
    found, strength = np.concatenate(nums), np.concatenate(values)
    order = np.lexsort((found, -np.abs(strength)))[:top_k]
    return found[order].astype(np.int32), strength[order].astype(np.float32)


def shared_atoms(codes: Codes, dictionary: Floats, first: int, second: int) -> list[SharedAtom]:
    """Return the atoms that two rows both hold, by what they add to the dot product.

    Raises:
        SearchError: the codes are dense ones.
    """
    _check_sparse(codes)
    rows = np.array([first, second])
    atoms, values = codes.atoms_and_values(rows)
    both, at, other = np.intersect1d(atoms[0], atoms[1], return_indices=True)
    ours, theirs = values[0, at], values[1, other]
    whole = float(np.prod(codes.decode(dictionary, rows), axis=0).sum())
    found = [
        SharedAtom(
            int(atom), float(v), float(w), float(v * w), float(v * w) / whole if whole else 0.0
        )
        for atom, v, w in zip(both, ours, theirs, strict=True)
    ]
    return sorted(found, key=lambda each: (-abs(each.product), each.atom))


def _check_sparse(codes: Codes) -> None:
    if codes.packing == "dense8":
        raise SearchError("the codes are 8-bit dense ones (small catalogue): they hold no atoms")
