"""Atoms: what the sparse codes of a run stand for, as a table.

Examples:
    raysys atoms run=R                       the atoms in use, most used first, with an item each
    raysys atoms run=R atom=17 top_k=10      the items in which an atom is strongest
    raysys atoms run=R 'items=["1193","661"]'  the atoms that two items share
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from raysys.compressor.atoms import atom_usage, items_of_atom, shared_atoms
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.config import JobConfig, require, require_run
from raysys.data.arrays import Floats
from raysys.errors import ConfigError
from raysys.reports.tables import aligned
from raysys.search.items import NAMES, ItemTable
from raysys.store.builds import Workspace


@dataclasses.dataclass
class AtomsConfig(JobConfig):
    """One question about the atoms of the current codes.

    Attributes:
        atom: row of the dictionary whose strongest items are listed.
        items: two item_ids whose shared atoms are listed.
        top_k: length of the list.
    """

    atom: int | None = None
    items: list[str] | None = None
    top_k: int = 20

    def __post_init__(self) -> None:
        """Raise ConfigError for questions that make no sense."""
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")
        require(self.items is None or len(self.items) == 2, "items", self.items, "two item_ids")
        if self.items is not None and self.atom is not None:
            raise ConfigError("atoms answers one of atom= and items= at a time")


def atoms(cfg: AtomsConfig) -> str:
    """Return the answer as a table.

    Raises:
        ConfigError: there is no such atom. UnknownItemError: no such item. SearchError: the codes
            are dense ones. BuildError: there are no codes.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    coded = Coded.current(workspace)
    names = Embeddings.open(coded.embeddings).items(list(NAMES))
    codes, items = Codes.open(coded.codes), ItemTable(names["item_id"], names["title"])
    dictionary = Compressor.open(coded.compressor).dictionary_of(codes)
    if cfg.items is not None:
        rows = _shared(codes, dictionary, items, cfg.items, cfg.top_k)
    elif cfg.atom is not None:
        limit = len(dictionary)
        require(0 <= cfg.atom < max(limit, 1), "atom", cfg.atom, f"0..{limit - 1}")
        rows = _top(codes, items, cfg.atom, cfg.top_k)
    else:
        rows = _most_used(codes, items, len(dictionary), cfg.top_k)
    return "\n".join(aligned(rows)) + "\n"


def _top(codes: Codes, items: ItemTable, atom: int, top_k: int) -> list[list[str]]:
    found = zip(*items_of_atom(codes, atom, top_k=top_k), strict=True)
    lines = [
        [items.titles[num] or "", items.item_ids[num], f"{value:+.3f}"] for num, value in found
    ]
    return [["title", "item_id", "value"], *lines]


def _shared(
    codes: Codes, dictionary: Floats, items: ItemTable, names: Sequence[str], top_k: int
) -> list[list[str]]:
    first, second = (items.num(name) for name in names)
    lines = [
        [
            _strongest(codes, items, each.atom),
            str(each.atom),
            f"{each.first:+.3f}",
            f"{each.second:+.3f}",
            f"{each.share:+.3f}",
        ]
        for each in shared_atoms(codes, dictionary, first, second)[:top_k]
    ]
    return [["strongest in", "atom", *names, "share"], *lines]


def _most_used(codes: Codes, items: ItemTable, code_dim: int, top_k: int) -> list[list[str]]:
    counts = atom_usage(codes, code_dim)
    order = np.argsort(-counts, kind="stable")[:top_k]
    lines = [[_strongest(codes, items, int(a)), str(a), str(counts[a])] for a in order if counts[a]]
    return [["strongest in", "atom", "items"], *lines]


def _strongest(codes: Codes, items: ItemTable, atom: int) -> str:
    nums, _ = items_of_atom(codes, atom, top_k=3)
    return " | ".join(items.titles[num] or items.item_ids[num] for num in nums)
