"""Search: a profile becomes a query, the index gives candidates, the model scores them exactly.

Letters: B users, N items, D size of the indexed vectors, C candidates of one user.

The candidates of every ranking come from that ranking's own vectors: the best of one are useless
for another. Without an autoencoder the query is the mean of the profile's unit vectors, the exact
score their cosine, and `similar` the only ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.files import Autoencoder, AutoencoderFacts
from raysys.autoencoder.linear_form import retrieval_query
from raysys.autoencoder.rankings import SIMILAR, Needs, Ranking
from raysys.compressor.embeddings import Embeddings
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.errors import SearchError
from raysys.index.files import open_index
from raysys.index.request import SearchRequest
from raysys.index.shards import Searchable
from raysys.search import explain
from raysys.search.changes import Changed, Changes
from raysys.search.filters import Attributes, Conditions, Mask
from raysys.search.items import ItemTable, hits_of, similar_items
from raysys.search.neighbours import Neighbours, candidate_count
from raysys.search.query import (
    Answer,
    Items,
    Ranked,
    RecommendQuery,
    SimilarItem,
    UnknownUserError,
    conditions,
)
from raysys.search.rescoring import best_of, encode
from raysys.search.served import Served
from raysys.search.users import UserStore, posted_cells, seen_items
from raysys.store.builds import Workspace


class Search:
    """Answers queries over one index and what it was made from. Calls are thread-safe.

    Args:
        served: what is searched.
        users: read the stored users' histories, which only queries by user_id need.
    """

    def __init__(self, served: Served, *, users: bool = True) -> None:
        coded = served.coded
        self._served = served
        self._embeddings = Embeddings.open(coded.embeddings)
        self._changes = Changes.open(served.changes) if served.changes is not None else None
        encoded = coded.autoencoder is not None
        self._items = ItemTable.load(self._embeddings, self._changes, encoded=encoded)
        self._codes = open_index(served.index, coded)
        self._index: Searchable = self._codes
        if self._changes is not None:
            cosine = self._embeddings.similarity == "cosine"
            self._index = Changed(self._codes, self._changes, self._items.built, cosine=cosine)
        self._attributes: Attributes | None = None
        self._model = self._levels = self._fitted_until = self._users = None
        if coded.autoencoder is not None:
            autoencoder = Autoencoder.open(coded.autoencoder)
            self._model = autoencoder.model
            self._levels = self._model.levels
            self._fitted_until = autoencoder.facts.fitted_until
        width = self._model.width if self._model is not None else None
        fresh = self._changes.vectors if self._changes is not None else None
        self._neighbours = Neighbours.open(self._embeddings, self._index, width=width, fresh=fresh)
        if users and coded.profiles is not None:
            self._users = UserStore.load(Profiles.open(coded.profiles))

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
        return self._served.index.build_id

    @property
    def build_ids(self) -> dict[str, str]:
        """{kind: build_id} of everything that is served."""
        return self._served.build_ids

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifests say of the served set, as JSON values."""
        coded = self._served.coded
        shown = {"index": self._served.index.record(), "codes": coded.codes.record()}
        if coded.autoencoder is not None and self._levels is not None:
            facts = AutoencoderFacts.of(coded.autoencoder)
            shown["autoencoder"] = {
                "period": facts.period,
                "fitted_until": facts.fitted_until,
                "n_levels": facts.n_levels,
                "levels": list(self._levels.names),
            }
        return shown

    @property
    def n_items(self) -> int:
        """Size of the item_num space: the build's items, then upserted ones."""
        return len(self._items)

    @property
    def n_users(self) -> int:
        """Number of stored users."""
        return len(self._users) if self._users is not None else 0

    @property
    def rankings(self) -> tuple[str, ...]:
        """The rankings that this build can give, the default first."""
        return self._model.available_rankings if self._model is not None else (SIMILAR,)

    @property
    def items(self) -> ItemTable:
        """The served catalogue."""
        return self._items

    def recommend(self, query: RecommendQuery) -> Answer:
        """Answer one query.

        An entry of a posted profile counts at the level of its rating, else of its event, else
        `users.default_level`. Entries outside the catalogue are listed and left out; an
        empty profile gets the prior.

        Raises:
            UnknownUserError: no stored user has this id.
            SearchError: a ranking, rating or event that the build does not know; or, without an
                autoencoder, a profile without a known item.
        """
        history, unknown = self._history(query)
        ranked = next(
            self.lists(
                history,
                top_k=query.k,
                ranking=query.order(self.rankings[0]),
                exclude_seen=query.exclude_seen,
                allow=self.allowed(conditions(query.allow), conditions(query.deny)),
            )
        )
        hits = hits_of(ranked, self._items, self._levels if query.levels else None)
        return Answer(self.build_id, query.ranking or self.rankings[0], unknown, hits)

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
        _check_length(top_k)
        num = self._items.num(item_id)
        mask = self.allowed(allow, deny)
        return similar_items(self._neighbours.of_item(num, top_k=top_k, allow=mask), self._items)

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
        _check_length(top_k)
        mask = self.allowed(allow, deny)
        lists = self._neighbours.of_vectors(_array(vectors), top_k=top_k, allow=mask)
        return [similar_items(ranked, self._items) for ranked in lists]

    def explain(self, item_id: str, query: RecommendQuery) -> explain.Explained:
        """Take apart the score by which the index found an item for a query.

        Raises:
            SearchError: the item came after the build and has no code yet, or codes have no atoms.
        """
        ranking = self._checked(query.order(self.rankings[0]))
        num = self._items.num(item_id)
        if num >= self._items.n_built:
            raise SearchError(f"item_id={item_id!r} came after the build: it has no code yet")
        history, _ = self._history(query)
        if self._model is None:
            vector = self._neighbours.mean_of(history)[0]
            weights = np.zeros(0, dtype=np.float32)
        else:
            both = retrieval_query(self._model, self.encode(history), ranking)
            vector, weights = (_array(part)[0] for part in both)
        return explain.explain(self._codes, vector, weights, num, profile=history.item_num)

    def allowed(self, allow: Conditions | None, deny: Conditions | None) -> Mask | None:
        """Return which items may be returned under conditions on attributes; None: all."""
        if not allow and not deny:
            return None
        if self._attributes is None:
            self._attributes = Attributes.load(self._embeddings, self._changes)
        return self._attributes.mask(allow, deny)

    def rank(
        self,
        history: Cells,
        *,
        top_k: int,
        ranking: Ranking | None = None,
        rescore: bool = True,
        exclude_seen: bool = True,
    ) -> Items:
        """Return the item_nums of every user's list, int32 [B, top_k], padded with -1.

        Args:
            history: the profiles; cells outside the served catalogue are left out.
            top_k: length of the lists, up to N.
            ranking: one of `rankings`; None takes the first.
            rescore: False keeps the order of the index alone.
            exclude_seen: leave out the items of the history.
        """
        lists = self.lists(
            history,
            top_k=top_k,
            ranking=ranking,
            rescore=rescore,
            exclude_seen=exclude_seen,
        )
        result = np.full((history.n_users, top_k), -1, dtype=np.int32)
        for row, ranked in enumerate(lists):
            result[row, : len(ranked.item_nums)] = ranked.item_nums
        return result

    @torch.inference_mode()
    def lists(
        self,
        history: Cells,
        *,
        top_k: int,
        ranking: Ranking | None = None,
        rescore: bool = True,
        exclude_seen: bool = True,
        allow: Mask | None = None,
    ) -> Iterator[Ranked]:
        """Yield the list of every user of `history` in order; arguments as in `rank`.

        `allow` [n_items] tells which items may be returned; None: all.
        """
        _check_length(top_k)
        ranking = self._checked(ranking or Ranking(self.rankings[0]))
        known = self.n_items if self._model is None else self._items.n_built
        if history.n_cells and history.item_num.max() >= known:
            history = history.take(history.item_num < known)
        seen = seen_items(history, self._items) if exclude_seen else None
        if self._model is None:
            yield from self._neighbours.of_profiles(
                history, top_k=top_k, exclude=seen, rescore=rescore, allow=allow
            )
            return
        if ranking.rule.needs is Needs.RATED and self.n_items > known:  # new items have no levels
            built = np.arange(self.n_items) < known
            allow = built if allow is None else allow & built
        z = self.encode(history)
        n_candidates = candidate_count(top_k, self.n_items, rescore=rescore)
        nums, scores = self.candidates(z, ranking, n_candidates, exclude=seen, allow=allow)
        for row in range(history.n_users):
            found = nums[row][nums[row] >= 0]
            if rescore:
                yield best_of(
                    self._model,
                    z[row],
                    found,
                    changes=self._changes,
                    top_k=top_k,
                    ranking=ranking,
                )
            else:
                yield Ranked(found[:top_k], scores[row][: len(found)][:top_k])

    def encode(self, history: Cells) -> torch.Tensor:
        """Return the latents [B, H] of profiles; see `rescoring.encode`."""
        assert self._model is not None
        return encode(self._model, history, self._fitted_until)

    @torch.inference_mode()
    def candidates(
        self,
        z: torch.Tensor,
        ranking: Ranking,
        n_candidates: int,
        *,
        exclude: Sequence[Items] | None = None,
        allow: Mask | None = None,
    ) -> tuple[Items, NDArray[np.float32]]:
        """Return what the index alone finds: item_nums and scores [B, n_candidates].

        Args:
            z: latents [B, H] of `encode`.
            ranking: one of `rankings`.
            n_candidates: per user; rows with fewer are padded with -1.
            exclude: per user, item_nums to leave out.
            allow: [n_items] which items may be returned; None: all.
        """
        assert self._model is not None
        query, weights = retrieval_query(self._model, z, ranking)
        return self._index.search(
            SearchRequest(
                _array(query),
                weights=_array(weights),
                top_k=n_candidates,
                exclude=exclude,
                allow=allow,
            )
        )

    # -- internals -------------------------------------------------------------------------

    def _checked(self, ranking: Ranking) -> Ranking:
        if ranking.name not in self.rankings:
            accepted = ", ".join(self.rankings)
            raise SearchError(
                f"ranking={ranking.name!r} is not what this build can give: "
                f"expected one of {accepted}"
            )
        return ranking

    def _history(self, query: RecommendQuery) -> tuple[Cells, list[str]]:
        if query.user_id is not None:
            if self._users is None:
                raise UnknownUserError(f"user_id={query.user_id!r}: this build stores no users")
            return self._users.history(query.user_id), []
        assert query.profile is not None
        now = self._fitted_until or 0
        newest = max((e.timestamp or now for e in query.profile), default=now)
        return posted_cells(
            query.profile, items=self._items, levels=self._levels, now=max(now, newest)
        )


def _check_length(top_k: int) -> None:
    if top_k < 1:
        raise SearchError(f"top_k={top_k} is not accepted: expected 1 or more")


def _array(values: torch.Tensor | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)
