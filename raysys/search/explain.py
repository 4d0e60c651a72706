"""Why an item is in a list: the atoms that its code shares with the query.

The score of an item is a sum over its n atoms, value_j * (Dict q)[atom_j], plus its biases: each
term says how much one atom brought. An atom is shown by the catalogue's items that hold most of it,
and by the items of the profile that hold it with the same sign.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.errors import SearchError
from raysys.index.index import Index
from raysys.index.shards import Shards

_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Shared:
    """One atom of an explained item.

    Attributes:
        atom: its number.
        contribution: to the item's code score.
        profile: item_nums of the profile that hold the atom with the item's sign, most first.
        examples: item_nums of the catalogue that hold most of it with that sign.
    """

    atom: int
    contribution: float
    profile: list[int]
    examples: list[int]


@dataclasses.dataclass(frozen=True)
class Explained:
    """An item's code score, taken apart.

    Attributes:
        score: sum of all contributions and biases.
        bias: what the item brings whatever the query.
        atoms: the largest contributions, in order of their size.
    """

    score: float
    bias: float
    atoms: list[Shared]


def explain(
    index: Index | Shards,
    query: Floats,
    weights: Floats,
    num: int,
    *,
    profile: NDArray[np.int32],
    n_atoms: int = 5,
) -> Explained:
    """Take the code score of an item apart.

    Args:
        index: what found it.
        query: [D].
        weights: [n_bias].
        num: item_num.
        profile: item_nums that the query was made of; may be empty.
        n_atoms: atoms returned.

    Raises:
        SearchError: the codes have no atoms (a catalogue of a few hundred items).
    """
    parts = index.parts if isinstance(index, Shards) else [index]
    first = parts[0]
    if first.codes.packing == "dense8":
        raise SearchError("explain needs atoms: small catalogues are kept as dense 8-bit vectors")
    owner = next(part for part in parts if part.holds(np.array([num]))[0])
    atoms, values = (a[0] for a in owner.codes.atoms_and_values(owner.rows_of(np.array([num]))))
    norm = np.linalg.norm(query) if first.similarity == "cosine" else 1.0
    terms = values * (first.dictionary.floats[atoms.astype(np.int64)] @ (query / norm))
    bias = float(owner.bias[owner.rows_of(np.array([num]))][0] @ weights)
    largest = np.argsort(-np.abs(terms), kind="stable")[:n_atoms]
    shown = []
    for j in largest:
        atom, sign = int(atoms[j]), np.sign(values[j])
        holders, held = _holders(parts, atom, sign)
        order = np.argsort(-held, kind="stable")
        ranked = holders[order]
        examples = ranked[(ranked != num)][:_EXAMPLES].tolist()
        mine = ranked[np.isin(ranked, profile)].tolist()
        shown.append(Shared(atom, float(terms[j]), mine, examples))
    return Explained(float(terms.sum() + bias), bias, shown)


def _holders(
    parts: list[Index], atom: int, sign: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the items that hold an atom with this sign, and how much of it."""
    nums, amounts = [], []
    for part in parts:
        rows = np.flatnonzero((part.codes.atoms() == atom).any(axis=1))
        atoms, values = part.codes.atoms_and_values(rows)
        amount = np.where(atoms == atom, values * sign, 0).sum(axis=1)
        nums.append(part.layout.items[rows][amount > 0])
        amounts.append(amount[amount > 0])
    return np.concatenate(nums), np.concatenate(amounts)
