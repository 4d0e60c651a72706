"""The routes of the catalogue: its items, and the atoms of their codes."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Response
from pydantic import TypeAdapter

from raysys.http.lists import Given, Length, masks_of
from raysys.http.service import Service
from raysys.http.wire import AtomList, FoundItems, ItemDetailsList, ItemsRequest

_FOUND, _DETAILS = TypeAdapter(FoundItems), TypeAdapter(ItemDetailsList)
_ATOMS = TypeAdapter(AtomList)


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
        search, masks = service.asked(k), masks_of(allow, deny)
        answer, response = await service.reply(
            _FOUND,
            search.n_items,
            True,
            lambda: FoundItems(
                search.build_id,
                search.titled(title, top_k=k, **masks),
                changes_id=search.changes_id,
            ),
        )
        service.counts.add("titles")
        service.metrics.listed("/v1/items", len(answer.items))
        return response

    @app.post("/v1/items", response_model=ItemDetailsList)
    async def items(body: ItemsRequest) -> Response:
        """Return titles and attributes of items; those that are not known are listed."""
        search = service.current()
        _, response = await service.reply(
            _DETAILS,
            search.n_items,
            True,
            lambda: ItemDetailsList(
                search.build_id, *search.details(body.items), changes_id=search.changes_id
            ),
        )
        service.counts.add("items")
        return response

    @app.get("/v1/atoms", response_model=AtomList)
    async def atoms(
        k: Length = 20,
        atom: Annotated[int | None, Query(description="its number: its k strongest items")] = None,
    ) -> Response:
        """List the atoms that most items hold, each with its strongest items, or one of them."""
        search = service.asked(k)
        _, response = await service.reply(
            _ATOMS,
            search.n_items,
            True,
            lambda: AtomList(
                search.build_id,
                search.atoms.used(k) if atom is None else [search.atoms.of(atom, k)],
                changes_id=search.changes_id,
            ),
        )
        service.counts.add("atoms")
        return response
