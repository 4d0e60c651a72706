"""The routes that answer with lists."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Response
from pydantic import TypeAdapter, ValidationError

from raysys.errors import RaysysError, SearchError
from raysys.http.service import Service, kind_of, reply
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
from raysys.search.query import Answer, RecommendQuery, conditions
from raysys.search.search import Search

RECOMMEND = "/v1/recommend"
_MAX_LISTED = 20_000  # items of all lists of a batch

_ANSWER, _BATCH = TypeAdapter(Answer), TypeAdapter(BatchAnswer)
_SIMILAR, _LIST = TypeAdapter(SimilarItems), TypeAdapter(ItemList)
_HITS, _SCENARIOS = TypeAdapter(VectorHits), TypeAdapter(Scenarios)

Length = Annotated[int, Query(ge=1, description="length of the list")]
Given = Annotated[str | None, Query(description="conditions on attributes as JSON")]


def add_lists(app: FastAPI, service: Service) -> None:
    """Add the routes."""
    counts, metrics = service.counts, service.metrics

    @app.post(RECOMMEND, response_model=Answer)
    async def recommend(body: RecommendQuery) -> Response:
        """Recommend items to a stored user or for a posted profile."""
        return await recommended(service, body)

    @app.post("/v1/recommend/batch", response_model=BatchAnswer)
    async def batch(body: BatchRequest) -> Response:
        """Answer up to 256 queries of recommend; what is wrong with one does not touch others."""
        search = service.current()
        queries: list[RecommendQuery] = []
        wrong: dict[int, RaysysError] = {}
        for place, given in enumerate(body.queries):
            try:
                query = service.filled(given)
                service.asked(query.k)
                queries.append(query)
            except SearchError as error:
                wrong[place] = error
        listed = sum(query.k for query in queries)
        if listed > _MAX_LISTED:
            raise SearchError(f"all k add up to {listed}: expected {_MAX_LISTED} at most")
        size = sum(search.size_of(query) for query in queries)
        found = iter(await service.run(size, len(queries) > 1, search.recommend_all, queries))
        answers = [wrong.get(place) or next(found) for place in range(len(body.queries))]
        counts.add("batch")
        metrics.answered("/v1/recommend/batch", [a for a in answers if isinstance(a, Answer)])
        return reply(_BATCH, BatchAnswer([_entry(answer) for answer in answers]))

    @app.get("/v1/items/{item_id:id}/similar", response_model=SimilarItems)
    async def similar(
        item_id: str, k: Length = 20, allow: Given = None, deny: Given = None
    ) -> Response:
        """List the items whose vectors have the highest cosine with that of `item_id`."""
        search = service.asked(k)
        items = await service.run(
            max(k, search.size_of_scan),
            allow or deny,
            functools.partial(search.similar, top_k=k, **masks_of(allow, deny)),
            item_id,
        )
        counts.add("similar")
        metrics.listed("/v1/items/{item_id}/similar", len(items))
        return reply(
            _SIMILAR, SimilarItems(search.build_id, item_id, items, changes_id=search.changes_id)
        )

    @app.post("/v1/similar", response_model=ItemList)
    async def similar_to(body: SimilarRequest) -> Response:
        """List the items most like several together, by cosine with their mean direction."""
        search = service.asked(body.k)
        items = await service.run(
            max(body.k, len(body.items), search.size_of_scan),
            body.allow or body.deny,
            functools.partial(
                search.similar_to,
                top_k=body.k,
                allow=conditions(body.allow),
                deny=conditions(body.deny),
            ),
            body.items,
        )
        counts.add("similar")
        metrics.listed("/v1/similar", len(items))
        return reply(_LIST, ItemList(search.build_id, items, changes_id=search.changes_id))

    @app.post("/v1/search", response_model=VectorHits)
    async def nearest(body: VectorRequest) -> Response:
        """List the items nearest to vectors in the space of the indexed ones."""
        search = service.asked(body.k)
        if len({len(vector) for vector in body.vectors}) > 1:
            raise SearchError("vectors must have one length")
        lists = await service.run(
            max(body.k, search.size_of_scan) * len(body.vectors),
            len(body.vectors) > 1 or body.allow or body.deny,
            functools.partial(
                search.nearest,
                top_k=body.k,
                allow=conditions(body.allow),
                deny=conditions(body.deny),
            ),
            np.array(body.vectors, dtype=np.float32),
        )
        counts.add("search")
        return reply(_HITS, VectorHits(search.build_id, lists, changes_id=search.changes_id))

    @app.get("/v1/popular", response_model=ItemList)
    async def popular(k: Length = 20, allow: Given = None, deny: Given = None) -> Response:
        """List what is expected of a user of whom nothing is known: P(consume), or rows of the log.

        Where lists follow time, it is what is taken lately.
        """
        return await _of_nobody(Search.popular, "popular", k, allow, deny)

    @app.get("/v1/recent", response_model=ItemList)
    async def recent(k: Length = 20, allow: Given = None, deny: Given = None) -> Response:
        """List the newest items, by the UTC second of their first event in the log."""
        return await _of_nobody(Search.recent, "recent", k, allow, deny)

    async def _of_nobody(
        listing: Any, name: str, k: int, allow: str | None, deny: str | None
    ) -> Response:
        search = service.asked(k)
        asked = functools.partial(listing, search, top_k=k, **masks_of(allow, deny))
        items = await service.run(search.n_items, allow or deny, asked)
        counts.add(name)
        metrics.listed(f"/v1/{name}", len(items))
        return reply(_LIST, ItemList(search.build_id, items, changes_id=search.changes_id))

    @app.get("/v1/scenarios", response_model=Scenarios)
    async def scenarios() -> Response:
        """Name the presets of this service; a query takes one with `scenario`."""
        return reply(_SCENARIOS, Scenarios(dict(service.options.scenarios)))


async def recommended(service: Service, body: RecommendQuery) -> Response:
    """Answer a request of recommend; what is wrong with it is raised."""
    query = service.filled(body)
    search = service.asked(query.k)
    masked = query.allow or query.deny or query.explain or query.cursor
    answer = await service.run(search.size_of(query), masked, search.recommend, query)
    service.counts.add("recommend")
    service.metrics.answered(RECOMMEND, [answer])
    return reply(_ANSWER, answer)


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
