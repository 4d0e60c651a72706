"""Names for atoms, proposed from what their strongest items have in common.

    S atoms, N items, F features: values of attributes, and words of titles

A feature speaks for an atom by p log(p / q), p being its share among the atom's strongest items,
weighted by how much they hold, and q its share among all items: it has to be frequent there and
rare elsewhere. The best one or two are the name, else the title of the strongest item. The same
codes and items give the same names.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from raysys.errors import SearchError
from raysys.index.strengths import Strengths
from raysys.search.attribute_values import AttributeValues
from raysys.search.browse import COUNT, TIME

_LEAST_ITEMS = 3  # of an atom that have a feature
_LEAST_SHARE = 0.3  # of an atom's items, by weight
_LEAST_RATIO = 1.5  # to the share among all items
_MOST_OF_VALUE, _MOST_OF_WORD = 0.5, 0.05  # of all items, beyond which a feature says nothing
_PARTS = 2  # features of a name
_LONGEST = 40  # characters of a feature
_NO_ATTRIBUTES = ("item_num", "item_id", "title", COUNT, TIME)
_WORD = re.compile(r"[^\W\d_]{3,}")


def proposals(strengths: Strengths, items: pa.Table) -> dict[int, str]:
    """Return a name for every atom that some item holds.

    Args:
        strengths: of the atoms.
        items: of all items: item_id, title and attributes, in item_num order.
    """
    texts, has = _features(items)
    atoms = np.flatnonzero(strengths.n_items)
    nums, values = strengths.strongest[atoms], strengths.values[atoms]
    row, place = np.nonzero(nums >= 0)
    shape = (len(atoms), len(items))
    held = values[row, place] / values.sum(axis=1)[row]
    shares, counts = (
        (sparse.csr_array((data, (row, nums[row, place])), shape=shape) @ has).sorted_indices()
        for data in (held, np.ones(len(row)))  # equal places: nothing is negative
    )
    at = np.repeat(np.arange(len(atoms)), np.diff(shares.indptr))
    feature, share = shares.indices, shares.data
    everywhere = np.asarray(has.sum(axis=0)).reshape(-1) / max(len(items), 1)
    ratio = share / everywhere[feature]
    speaks = (share >= _LEAST_SHARE) & (ratio >= _LEAST_RATIO) & (counts.data >= _LEAST_ITEMS)
    at, feature = at[speaks], feature[speaks]
    weight = (share * np.log(np.maximum(ratio, 1)))[speaks]
    chosen: dict[int, list[str]] = {}
    for k in np.lexsort((feature, -weight)):
        parts = chosen.setdefault(int(at[k]), [])
        text = texts[feature[k]]
        if len(parts) < _PARTS and text.casefold() not in map(str.casefold, parts):
            parts.append(text)
    titles, ids = items["title"], items["item_id"]
    names: dict[int, str] = {}
    used: set[str] = set()
    for k in np.argsort(-strengths.n_items[atoms], kind="stable").tolist():
        strongest = int(nums[k, 0])
        shown = _printable(titles[strongest].as_py() or ids[strongest].as_py())
        name = ", ".join(chosen.get(k, []))
        if not name or name in used:  # of alike atoms the one of most items has the short name
            name = f"{name}: {shown}" if name else shown
        if name in used:
            name = f"{name} ({atoms[k]})"
        used.add(name)
        names[int(atoms[k])] = name
    return dict(sorted(names.items()))


def _features(items: pa.Table) -> tuple[list[str], sparse.csr_array]:
    """Return the features' texts [F], and which items [N, F] have them."""
    rows: list[int] = []
    columns: list[int] = []
    texts: list[str] = []
    places: dict[tuple[str, str], int] = {}

    def add(item: int, kind: str, text: str) -> None:
        key = kind, text.casefold()
        if key not in places:
            places[key] = len(texts)
            texts.append(_printable(text))
        rows.append(item)
        columns.append(places[key])

    for name in items.column_names:
        if name in _NO_ATTRIBUTES:
            continue
        try:
            values = AttributeValues(name, items[name].combine_chunks())
        except SearchError:  # objects
            continue
        if values.numeric or values.temporal:
            continue
        for item, text in zip(values.row.tolist(), values.text.to_pylist(), strict=True):
            if len(text) <= _LONGEST:
                add(item, name, text)
    for item, title in enumerate(items["title"].to_pylist()):
        for word in _WORD.findall(title or ""):
            add(item, "title", word)
    shape = (len(items), len(texts))
    has = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    has.data[:] = 1  # one item may have a word twice
    frequent: NDArray[np.float64] = np.asarray(has.sum(axis=0)).reshape(-1)
    words = np.array([kind == "title" for kind, _ in places], dtype=np.bool_)
    most = np.where(words, _MOST_OF_WORD, _MOST_OF_VALUE) * len(items)
    kept = np.flatnonzero((frequent >= _LEAST_ITEMS) & (frequent <= most))
    return [texts[k] for k in kept], has[:, kept]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).strip()[:200]
