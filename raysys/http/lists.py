"""The routes that answer with lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Response
from pydantic import TypeAdapter, ValidationError

from raysys.errors import RaysysError, SearchError
from raysys.http.arms import Arm
from raysys.http.service import Service, kind_of
from raysys.http.wire import (
    CONDITIONS,
    BatchAnswer,
    BatchEntry,
    BatchRequest,
    ErrorInfo,
    ItemList,
    Scenarios,
    SimilarItems,
    SimilarRequest,
    VectorHits,
    VectorRequest,
)
from raysys.search.query import MAX_CURSOR, Answer, RecommendQuery, conditions
from raysys.search.search import Search

RECOMMEND, BATCH = "/v1/recommend", "/v1/recommend/batch"
_MAX_LISTED = 20_000  # items of all lists of a batch

_ANSWER, _BATCH = TypeAdapter(Answer), TypeAdapter(BatchAnswer)
_SIMILAR, _LIST = TypeAdapter(SimilarItems), TypeAdapter(ItemList)
_HITS = TypeAdapter(VectorHits)

Length = Annotated[int, Query(ge=1, description="length of the list")]
Given = Annotated[str | None, Query(description="conditions on attributes as JSON")]


def add_lists(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.post(RECOMMEND, response_model=Answer)
    async def recommend(body: RecommendQuery) -> Response:
        """Recommend items to a stored user or for a posted profile."""
        return await recommended(service, body)

    @app.post(BATCH, response_model=BatchAnswer)
    async def batch(body: BatchRequest) -> Response:
        """Answer up to 256 queries of recommend; what is wrong with one does not touch others."""
        return await batched(service, body)

    _add_neighbours(app, service)
    _add_of_nobody(app, service)

    @app.get("/v1/scenarios")
    async def scenarios() -> Scenarios:
        """Name the presets of this service; a query takes one with `scenario`."""
        return Scenarios(dict(service.options.scenarios))


def _add_neighbours(app: FastAPI, service: Service) -> None:
    """Add the routes that list what is near items or vectors."""

    @app.get("/v1/items/{item_id:id}/similar", response_model=SimilarItems)
    async def similar(
        item_id: str, k: Length = 20, allow: Given = None, deny: Given = None
    ) -> Response:
        """List the items whose vectors have the highest cosine with that of `item_id`."""
        search, masks = service.asked(k), masks_of(allow, deny)
        answer, response = await service.reply(
            _SIMILAR,
            max(k, search.size_of_scan),
            allow or deny,
            lambda: SimilarItems(
                search.build_id,
                item_id,
                search.similar(item_id, top_k=k, **masks),
                changes_id=search.changes_id,
            ),
        )
        service.counts.add("similar")
        service.metrics.listed("/v1/items/{item_id}/similar", len(answer.items))
        return response

    @app.post("/v1/similar", response_model=ItemList)
    async def similar_to(body: SimilarRequest) -> Response:
        """List the items most like several together, by cosine with their mean direction."""
        search = service.asked(body.k)
        masks = {"allow": conditions(body.allow), "deny": conditions(body.deny)}
        answer, response = await service.reply(
            _LIST,
            max(body.k, len(body.items), search.size_of_scan),
            body.allow or body.deny,
            lambda: ItemList(
                search.build_id,
                search.similar_to(body.items, top_k=body.k, **masks),
                changes_id=search.changes_id,
            ),
        )
        service.counts.add("similar")
        service.metrics.listed("/v1/similar", len(answer.items))
        return response

    @app.post("/v1/search", response_model=VectorHits)
    async def nearest(body: VectorRequest) -> Response:
        """List the items nearest to vectors in the space of the indexed ones."""
        search = service.asked(body.k)
        if len({len(vector) for vector in body.vectors}) > 1:
            raise SearchError("vectors must have one length")
        _hold("k of all vectors adds up to", body.k * len(body.vectors), _most(search))
        masks = {"allow": conditions(body.allow), "deny": conditions(body.deny)}
        rows = np.array(body.vectors, dtype=np.float32)
        _, response = await service.reply(
            _HITS,
            max(body.k, search.size_of_scan) * len(rows),
            len(rows) > 1 or body.allow or body.deny,
            lambda: VectorHits(
                search.build_id,
                search.nearest(rows, top_k=body.k, **masks),
                changes_id=search.changes_id,
            ),
        )
        service.counts.add("search")
        return response


def _add_of_nobody(app: FastAPI, service: Service) -> None:
    """Add the routes of lists that no user is needed for."""

    @app.get("/v1/popular", response_model=ItemList)
    async def popular(k: Length = 20, allow: Given = None, deny: Given = None) -> Response:
        """List what is expected of a user of whom nothing is known: P(consume), or rows of the log.

        Where lists follow time, it is what is taken lately.
        """
        return await _of_nobody(Search.popular, "popular", k, masks_of(allow, deny))

    @app.get("/v1/recent", response_model=ItemList)
    async def recent(k: Length = 20, allow: Given = None, deny: Given = None) -> Response:
        """List the newest items, by the UTC second of their first event in the log."""
        return await _of_nobody(Search.recent, "recent", k, masks_of(allow, deny))

    async def _of_nobody(listing: Any, name: str, k: int, masks: dict[str, Any]) -> Response:
        search = service.asked(k)
        answer, response = await service.reply(
            _LIST,
            search.n_items,
            True,
            lambda: ItemList(
                search.build_id,
                listing(search, top_k=k, **masks),
                changes_id=search.changes_id,
            ),
        )
        service.counts.add(name)
        service.metrics.listed(f"/v1/{name}", len(answer.items))
        return response


async def recommended(service: Service, body: RecommendQuery) -> Response:
    """Answer a request of recommend; what is wrong with it is raised."""
    arm = service.arm_of(body)
    query = service.filled(body, arm)
    search = service.asked(query.k, arm)
    counts = bool(query.atoms) and not search.opened.has_strengths  # what items hold, once
    masked = query.allow or query.deny or query.explain or query.cursor or counts

    def listed() -> Answer:
        answer = search.recommend(query)
        return answer if arm is None else service.given([(arm, query, answer)])[0]

    answer, response = await service.reply(_ANSWER, search.size_of(query), masked, listed)
    service.counts.add("recommend")
    service.metrics.answered(RECOMMEND, [answer])
    return response


async def batched(service: Service, body: BatchRequest) -> Response:
    """Answer a request of many lists; what is wrong with it as a whole is raised."""
    asked: list[_Asked] = []
    wrong: dict[int, RaysysError] = {}
    for place, given in enumerate(body.queries):
        try:
            arm = service.arm_of(given)
            query = service.filled(given, arm, ("body", "queries", place))
            asked.append(_Asked(arm, query, service.asked(query.k, arm)))
        except SearchError as error:
            wrong[place] = error
    queries = [each.query for each in asked]
    _hold("all k add up to", sum(query.k for query in queries), _most(service.current()))
    cursors = sum(len(query.cursor or "") for query in queries)
    _hold("characters of all cursors:", cursors, MAX_CURSOR)

    def answers() -> BatchAnswer:
        found = iter(_answers(service, asked))
        every = (wrong.get(place) or next(found) for place in range(len(body.queries)))
        return BatchAnswer([_entry(answer) for answer in every])

    aside = len(queries) > 1 or any(each.query.atoms for each in asked)
    size = 0 if aside else sum(each.search.size_of(each.query) for each in asked)
    answer, response = await service.reply(_BATCH, size, aside, answers)
    service.counts.add("batch")
    given_answers = [entry.answer for entry in answer.answers if entry.answer is not None]
    service.metrics.answered(BATCH, given_answers)
    return response


class _Asked(NamedTuple):
    """One query of a batch, whom it is for and what answers it."""

    arm: Arm | None
    query: RecommendQuery
    search: Search


def _answers(service: Service, asked: Sequence[_Asked]) -> list[Answer | RaysysError]:
    """Return the answers of a batch in its order; each search answers its queries at once."""
    found: dict[int, Answer | RaysysError] = {}
    for search in {id(each.search): each.search for each in asked}.values():
        places = [place for place, each in enumerate(asked) if each.search is search]
        given = search.recommend_all([asked[place].query for place in places])
        found |= zip(places, given, strict=True)
    lists = {place: a for place, a in found.items() if isinstance(a, Answer)}
    shown = [(asked[place].arm, asked[place].query, answer) for place, answer in lists.items()]
    found |= zip(lists, service.given(shown), strict=True)
    return [found[place] for place in range(len(asked))]


def _hold(what: str, size: int, most: int) -> None:
    """Raise SearchError for more than one request may ask for."""
    if size > most:
        raise SearchError(f"{what} {size}: expected {most} at most")


def _most(search: Search) -> int:
    """Return how many items the lists of one request may hold together."""
    return max(_MAX_LISTED, search.n_items)


def masks_of(allow: str | None, deny: str | None) -> dict[str, Any]:
    """Return the conditions of query parameters.

    Raises:
        SearchError: one holds none.
    """
    masks: dict[str, Any] = {}
    for name, text in (("allow", allow), ("deny", deny)):
        try:
            masks[name] = None if text is None else conditions(CONDITIONS.validate_json(text))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise SearchError(f"{name}={text} is no JSON object of conditions: {reason}") from error
    return masks


def _entry(answer: Answer | RaysysError) -> BatchEntry:
    if isinstance(answer, Answer):
        return BatchEntry(answer=answer)
    known = kind_of(answer)
    if known is None:
        raise answer
    return BatchEntry(error=ErrorInfo(type=known[1], message=str(answer)))
