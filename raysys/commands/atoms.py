"""Atoms: what the sparse codes of a run stand for, as a table.

Examples:
    raysys atoms run=R                       the atoms in use, most used first, with an item each
    raysys atoms run=R atom=17 top_k=10      the items in which an atom is strongest
    raysys atoms run=R 'items=["1193","661"]'  the atoms that two items share
    raysys atoms run=R names=propose         names for all atoms, into a file of the run to edit
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from raysys.compressor.atoms import atom_usage, items_of_atom, shared_atoms
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.compressor.files import Coded, Compressor
from raysys.config import JobConfig, require, require_run
from raysys.data.arrays import Floats
from raysys.errors import ConfigError
from raysys.index.index import Index
from raysys.index.strengths import Strengths
from raysys.reports.tables import aligned
from raysys.search.atom_names import (
    AtomName,
    path_of,
    proposed_again,
    read_names,
    write_names,
)
from raysys.search.atom_proposals import proposals
from raysys.search.items import NAMES, ItemTable
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)


@dataclasses.dataclass
class AtomsConfig(JobConfig):
    """One question about the atoms of the current codes.

    Attributes:
        atom: row of the dictionary whose strongest items are listed.
        items: two item_ids whose shared atoms are listed.
        names: `propose`: name every atom by what its strongest items have in common, into a file
            of the run. What a person changed there stays.
        top_k: length of the list.
    """

    atom: int | None = None
    items: list[str] | None = None
    names: str | None = None
    top_k: int = 20

    def __post_init__(self) -> None:
        """Raise ConfigError for questions that make no sense."""
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")
        require(self.items is None or len(self.items) == 2, "items", self.items, "two item_ids")
        require(self.names in (None, "propose"), "names", self.names, "propose")
        if sum(key is not None for key in (self.items, self.atom, self.names)) > 1:
            raise ConfigError("atoms answers one of atom=, items= and names= at a time")


def atoms(cfg: AtomsConfig) -> str:
    """Return the answer as a table.

    Raises:
        ConfigError: there is no such atom. UnknownItemError: no such item. SearchError: the codes
            are dense ones. BuildError: there are no codes. DataError: the file of names is not as
            it should be.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    coded = Coded.current(workspace)
    names = Embeddings.open(coded.embeddings).items(list(NAMES))
    codes, items = Codes.open(coded.codes), ItemTable(names["item_id"], names["title"])
    dictionary = Compressor.open(coded.compressor).dictionary_of(codes)
    if cfg.names is not None:
        return _propose(coded, codes, dictionary)
    if cfg.items is not None:
        rows = _shared(codes, dictionary, items, cfg.items, cfg.top_k)
    elif cfg.atom is not None:
        limit = len(dictionary)
        require(0 <= cfg.atom < max(limit, 1), "atom", cfg.atom, f"0..{limit - 1}")
        rows = _top(codes, items, cfg.atom, cfg.top_k)
    else:
        called = read_names(coded.compressor, n_atoms=len(dictionary))
        rows = _most_used(codes, items, called, len(dictionary), cfg.top_k)
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


def _most_used(
    codes: Codes, items: ItemTable, called: Mapping[int, AtomName], code_dim: int, top_k: int
) -> list[list[str]]:
    counts = atom_usage(codes, code_dim)
    order = np.argsort(-counts, kind="stable")[:top_k]
    used = [int(atom) for atom in order if counts[atom]]
    lines = [[_strongest(codes, items, atom), str(atom), str(counts[atom])] for atom in used]
    if not called:
        return [["strongest in", "atom", "items"], *lines]
    names = [called[atom].name if atom in called else "" for atom in used]
    named = [[name, *line] for name, line in zip(names, lines, strict=True)]
    return [["name", "strongest in", "atom", "items"], *named]


def _propose(coded: Coded, codes: Codes, dictionary: Floats) -> str:
    """Write names into the file of the run, and return it as text."""
    embeddings = Embeddings.open(coded.embeddings)
    index = Index(
        kind="flat",
        similarity=embeddings.similarity,
        codes=codes,
        bias=np.zeros((codes.n_items, 0), dtype=np.float32),
        dictionary=dictionary,
    )
    strengths = Strengths(index)
    before = read_names(coded.compressor, n_atoms=len(dictionary))
    names = proposed_again(before, proposals(strengths, embeddings.items()))
    write_names(coded.compressor, names)
    n_corrected = sum(entry.is_corrected for entry in names.values())
    log.info(
        "names written path=%s atoms=%d corrected=%d",
        *(coded.compressor.storage.url(path_of(coded.compressor)), len(names), n_corrected),
    )
    lines = [
        [str(atom), entry.name, "" if entry.is_corrected else "proposed"]
        for atom, entry in names.items()
    ]
    return "\n".join(aligned([["atom", "name", ""], *lines], left=[1, 2])) + "\n"


def _strongest(codes: Codes, items: ItemTable, atom: int) -> str:
    nums, _ = items_of_atom(codes, atom, top_k=3)
    return " | ".join(items.titles[num] or items.item_ids[num] for num in nums)
