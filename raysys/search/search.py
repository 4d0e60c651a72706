"""Search: questions in external ids, answered by the engine of what is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.autoencoder.files import AutoencoderFacts
from raysys.data.cells import Cells
from raysys.errors import RaysysError, SearchError
from raysys.search import explain
from raysys.search.answers import Answers
from raysys.search.asked import Asking
from raysys.search.atoms import Atoms
from raysys.search.browse import Browse
from raysys.search.changes import Changes
from raysys.search.engine import Engine, check_length
from raysys.search.filters import Conditions, Filters, Mask
from raysys.search.items import ItemTable, similar_items
from raysys.search.opened import Opened
from raysys.search.query import (
    Answer,
    FoundItem,
    ItemDetails,
    RecommendQuery,
    SimilarItem,
)
from raysys.search.served import Served
from raysys.store.builds import Workspace

_FEW_ITEMS = 50_000  # that a flat index scans in a millisecond


class Search:
    """Answers queries over one index and what it was made from. Calls are thread-safe.

    Args:
        served: what is searched.
        users: read the stored users' histories, which only queries by user_id need.
        opened: of the same index, where it is at hand; None: it is opened.

    Attributes:
        served: as given.
        opened: what it has beside the changes.
        engine: makes lists by number.
        asking: reads queries.
        atoms: what codes are made of.
    """

    def __init__(self, served: Served, *, users: bool = True, opened: Opened | None = None) -> None:
        encoded = served.coded.autoencoder is not None
        self.served = served
        self.opened = Opened(served, users=users) if opened is None else opened
        self._embeddings, self._users = self.opened.embeddings, self.opened.users
        self._changes = Changes.open(served.changes) if served.changes is not None else None
        self._items = ItemTable.over(
            self.opened.built, self.opened.names, self._changes, encoded=encoded
        )
        self.engine = Engine(self.opened, items=self._items, changes=self._changes)
        self._levels = self.engine.scorer.levels if self.engine.scorer is not None else None
        self._filters = Filters(self._embeddings, self._changes)
        known, opened = (self._items, self._users, self._levels), self.opened
        # nothing here may hold this search, which is to go as soon as nobody asks it
        self.asking = Asking(self.engine, *known, strengths=lambda: opened.strengths)
        self.atoms = Atoms(self.opened, self.engine, self._items)
        self._browse = Browse(self._embeddings, self._items)
        self._answers = Answers(
            self.engine,
            asking=self.asking,
            browse=self._browse,
            items=self._items,
            levels=self._levels,
            atoms=self.atoms,
            allowed=self._filters.allowed,
            build_id=self.build_id,
            changes_id=self.changes_id,
        )
        if (changed := self._changes is not None) not in self.opened.compiled:
            self.engine.compile()
            self.opened.compiled.add(changed)

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        *,
        build_id: str | None = None,
        verify: bool = True,
        users: bool = True,
    ) -> Search:
        """Open the current index (or `build_id`) of a run; see `Served` for what is checked.

        Raises:
            BuildError: a build is missing, damaged, or was made from others than those that are
                there; the message names the file or the build.
        """
        return cls(Served.open(workspace, build_id=build_id, verify=verify), users=users)

    @property
    def build_id(self) -> str:
        """The build_id of the index."""
        return self.served.index.build_id

    @property
    def changes_id(self) -> str | None:
        """The build_id of the changes since the index was built; None without any."""
        return None if self.served.changes is None else self.served.changes.build_id

    @property
    def build_ids(self) -> dict[str, str]:
        """{kind: build_id} of everything that is served."""
        return self.served.build_ids

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifests say of the served set, as JSON values."""
        coded = self.served.coded
        shown = {"index": self.served.index.record(), "codes": coded.codes.record()}
        if coded.autoencoder is not None and self._levels is not None:
            facts = AutoencoderFacts.of(coded.autoencoder)
            shown["autoencoder"] = {
                "period": facts.period,
                "fitted_until": facts.fitted_until,
                "n_levels": facts.n_levels,
                "levels": list(self._levels.names),
                "liked": list(self._levels.liked),
            }
        return shown

    @property
    def n_items(self) -> int:
        """Number of items that a list may hold: neither deleted nor replaced by a later row."""
        return self.engine.n_items

    @property
    def n_users(self) -> int:
        """Number of stored users."""
        return len(self._users) if self._users is not None else 0

    def size_of(self, query: RecommendQuery) -> int:
        """Return how much an answer goes over: its list, its profile, its user's history.

        Where the index scans all items, of more than are scored in a millisecond, it is those.
        """
        size = max(query.k, len(query.profile or ()), self.size_of_scan)
        if query.user_id is not None and self._users is not None:
            size = max(size, self._users.size_of(query.user_id))
        return size

    @property
    def size_of_scan(self) -> int:
        """Number of items that every query goes over; 0 where a router names some, or few."""
        size = len(self._items)
        return size if self.served.index.record()["kind"] == "flat" and size > _FEW_ITEMS else 0

    @property
    def rankings(self) -> tuple[str, ...]:
        """The rankings that this build can give, the default first."""
        return self.engine.rankings

    @property
    def items(self) -> ItemTable:
        """The served catalogue."""
        return self._items

    def recommend(self, query: RecommendQuery) -> Answer:
        """Answer one query.

        An entry of a posted profile counts at the level of its rating, else of its event, else
        `users.default_level`. Entries outside the catalogue are listed and left out; an empty
        profile gets the prior. Items that came after the build tell the model nothing, but are not
        listed again.

        Raises:
            UnknownUserError: no stored user has this id.
            SearchError: a ranking, rating or event that the build does not know; or, without an
                autoencoder, a profile without a known item.
        """
        [answer] = self._answers.of([query])
        if isinstance(answer, RaysysError):
            raise answer
        return answer

    def recommend_all(self, queries: Sequence[RecommendQuery]) -> list[Answer | RaysysError]:
        """Answer several queries, those that ask alike in one pass; see `recommend`.

        Returns:
            In the order of the queries, an answer each, or what is wrong with it.
        """
        return self._answers.of(queries)

    def observe(self, item_ids: Sequence[str], timestamps: Sequence[int]) -> int:
        """Count new events in memory, so that answers from now on follow them.

        The counters of the build are not changed; `raysys update refresh=true` writes them.

        Args:
            item_ids: one per event; items that the model does not know are left out.
            timestamps: UTC seconds of each.

        Returns:
            How many were counted.

        Raises:
            SearchError: the model has no counters, or a time lies more than a day ahead.
        """
        events = zip(item_ids, timestamps, strict=True)
        numbered = ((self._items.built.get(i), t) for i, t in events)
        known = [(num, t) for num, t in numbered if num is not None]
        pairs = np.array(known, dtype=np.int64).reshape(-1, 2)
        self.engine.observe(pairs[:, 0], pairs[:, 1])
        return len(pairs)

    def similar(
        self,
        item_id: str,
        *,
        top_k: int = 20,
        allow: Conditions | None = None,
        deny: Conditions | None = None,
    ) -> list[SimilarItem]:
        """Return the items whose vectors have the highest cosine with that of `item_id`.

        Vectors of an autoencoder are compared in their consume block g.

        Args:
            item_id: an item of the catalogue.
            top_k: length of the list.
            allow: conditions on item attributes that must hold (see `filters`).
            deny: conditions none of which may hold.

        Raises:
            UnknownItemError: the catalogue does not hold the item.
        """
        check_length(top_k)
        num = self._items.num(item_id)
        mask = self.allowed(allow, deny)
        return similar_items(
            self.engine.neighbours.of_item(num, top_k=top_k, allow=mask), self._items
        )

    def similar_to(
        self,
        item_ids: Sequence[str],
        *,
        top_k: int = 20,
        allow: Conditions | None = None,
        deny: Conditions | None = None,
    ) -> list[SimilarItem]:
        """Return the items most like several together; see `similar`.

        They are compared with the mean of the items' unit vectors.

        Raises:
            UnknownItemError: the catalogue does not hold one of them.
        """
        check_length(top_k)
        nums = [self._items.num(item_id) for item_id in dict.fromkeys(item_ids)]
        together = Cells.from_lists([[(num, 0) for num in nums]])
        [ranked] = self.engine.neighbours.of_profiles(
            together,
            top_k=top_k,
            exclude=[np.array(nums, dtype=np.int32)],
            rescore=True,
            allow=self.allowed(allow, deny),
        )
        return similar_items(ranked, self._items)

    def nearest(
        self,
        vectors: NDArray[np.float32],
        *,
        top_k: int = 20,
        allow: Conditions | None = None,
        deny: Conditions | None = None,
    ) -> list[list[SimilarItem]]:
        """Return, for every query vector, the items with the highest cosine; see `similar`.

        Args:
            vectors: [Q, H] queries in the space of the indexed vectors (of their consume block,
                with an autoencoder).
            top_k: length of the lists.
            allow: as in `similar`.
            deny: as in `similar`.

        Raises:
            SearchError: a vector of another length, not finite, or zero.
        """
        check_length(top_k)
        rows, mask = np.asarray(vectors, dtype=np.float32), self.allowed(allow, deny)
        lists = self.engine.neighbours.of_vectors(rows, top_k=top_k, allow=mask)
        return [similar_items(ranked, self._items) for ranked in lists]

    def explain(self, item_id: str, query: RecommendQuery) -> explain.Explained:
        """Take apart the score by which the index found an item for a query.

        Raises:
            SearchError: the item came after the build and has no code yet, or codes have no atoms.
        """
        num = self._items.num(item_id)
        if num >= self._items.n_built:
            raise SearchError(f"item_id={item_id!r} came after the build: it has no code yet")
        history, _ = self.asking.history(query)
        vectors, weights = self.engine.query(history, query.order(self.rankings[0]))
        return explain.explain(
            self.engine.codes, vectors[0], weights[0], num, profile=history.item_num
        )

    def allowed(self, allow: Conditions | None, deny: Conditions | None) -> Mask | None:
        """Return which items may be returned under conditions on attributes; None: all."""
        return self._filters.allowed(allow, deny)

    def warm_as(self, other: Search) -> None:
        """Read beforehand what requests have another search read, and follow the same events."""
        self.asking.lately = other.asking.lately
        if other._filters.are_read:
            self._filters.attributes()
        if other.opened.has_strengths:
            with suppress(SearchError):  # other codes, without atoms
                _ = self.opened.strengths

    # -- without a user --------------------------------------------------------------------

    def popular(
        self, *, top_k: int = 20, allow: Conditions | None = None, deny: Conditions | None = None
    ) -> list[SimilarItem]:
        """Return what the model expects of a user of whom nothing is known, by P(consume).

        Where lists follow time, it is what is taken lately. Without a model it is the items with
        most rows of the log, by their number.

        Raises:
            SearchError: the build has neither a model nor a log.
        """
        check_length(top_k)
        if self.engine.scorer is None:
            ranked = self._browse.popular(top_k, self._listable(allow, deny))
            return similar_items(ranked, self._items)
        nobody = Cells.from_lists([[]])
        [ranked] = self.engine.lists(nobody, top_k=top_k, allow=self.allowed(allow, deny))
        assert ranked.p_consume is not None
        return similar_items(dataclasses.replace(ranked, scores=ranked.p_consume), self._items)

    def recent(
        self, *, top_k: int = 20, allow: Conditions | None = None, deny: Conditions | None = None
    ) -> list[SimilarItem]:
        """Return the newest items, scored by the UTC second of their first event in the log.

        Those that came after the build stand first, with the newest second.

        Raises:
            SearchError: the log has no time.
        """
        check_length(top_k)
        return similar_items(self._browse.recent(top_k, self._listable(allow, deny)), self._items)

    def titled(
        self,
        text: str,
        *,
        top_k: int = 20,
        allow: Conditions | None = None,
        deny: Conditions | None = None,
    ) -> list[FoundItem]:
        """Return items whose titles hold every word of a text; see `Browse.titled`."""
        check_length(top_k)
        nums = self._browse.titled(text, top_k, self._listable(allow, deny)).item_nums
        ids, titles = self._items.item_ids.of(nums), self._items.titles.of(nums)
        return [FoundItem(str(i), title) for i, title in zip(ids, titles, strict=True)]

    def details(self, item_ids: Sequence[str]) -> tuple[list[ItemDetails], list[str]]:
        """Return what is known of items, in their order, and the ids that are not known."""
        given = {item_id: self._items.find(item_id) for item_id in item_ids}
        known = {item_id: num for item_id, num in given.items() if num is not None}
        rows = self._filters.attributes().rows([*known.values()])
        found = [
            ItemDetails(item_id, self._items.titles[num], row)
            for (item_id, num), row in zip(known.items(), rows, strict=True)
        ]
        return found, [item_id for item_id in given if item_id not in known]

    def _listable(self, allow: Conditions | None, deny: Conditions | None) -> Mask:
        """Return which items [N] a list may hold."""
        mask, alive = self.allowed(allow, deny), self.engine.alive
        return alive if mask is None else mask & alive
