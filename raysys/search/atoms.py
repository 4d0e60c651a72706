"""Atoms as people see them: names, strongest items, and what they brought to items of a list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysys.data.cells import Cells
from raysys.errors import SearchError
from raysys.index.shards import Shards
from raysys.index.strengths import N_FULL
from raysys.scoring.rankings import Ranking
from raysys.search.atom_names import shown_names
from raysys.search.engine import Engine
from raysys.search.items import ItemTable, similar_items
from raysys.search.opened import Opened
from raysys.search.query import Atom, AtomShare, Items, Ranked

_SHOWN = 3  # items of each atom of a list of atoms
_BROUGHT = 5  # atoms of a hit


class Atoms:
    """The atoms of what is served.

    Args:
        opened: what is served, but for changes.
        engine: makes queries.
        items: the served catalogue.
    """

    def __init__(self, opened: Opened, engine: Engine, items: ItemTable) -> None:
        self._opened, self._engine, self._items = opened, engine, items
        self._names: dict[int, str] = {}
        self.read_names()

    def read_names(self) -> None:
        """Take over what the run calls the atoms now."""
        codes, compressor = self._opened.codes, self._opened.compressor
        first = codes.parts[0] if isinstance(codes, Shards) else codes
        self._names = shown_names(compressor, n_atoms=first.dictionary.size)

    def name(self, atom: int) -> str | None:
        """Return what an atom is called; None: it has no name."""
        return self._names.get(atom)

    def used(self, top_k: int) -> list[Atom]:
        """Return the atoms that most items hold, with their strongest items.

        Raises:
            SearchError: the codes have no atoms.
        """
        n_items = self._opened.strengths.n_items
        order = np.argsort(-n_items, kind="stable")[:top_k]
        return [self.of(int(atom), _SHOWN) for atom in order if n_items[atom]]

    def of(self, atom: int, top_k: int) -> Atom:
        """Return one atom with its strongest items.

        Raises:
            SearchError: there is no such atom, or the codes have none.
        """
        strengths = self._opened.strengths
        if not 0 <= atom < strengths.size:
            raise SearchError(f"atom={atom} is no atom of this build: 0..{strengths.size - 1} are")
        alive, size = self._engine.alive, min(top_k, N_FULL)
        while True:  # the ten strongest are at hand; more are looked for where some are gone
            nums, values = strengths.items_of(atom, top_k=size)
            listed = alive[nums]
            if listed.sum() >= top_k or len(nums) < size:
                break
            size = max(2 * size, top_k + int(np.count_nonzero(~listed)))
        nums, values = nums[listed][:top_k], values[listed][:top_k]
        shown = similar_items(Ranked(nums, values.astype(np.float64)), self._items)
        return Atom(atom, self.name(atom), int(strengths.n_items[atom]), shown)

    def of_hits(
        self, nums: Items, history: Cells, ranking: Ranking
    ) -> list[list[AtomShare]] | None:
        """Return the atoms that brought most to the items [C] of one user's list.

        None where codes have none, or nothing is known of the user that a query could be made of.
        """
        codes = self._opened.codes
        parts = codes.parts if isinstance(codes, Shards) else [codes]
        if parts[0].codes.packing == "dense8":
            return None
        if self._engine.scorer is None and not history.n_cells:
            return None
        queries, _ = self._engine.query(self._engine.known(history), ranking)
        query = np.zeros(codes.dim, dtype=np.float32)
        query[: queries.shape[1]] = queries[0]
        if parts[0].similarity == "cosine":
            query /= max(float(np.linalg.norm(query)), 1e-30)
        products = parts[0].dictionary.products(query[None], 1.0)[0]
        found: list[list[AtomShare]] = [[] for _ in nums]
        for part in parts:
            places = np.flatnonzero(nums < codes.n_items)
            places = places[part.holds(nums[places])]
            atoms, values = part.codes.atoms_and_values(part.rows_of(nums[places]))
            terms = values * products[atoms]
            self._fill(found, places, atoms, terms)
        return found

    def _fill(
        self,
        found: list[list[AtomShare]],
        places: NDArray[np.int64],
        atoms: NDArray[np.uint16],
        terms: NDArray[np.floating],
    ) -> None:
        """Write the largest of the terms [C, n] of items to their places."""
        sums = np.maximum(np.abs(terms).sum(axis=1, keepdims=True), np.float32(1e-30))
        order = np.argsort(-np.abs(terms), axis=1, kind="stable")[:, :_BROUGHT]
        largest = np.take_along_axis(atoms, order, 1).tolist()
        shares = np.take_along_axis(terms / sums, order, 1).tolist()
        for place, row, parts in zip(places.tolist(), largest, shares, strict=True):
            found[place] = [
                AtomShare(atom, self.name(atom), share)
                for atom, share in zip(row, parts, strict=True)
                if share
            ]
