"""Lists for queries: those that ask alike are answered in one pass of the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from raysys.data.cells import concat
from raysys.data.schema import RatingLevels
from raysys.errors import RaysysError
from raysys.search.asked import Asked, Asking
from raysys.search.atoms import Atoms
from raysys.search.browse import Browse
from raysys.search.engine import Engine
from raysys.search.filters import Conditions, Mask
from raysys.search.items import ItemTable, hits_of, similar_items
from raysys.search.pages import cursor_of
from raysys.search.query import Answer, Hit, Ranked, RecommendQuery, conditions
from raysys.search.stages import Stages

_REASONS = 3  # items of a profile that are named with a hit

Allowed = Callable[[Conditions | None, Conditions | None], Mask | None]


class Answers:
    """Makes answers. Calls are thread-safe.

    Args:
        engine: makes the lists.
        asking: reads the queries.
        browse: knows what is popular where no model does.
        items: the served catalogue.
        levels: of the model; None without one.
        atoms: says what codes are made of.
        allowed: which items may be returned under conditions `allow` and `deny`; None: all.
        build_id, changes_id: of what is served.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        asking: Asking,
        browse: Browse,
        items: ItemTable,
        levels: RatingLevels | None,
        atoms: Atoms,
        allowed: Allowed,
        build_id: str,
        changes_id: str | None,
    ) -> None:
        self._engine, self._asking, self._browse = engine, asking, browse
        self._items, self._levels, self._allowed = items, levels, allowed
        self._build_id, self._changes_id, self._atoms = build_id, changes_id, atoms

    def of(self, queries: Sequence[RecommendQuery]) -> list[Answer | RaysysError]:
        """Return, in the order of the queries, an answer each, or what is wrong with it."""
        stages = Stages()
        found: dict[int, Answer | RaysysError] = {}
        groups: dict[Hashable, dict[int, Asked]] = {}
        for place, query in enumerate(queries):
            try:
                asked = self._asking.read(query)
            except RaysysError as error:
                found[place] = error
            else:
                groups.setdefault(asked.alike if len(queries) > 1 else "", {})[place] = asked
        stages.end("history")
        for group in groups.values():
            found |= zip(group, self._given_or_not([*group.values()], stages), strict=True)
        took_ms = stages.took_ms
        for answer in found.values():
            if isinstance(answer, Answer):
                answer.took_ms.update(took_ms)
        return [found[place] for place in range(len(queries))]

    def _given_or_not(
        self, group: Sequence[Asked], stages: Stages
    ) -> Sequence[Answer | RaysysError]:
        """Return answers; where one cannot be given, each alone."""
        try:
            return self._given(group, stages)
        except RaysysError as error:
            if len(group) == 1:
                return [error]
            return [answer for asked in group for answer in self._given_or_not([asked], stages)]

    def _given(self, group: Sequence[Asked], stages: Stages) -> list[Answer]:
        query, ranking = group[0].query, group[0].ranking
        allow = self._allowed(conditions(query.allow), conditions(query.deny))
        if self._engine.scorer is None and not group[0].history.n_cells:
            lists = [self._most_popular(asked, allow) for asked in group]
        else:
            histories = [asked.history for asked in group]
            left_out = [asked.left_out for asked in group]
            ranked = self._engine.lists(
                concat(histories) if len(group) > 1 else histories[0],
                top_k=group[0].length,
                ranking=ranking,
                exclude_seen=query.exclude_seen,
                left_out=left_out if any(map(len, left_out)) else None,
                allow=allow,
                stages=stages,
                steerings=[asked.steering for asked in group],
            )
            lists = [_next_page(*pair) for pair in zip(ranked, group, strict=True)]
        stages.end("rescore")
        hits = hits_of(lists, self._items, self._levels if query.levels else None)
        answers = [self._answer(*each) for each in zip(group, lists, hits, strict=True)]
        stages.end("hits")
        return answers

    def _most_popular(self, asked: Asked, allow: Mask | None) -> Ranked:
        """Return what is popular by the log, where no model says what is without a history."""
        allowed = np.ones(len(self._items), dtype=np.bool_) if allow is None else allow.copy()
        allowed &= self._engine.alive
        allowed[asked.left_out] = False
        return self._browse.popular(asked.query.k, allowed)

    def _answer(self, asked: Asked, ranked: Ranked, hits: list[Hit]) -> Answer:
        query = asked.query
        if query.explain:
            self._explain(hits, ranked, asked)
        given = [*asked.listed, *(hit.item_id for hit in hits)]
        cursor = cursor_of(given) if len(hits) == query.k else None
        return Answer(
            build_id=self._build_id,
            ranking=query.ranking if query.ranking and not asked.changed else asked.ranking.name,
            unknown_items=asked.unknown,
            items=hits,
            counted_until=self._engine.counted_until,
            changes_id=self._changes_id,
            cursor=cursor,
            degraded=asked.degraded,
        )

    def _explain(self, hits: Sequence[Hit], ranked: Ranked, asked: Asked) -> None:
        """Name with each hit the items of the profile most like it, and atoms of its code."""
        own = np.unique(self._engine.known(asked.history).item_num)
        alike = self._engine.neighbours.most_like(ranked.item_nums, own, top_k=_REASONS)
        for hit, pairs in zip(hits, alike, strict=True):
            nums, cosines = zip(*pairs, strict=True) if pairs else ((), ())
            reasons = Ranked(np.array(nums, dtype=np.int32), np.array(cosines, dtype=np.float64))
            hit.because = similar_items(reasons, self._items)
        atoms = self._atoms.of_hits(ranked.item_nums, asked.history, asked.ranking)
        for hit, found in zip(hits, atoms or (), strict=False):
            hit.atoms = found


def _next_page(ranked: Ranked, asked: Asked) -> Ranked:
    """Return a list without what earlier pages gave of it."""
    if not len(asked.dropped):
        return ranked
    rest = np.flatnonzero(~np.isin(ranked.item_nums, asked.dropped))[: asked.query.k]
    columns = {field.name: getattr(ranked, field.name) for field in dataclasses.fields(Ranked)}
    given = {name: column[rest] for name, column in columns.items() if column is not None}
    return dataclasses.replace(ranked, **given)
