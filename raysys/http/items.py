"""The routes of the catalogue."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import FastAPI, Query, Response
from pydantic import TypeAdapter

from raysys.http.lists import Given, Length, masks_of
from raysys.http.service import Service, reply
from raysys.http.wire import FoundItems, ItemDetailsList, ItemsRequest

_FOUND, _DETAILS = TypeAdapter(FoundItems), TypeAdapter(ItemDetailsList)


def add_items(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/v1/items", response_model=FoundItems)
    async def titled(
        title: Annotated[str, Query(min_length=1, max_length=1_000)],
        k: Length = 20,
        allow: Given = None,
        deny: Given = None,
    ) -> Response:
        """Find items whose titles hold every word, whatever its case; the closest title first."""
        search = service.asked(k)
        asked = functools.partial(search.titled, top_k=k, **masks_of(allow, deny))
        items = await service.run(search.n_items, True, asked, title)
        service.counts.add("titles")
        return reply(_FOUND, FoundItems(search.build_id, items, changes_id=search.changes_id))

    @app.post("/v1/items", response_model=ItemDetailsList)
    async def items(body: ItemsRequest) -> Response:
        """Return titles and attributes of items; those that are not known are listed."""
        search = service.current()
        found, unknown = await service.run(search.n_items, True, search.details, body.items)
        service.counts.add("items")
        return reply(
            _DETAILS, ItemDetailsList(search.build_id, found, unknown, changes_id=search.changes_id)
        )
