"""The served catalogue: items by external id and title, and answers named by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.compressor.embeddings import Embeddings
from raysys.data.schema import RatingLevels
from raysys.errors import UnknownItemError
from raysys.search.changes import Changes, joined_items
from raysys.search.query import Hit, Ranked, SimilarItem

_SHOWN = 5


class ItemTable:
    """The served catalogue: external ids and titles by item_num.

    Args:
        item_ids: of the build's items, then of upserted rows; a later row replaces an earlier one.
        titles: likewise.
        n_built: items of the build; default: all.
        deleted: ids that are never found, though a profile may hold them.
        encoded: profiles are encoded by a model, which knows the build's items only.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str | None],
        *,
        n_built: int | None = None,
        deleted: Sequence[str] = (),
        encoded: bool = False,
    ) -> None:
        self.item_ids = list(item_ids)
        self.titles = list(titles)
        self.n_built = len(self.item_ids) if n_built is None else n_built
        self.built = {i: num for num, i in enumerate(self.item_ids[: self.n_built])}
        fresh = {i: num for num, i in enumerate(self.item_ids) if num >= self.n_built}
        self._nums = self.built | fresh if fresh else self.built
        self._newer = {self.built[i]: num for i, num in fresh.items() if i in self.built}
        self._deleted = frozenset(deleted)
        self._encoded = encoded

    @classmethod
    def load(
        cls, embeddings: Embeddings, changes: Changes | None = None, *, encoded: bool = False
    ) -> ItemTable:
        """Read the items of embeddings (row number = item_num), and what changed."""
        table = embeddings.items(["item_id", "title"])
        n_built = len(table)
        if changes is not None:
            table = joined_items(table, changes)
        return cls(
            table["item_id"].to_pylist(),
            table["title"].to_pylist(),
            n_built=n_built,
            deleted=changes.deleted if changes is not None else (),
            encoded=encoded,
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def find(self, item_id: str) -> int | None:
        """Return the item_num of `item_id`, or None."""
        return None if item_id in self._deleted else self._nums.get(item_id)

    def in_profile(self, item_id: str) -> int | None:
        """Return the item_num by which a profile counts `item_id`, or None.

        What was liked still tells a taste when it is deleted.
        """
        return (self.built if self._encoded else self._nums).get(item_id)

    def with_newer(self, nums: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return item_nums and those of the rows that replaced them."""
        newer = [self._newer[num] for num in nums.tolist() if num in self._newer]
        return np.concatenate([nums, np.array(newer, dtype=np.int32)]) if newer else nums

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
            for num, text in enumerate(self.titles)
            if text is not None
            and wanted in text.casefold()
            and self.find(self.item_ids[num]) == num
        ]
        exact = [row for row in rows if row[1].casefold().strip() == wanted]
        found = exact or rows
        if len(found) == 1:
            return found[0][0]
        shown = ", ".join(f"{text!r} (item_id {item_id})" for item_id, text in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        reason = f"is several items: {shown}{more}" if found else "is no item's title"
        raise UnknownItemError(f"title {title!r} {reason}")


def hits_of(ranked: Ranked, items: ItemTable, levels: RatingLevels | None) -> list[Hit]:
    """Return a list as hits.

    Args:
        ranked: the list.
        items: the served catalogue.
        levels: of the model, to give each hit its level distribution; None: without.
    """
    nums = ranked.item_nums.tolist()
    columns = [ranked.scores, ranked.p_consume, ranked.p_like, ranked.expected_rating]
    values = [[None] * len(nums) if c is None else _numbers(c) for c in columns]
    hits = [
        Hit(items.item_ids[num], items.titles[num], *row)
        for num, row in zip(nums, zip(*values, strict=True), strict=True)
    ]
    if levels is not None and ranked.level_probs is not None:
        for hit, shares in zip(hits, ranked.level_probs, strict=True):
            if np.isfinite(shares).all():
                hit.levels = dict(zip(levels.names, shares.tolist(), strict=True))
    return hits


def similar_items(ranked: Ranked, items: ItemTable) -> list[SimilarItem]:
    """Return a list as items and their scores."""
    pairs = zip(ranked.item_nums.tolist(), ranked.scores.tolist(), strict=True)
    return [SimilarItem(items.item_ids[num], items.titles[num], score) for num, score in pairs]


def _numbers(column: NDArray[Any]) -> list[float | None]:
    """Return values as JSON knows them: None for what is not a number."""
    return [None if np.isnan(value) else value for value in column.tolist()]
