"""The catalogue without a user: an item, items by title, the popular and the recent ones.

N items, upserted rows after those of the build
"""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.compressor.embeddings import Embeddings
from raysys.errors import SearchError
from raysys.search.filters import Mask
from raysys.search.items import ItemTable
from raysys.search.query import Items, Ranked

COUNT, TIME = "n_fit", "first_seen"  # columns of logged items
_WORDS = 16  # of a title that are looked for
_NEVER = np.iinfo(np.int64).min


class Browse:
    """Looks into the items of embeddings; columns are read when they are first asked for.

    Args:
        embeddings: of the served items.
        items: the served catalogue.
    """

    def __init__(self, embeddings: Embeddings, items: ItemTable) -> None:
        self._embeddings, self._items = embeddings, items
        self._orders: dict[str, tuple[Items, NDArray[np.int64]]] = {}
        self._reading = threading.Lock()

    def recent(self, top_k: int, allowed: Mask) -> Ranked:
        """Return the newest items by their first event in the log.

        What came after the build is as new as its newest item, and stands before it. Items without
        an event are left out.

        Args:
            top_k: length of the list.
            allowed: [N] which items it may hold.

        Raises:
            SearchError: the log has no time.
        """
        return self._first(TIME, top_k, allowed, "this build knows no time of its items")

    def popular(self, top_k: int, allowed: Mask) -> Ranked:
        """Return the items with most rows of the log that the builds were fitted to.

        Args:
            top_k: length of the list.
            allowed: [N] which items it may hold.

        Raises:
            SearchError: the vectors come without a log.
        """
        return self._first(COUNT, top_k, allowed, "this build knows no counts of its items")

    def titled(self, text: str, top_k: int, allowed: Mask) -> Ranked:
        """Return items whose titles hold every word of a text, whatever their case.

        The whole title first, then titles that begin with the text, that hold it, and the others;
        of equals the shorter ones.

        Args:
            text: words.
            top_k: length of the list.
            allowed: [N] which items it may hold.

        Raises:
            SearchError: there is no word.
        """
        words = text.split()
        if not words:
            raise SearchError("title has no word")
        titles = self._items.titles.column
        hit = np.array(allowed)
        for word in words[:_WORDS]:
            met = pc.fill_null(pc.match_substring(titles, word, ignore_case=True), False)
            hit &= met.to_numpy()
        nums = np.flatnonzero(hit).astype(np.int32)
        found = pc.fill_null(pc.utf8_lower(titles.take(pa.array(nums))), "")
        wanted = pc.utf8_lower(pa.scalar(" ".join(words))).as_py()
        tests = (
            pc.equal(found, wanted),
            pc.starts_with(found, wanted),
            pc.match_substring(found, wanted),
        )
        far = np.full(len(nums), len(tests))
        for test in tests:
            far -= np.asarray(test)
        order = np.lexsort((nums, np.asarray(pc.utf8_length(found)), far))[:top_k]
        return Ranked(nums[order], -far[order].astype(np.float32))

    def _first(self, column: str, top_k: int, allowed: Mask, missing: str) -> Ranked:
        order, values = self._order(column)
        if not len(order):
            raise SearchError(missing)
        nums = order[allowed[order]][:top_k]
        return Ranked(nums, values[nums].astype(np.float64))

    def _order(self, column: str) -> tuple[Items, NDArray[np.int64]]:
        """Return item_nums by a column, highest first, and its values [N]; none without it."""
        with self._reading:
            if column not in self._orders:
                self._orders[column] = self._read(column)
            return self._orders[column]

    def _read(self, column: str) -> tuple[Items, NDArray[np.int64]]:
        built: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        if column in self._embeddings.columns:
            texts = self._embeddings.items([column])[column]
            if pa.types.is_integer(texts.type) and texts.null_count < len(texts):
                built = pc.fill_null(texts.cast(pa.int64()), _NEVER).to_numpy()
        if not len(built):
            return built.astype(np.int32), built
        fresh = np.arange(len(built), len(self._items), dtype=np.int32)
        replaced = self._items.replaced_by(fresh)  # what changed an item has its value
        new, old = fresh[replaced < 0], replaced[replaced >= 0]
        values = np.zeros(len(self._items), dtype=np.int64)
        values[: len(built)] = built
        values[fresh[replaced >= 0]] = built[old]
        if column == TIME:  # as new as the newest
            values[new] = built.max()
        order = np.lexsort((-np.arange(len(values)), -values.astype(np.float64))).astype(np.int32)
        return order[values[order] > _NEVER], values
