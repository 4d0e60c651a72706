"""The engine of a search: the index gives candidates, the model's weights score them exactly.

Letters: B users, N items, D size of the indexed vectors, H size of a latent, C candidates of one
user.

It knows items by number. The candidates of every ranking come from that ranking's own vectors: the
best of one are useless for another. Without an autoencoder the query is the mean of the profile's
unit vectors, the exact score their cosine, and `similar` the only ranking.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.arrays import Floats
from raysys.data.cells import AHEAD_S, Cells
from raysys.errors import SearchError
from raysys.index.request import SearchRequest
from raysys.index.shards import Searchable
from raysys.scoring.normaliser import N_BEST, Normaliser
from raysys.scoring.rankings import CONSUME_BIAS, N_CANDIDATES, SIMILAR, Needs, Ranking
from raysys.search.changes import Changed, Changes
from raysys.search.filters import Mask
from raysys.search.items import ItemTable
from raysys.search.neighbours import Neighbours, candidate_count
from raysys.search.opened import Opened
from raysys.search.query import Items, Ranked
from raysys.search.rescoring import best_of_all, best_of_some, summed
from raysys.search.stages import Stages
from raysys.search.steering import Limits, Steerings, steered_candidates
from raysys.search.users import seen_items
from raysys.timing.files import Timed

_CONSUME = Ranking("consume")
_NOBODY: Items = np.zeros(0, dtype=np.int32)


class Engine:
    """Makes lists of profiles. Calls are thread-safe.

    Args:
        opened: what is searched.
        items: the served catalogue.
        changes: since the index was built; None: there are none.

    Attributes:
        alive: [N] which items a list may hold: neither deleted nor replaced by a later row.
        n_items: how many.
        scorer: the autoencoder; None where the vectors are the user's own.
        normaliser: sums of P(consume) with the scorer of now; None without a model.
        neighbours: lists by cosine.
    """

    def __init__(self, opened: Opened, *, items: ItemTable, changes: Changes | None) -> None:
        self._items = items
        self._changes = changes
        self.codes = opened.codes
        self._changed: Changed | None = None
        if changes is not None:
            cosine = opened.embeddings.similarity == "cosine"
            self._changed = Changed(self.codes, changes, items.built, cosine=cosine)
        self._index: Searchable = self._changed or self.codes
        every = np.ones(len(items), dtype=np.bool_)
        self.alive = every if self._changed is None else self._changed.alive
        self.n_items = int(self.alive.sum())
        self._timed: Timed | None = None
        self._observing = threading.Lock()
        self.scorer, self.fitted_until = opened.scorer, opened.fitted_until
        self.normaliser: Normaliser | None = None
        if self.scorer is not None:
            self._spread = opened.spread
            if changes is not None and changes.timed is not None:
                self._follow(changes.timed)
            else:
                self._timed, self.normaliser = opened.timed, opened.normaliser
        width = self.scorer.width if self.scorer is not None else None
        fresh = changes.vectors if changes is not None else None
        self.neighbours = Neighbours.open(
            opened.embeddings, self._index, width=width, fresh=fresh, alive=self.alive
        )

    def compile(self) -> None:
        """Compile what is compiled, before anybody waits for it."""
        one = Cells.from_lists([[(0, 0)]])
        for ranking in map(Ranking, self.rankings if self.scorer is not None else ()):
            next(self.lists(one, top_k=1, ranking=ranking, exclude_seen=False), None)
        with suppress(SearchError):  # an item that nothing is known of has no neighbours
            self.neighbours.of_item(0, top_k=1)

    @property
    def counted_until(self) -> int | None:
        """UTC seconds that the counters of items stand at; None where lists do not follow time."""
        return None if self._timed is None else self._timed.counters.time

    def observe(self, items: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Count events of the build's items, and let lists follow.

        Args:
            items: [M] item_nums.
            times: [M] UTC seconds.

        Raises:
            SearchError: the model has no counters, or a time lies more than a day ahead: it would
                make everything before it count for nothing.
        """
        if len(times) and times.max() > time.time() + AHEAD_S:
            raise SearchError(f"timestamp={times.max()} lies more than a day ahead (UTC seconds)")
        with self._observing:
            if self._timed is None:
                raise SearchError("this build has no counters: its lists do not follow time")
            self._follow(self._timed.added(items, times))

    def _follow(self, timed: Timed) -> None:
        """Let the model's prior and the index's biases be those of the counters."""
        assert self.scorer is not None
        prior = timed.prior()
        self.codes = self.codes.with_bias(CONSUME_BIAS, prior)
        self._index = self.codes if self._changed is None else self._changed.over(self.codes)
        self.scorer = self.scorer.with_prior(prior)
        self.normaliser = Normaliser(self.scorer, *self._spread)
        self._timed = timed

    @property
    def rankings(self) -> tuple[str, ...]:
        """The rankings that it can give, the default first."""
        return self.scorer.available_rankings if self.scorer is not None else (SIMILAR,)

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
            probabilities=False,
        )
        result = np.full((history.n_users, top_k), -1, dtype=np.int32)
        for row, ranked in enumerate(lists):
            result[row, : len(ranked.item_nums)] = ranked.item_nums
        return result

    def lists(
        self,
        history: Cells,
        *,
        top_k: int,
        ranking: Ranking | None = None,
        rescore: bool = True,
        exclude_seen: bool = True,
        left_out: Sequence[Items] | None = None,
        allow: Mask | None = None,
        probabilities: bool = True,
        stages: Stages | None = None,
        steerings: Steerings = None,
    ) -> Iterator[Ranked]:
        """Yield the list of every user of `history` in order; other arguments as in `rank`.

        `left_out` are item_nums, by user, that no list holds whatever else is asked. `allow` tells
        which of all item_nums may be returned; None: all. Without `probabilities` a list holds only
        what its order needs. `stages` are told of encode and search. `steerings` are what users
        raise and mute; None: nothing.
        """
        stages = stages or Stages()
        check_length(top_k)
        ranking = self.checked(ranking or Ranking(self.rankings[0]))
        history = self.known(history)
        exclude, allow = self._limits(history, ranking, exclude_seen, left_out, allow)
        limits = Limits(exclude, self.alive, allow)
        steerings = steerings if any(steerings or ()) else None
        whole = exclude_seen and left_out is None  # their own alone
        if self.scorer is None:
            yield from self.neighbours.of_profiles(
                history,
                top_k=top_k,
                exclude=exclude,
                rescore=rescore,
                allow=allow,
                steerings=steerings,
            )
            return
        z = self.encode(history)
        stages.end("encode")
        normaliser = self.normaliser  # with its scorer: both of one moment
        assert normaliser is not None
        listed: dict[str, Any] = {"changes": self._changes, "top_k": top_k, "ranking": ranking}
        listed["bare"] = not probabilities
        if rescore and normaliser.exact:  # as cheap as an index, and nothing is missed
            yield from best_of_all(normaliser, z, limits, steerings=steerings, **listed)
            return
        n_candidates = candidate_count(top_k, len(self._items), rescore=rescore)
        asked = [(ranking, exclude)]
        gone = _NOBODY if self._changed is None else self._changed.few_gone
        alike = allow is None and gone is not None  # then the normaliser's best are found as well
        alike = alike and n_candidates <= N_CANDIDATES
        if rescore and probabilities and alike and not (ranking == _CONSUME and whole):
            asked.append((_CONSUME, history.item_lists))  # one pass over the dictionary for both
        found = self._search(z, asked, n_candidates, allow=allow)
        stages.end("search")
        log_z = np.zeros(history.n_users, dtype=np.float32)
        if rescore and probabilities:
            best = summed(found[-1][0], gone) if alike else None
            log_z = self.log_z(z, history, best, normaliser=normaliser)
        found_nums = [row[row >= 0] for row in found[0][0]]
        if not rescore:
            for found_row, row in zip(found_nums, found[0][1], strict=True):
                yield Ranked(found_row[:top_k], row[: len(found_row)][:top_k])
            return
        found_nums, shares = self._steered(z, found_nums, steerings, ranking, top_k, limits)
        yield from best_of_some(normaliser.scorer, z, found_nums, log_z, shares=shares, **listed)

    def _limits(
        self,
        history: Cells,
        ranking: Ranking,
        exclude_seen: bool,
        left_out: Sequence[Items] | None,
        allow: Mask | None,
    ) -> tuple[list[Items] | None, Mask | None]:
        """Return what the lists of users leave out, and which items they may hold; None: all."""
        exclude = seen_items(history, self._items) if exclude_seen else None
        if left_out is not None:
            own = exclude or [_NOBODY] * history.n_users
            exclude = [np.concatenate(pair) for pair in zip(own, left_out, strict=True)]
        n_encoded = self._n_encoded
        if self.scorer is None or len(self._items) == n_encoded:
            return exclude, allow
        if ranking.rule.needs is Needs.RATED:  # new items have no levels
            built = np.arange(len(self._items)) < n_encoded
            allow = built if allow is None else allow & built
        return exclude, allow

    def _steered(
        self,
        z: Floats,
        found: list[Items],
        steerings: Steerings,
        ranking: Ranking,
        top_k: int,
        limits: Limits,
    ) -> tuple[list[Items], list[Floats | None]]:
        """Return candidates of users z [B, H] and their shares, see `steered_candidates`."""
        if steerings is None:
            return found, [None] * len(found)
        exclude, _, allow = limits

        def more(row: int, size: int) -> Items:
            left, part = None if exclude is None else [exclude[row]], z[row : row + 1]
            return self.candidates(part, ranking, size, exclude=left, allow=allow)[0]

        return steered_candidates(found, steerings, limits, top_k=top_k, more=more)

    @property
    def _n_encoded(self) -> int:
        return len(self._items) if self.scorer is None else self._items.n_built

    def known(self, history: Cells) -> Cells:
        """Return the cells of items that profiles are made of; a log may have later ones."""
        if history.n_cells and history.item_num.max() >= self._n_encoded:
            return history.take(history.item_num < self._n_encoded)
        return history

    def log_z(
        self,
        z: Floats,
        history: Cells,
        best: Items | None = None,
        *,
        normaliser: Normaliser | None = None,
    ) -> Floats:
        """Return the log of every user's sum that P(consume) is divided by, [B].

        Args:
            z: latents [B, H] of `encode`.
            history: the profiles.
            best: [B, K] the best items by consume score that no profile holds, and others that are
                to be summed exactly, padded with -1; upserted ones are left out. None: they are
                searched.
            normaliser: the one to use; None: that of now.
        """
        normaliser = self.normaliser if normaliser is None else normaliser
        assert normaliser is not None
        own = history.item_lists
        if normaliser.exact:
            return normaliser.log_z(z, own)
        if best is None:
            query, weights = normaliser.scorer.query(z, _CONSUME)
            request = SearchRequest(query, top_k=N_BEST, weights=weights, exclude=own)
            best = self.codes.search(request)[0]
        return normaliser.log_z(z, own, best)

    def encode(self, history: Cells) -> Floats:
        """Return the latents [B, H] of profiles, by the model's items; see `Scorer.encode`."""
        assert self.scorer is not None
        known = history.item_num < self.scorer.n_items
        history = history if known.all() else history.take(known)
        return self.scorer.encode(history, self.fitted_until)

    def candidates(
        self,
        z: Floats,
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
        return self._search(z, [(ranking, exclude)], n_candidates, allow=allow)[0]

    def _search(
        self,
        z: Floats,
        asked: Sequence[tuple[Ranking, Sequence[Items] | None]],
        top_k: int,
        *,
        allow: Mask | None,
    ) -> list[tuple[Items, Floats]]:
        """Return what the index finds by each of some rankings, without what each excludes."""
        assert self.scorer is not None
        pairs = [self.scorer.query(z, ranking) for ranking, _ in asked]
        nobody = [_NOBODY] * len(z)
        nums, scores = self._index.search(
            SearchRequest(
                np.concatenate([query for query, _ in pairs]),
                weights=np.concatenate([weights for _, weights in pairs]),
                top_k=top_k,
                exclude=[items for _, exclude in asked for items in exclude or nobody],
                allow=allow,
            )
        )
        parts = [slice(n * len(z), (n + 1) * len(z)) for n in range(len(asked))]
        return [(nums[part], scores[part]) for part in parts]

    def query(
        self, history: Cells, ranking: Ranking
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what the index is asked with: vectors [B, D], weights of the biases [B, n].

        Raises:
            SearchError: there is no such ranking; or, without an autoencoder, a profile is empty.
        """
        if self.scorer is None:
            mean = self.neighbours.mean_of(history)
            return mean, np.zeros((len(mean), 0), dtype=np.float32)
        return self.scorer.query(self.encode(history), self.checked(ranking))

    def checked(self, ranking: Ranking) -> Ranking:
        """Return a ranking that can be given.

        Raises:
            SearchError: it cannot.
        """
        if ranking.name not in self.rankings:
            accepted = ", ".join(self.rankings)
            raise SearchError(
                f"ranking={ranking.name!r} is not what this build can give: "
                f"expected one of {accepted}"
            )
        return ranking


def check_length(top_k: int) -> None:
    """Raise SearchError for a list of no length."""
    if top_k < 1:
        raise SearchError(f"top_k={top_k} is not accepted: expected 1 or more")
