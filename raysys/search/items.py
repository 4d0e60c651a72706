"""The served catalogue: items by external id and title, and answers named by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.compressor.embeddings import Embeddings
from raysys.data.schema import RatingLevels
from raysys.errors import UnknownItemError
from raysys.search.changes import Changes
from raysys.search.ids import Ids, Texts
from raysys.search.query import Hit, Ranked, SimilarItem
from raysys.store.builds import Build

ITEM_NAMES = "names/items"  # of an index build
NAMES = ("item_id", "title")  # their columns
_SHOWN = 5
_COLUMNS = ("scores", "p_consume", "p_like", "expected_rating")  # of `Hit`, in its order


class ItemTable:
    """The served catalogue: external ids and titles by item_num.

    Args:
        item_ids: of the build's items, then of upserted rows; a later row replaces an earlier one.
        titles: likewise.
        n_built: items of the build; default: all.
        deleted: ids that are never found, though a profile may hold them.
        encoded: profiles are encoded by a model, which knows the build's items only.
        built: the table of the build's ids; None: it is made.

    Attributes:
        item_ids, titles: by item_num.
        n_built: as given.
        built: {item_id: item_num} of the build's items.
    """

    def __init__(
        self,
        item_ids: Sequence[str] | pa.ChunkedArray,
        titles: Sequence[str | None] | pa.ChunkedArray,
        *,
        n_built: int | None = None,
        deleted: Sequence[str] = (),
        encoded: bool = False,
        built: Ids | None = None,
    ) -> None:
        self.item_ids, self.titles = Texts(item_ids), Texts(titles)
        self.n_built = len(self.item_ids) if n_built is None else n_built
        ids = self.item_ids.column
        self.built = Ids.of(ids.slice(0, self.n_built)) if built is None else built
        fresh = ids.slice(self.n_built).to_pylist()
        self._fresh = {i: num for num, i in enumerate(fresh, start=self.n_built)}
        self._newer = {self.built[i]: num for i, num in self._fresh.items() if i in self.built}
        self._deleted = frozenset(deleted)
        self._encoded = encoded

    @classmethod
    def over(
        cls, built: Ids, names: pa.Table, changes: Changes | None, *, encoded: bool = False
    ) -> ItemTable:
        """Return the items of a build and what changed since; see `open_names` for the first."""
        table = names if changes is None else _with_fresh(names, changes.items)
        return cls(
            table["item_id"],
            table["title"],
            n_built=len(names),
            deleted=changes.deleted if changes is not None else (),
            encoded=encoded,
            built=built,
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def find(self, item_id: str) -> int | None:
        """Return the item_num of `item_id`, or None."""
        return None if item_id in self._deleted else self._num(item_id)

    def in_profile(self, item_id: str) -> int | None:
        """Return the item_num by which a profile counts `item_id`, or None.

        What was liked still tells a taste when it is deleted.
        """
        return self.built.find(item_id) if self._encoded else self._num(item_id)

    def upserted(self, item_id: str) -> int | None:
        """Return the item_num of an upserted item that no build knows yet, or None."""
        return None if item_id in self.built else self._fresh.get(item_id)

    def _num(self, item_id: str) -> int | None:
        fresh = self._fresh.get(item_id)
        return self.built.find(item_id) if fresh is None else fresh

    def with_newer(self, nums: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return item_nums and those of the rows that replaced them."""
        newer = [self._newer[num] for num in nums.tolist() if num in self._newer]
        return np.concatenate([nums, np.array(newer, dtype=np.int32)]) if newer else nums

    def replaced_by(self, nums: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the item_nums of the build that upserted rows replaced, -1 where none."""
        older = {newer: old for old, newer in self._newer.items()}
        return np.array([older.get(num, -1) for num in nums.tolist()], dtype=np.int32)

    def num(self, item_id: str) -> int:
        """Return the item_num of `item_id`.

        Raises:
            UnknownItemError: the catalogue does not hold it.
        """
        found = self.find(item_id)
        if found is None:
            raise UnknownItemError(
                f"item_id={item_id!r} is not in the catalogue of {len(self)} items"
            )
        return found

    def by_title(self, title: str) -> str:
        """Return the id of the one item with this title, or whose title holds this text.

        Case does not matter. Raises:
            UnknownItemError: there is none, or there are several; the message lists some.
        """
        wanted = title.casefold().strip()
        rows = [
            (self.item_ids[num], text)
            for num, text in enumerate(self.titles.column.to_pylist())
            if text is not None
            and wanted in text.casefold()
            and self.find(self.item_ids[num]) == num
        ]
        exact = [row for row in rows if row[1].casefold().strip() == wanted]
        found = exact or rows
        if len(found) == 1:
            return str(found[0][0])
        shown = ", ".join(f"{text!r} (item_id {item_id})" for item_id, text in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        reason = f"is several items: {shown}{more}" if found else "is no item's title"
        raise UnknownItemError(f"title {title!r} {reason}")


def open_names(embeddings: Embeddings, index: Build) -> tuple[Ids, pa.Table]:
    """Return the ids of the items of embeddings as a table, and their ids and titles.

    They are mapped where the index build keeps them, else read. Row number = item_num.
    """
    if f"{ITEM_NAMES}.arrow" in index.files():
        return Ids.open(index, ITEM_NAMES)
    table = embeddings.items(list(NAMES))
    return Ids.of(table["item_id"]), table


def _with_fresh(names: pa.Table, fresh: pa.Table) -> pa.Table:
    """Return names with those of upserted rows behind, none of them copied."""
    kinds = names.schema
    columns = {
        name: fresh[name] if name in fresh.column_names else pa.nulls(len(fresh))
        for name in kinds.names
    }
    return pa.concat_tables([names, pa.table(columns).cast(kinds)])


def hits_of(
    lists: Sequence[Ranked], items: ItemTable, levels: RatingLevels | None
) -> list[list[Hit]]:
    """Return lists as hits.

    Args:
        lists: what was found.
        items: the served catalogue.
        levels: of the model, to give each hit its level distribution; None: without.
    """
    nums = np.concatenate([ranked.item_nums for ranked in lists])
    columns = [_numbers(lists, name) for name in _COLUMNS]
    hits = [*map(Hit, items.item_ids.of(nums), items.titles.of(nums), *columns)]
    found, start = [], 0
    for ranked in lists:
        found.append(hits[start : start + len(ranked.item_nums)])
        start += len(ranked.item_nums)
        if levels is not None and ranked.level_probs is not None:
            for hit, shares in zip(found[-1], ranked.level_probs, strict=True):
                if np.isfinite(shares).all():
                    hit.levels = dict(zip(levels.names, shares.tolist(), strict=True))
    return found


def _numbers(lists: Sequence[Ranked], name: str) -> list[float | None]:
    """Return a column of all lists as JSON knows it: None for what is not there or no number."""
    columns = [
        np.full(len(ranked.item_nums), np.nan) if column is None else column
        for ranked in lists
        for column in (getattr(ranked, name),)
    ]
    column = np.concatenate(columns) if len(columns) > 1 else columns[0]
    values: list[float | None] = column.tolist()
    missing = np.isnan(column)
    if missing.any():
        for place in np.flatnonzero(missing).tolist():
            values[place] = None
    return values


def similar_items(ranked: Ranked, items: ItemTable) -> list[SimilarItem]:
    """Return a list as items and their scores."""
    ids, titles = items.item_ids.of(ranked.item_nums), items.titles.of(ranked.item_nums)
    rows = zip(ids, titles, ranked.scores.tolist(), strict=True)
    return [SimilarItem(str(item_id), title, score) for item_id, title, score in rows]
