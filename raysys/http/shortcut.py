"""The way of most requests: lists for one user or many, past what FastAPI does for every route.

An ASGI layer around the app. It answers what it can read as it is, by the same function as the
route; all else goes on to the app, which says what is wrong. Of an answer of a millisecond half
was the way through the app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from raysys.errors import RaysysError
from raysys.http.limits import App, Message, Receive, RefusedError, Send, path_of
from raysys.http.lists import BATCH, RECOMMEND, batched, recommended
from raysys.http.service import Service
from raysys.http.wire import BatchRequest
from raysys.search.query import RecommendQuery


class _Way(NamedTuple):
    """How a path is answered: the type of its body, by what, and the route that requests name."""

    kind: type[BaseModel]
    answered: Callable[[Service, Any], Awaitable[Response]]
    route: SimpleNamespace


_WAYS = {
    path: _Way(kind, answered, SimpleNamespace(path=path))
    for path, kind, answered in (
        (RECOMMEND, RecommendQuery, recommended),
        (BATCH, BatchRequest, batched),
    )
}


class Shortcut:
    """The layer.

    Args:
        app: answers all else.
        service: of the replica.
    """

    def __init__(self, app: App, *, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        way = _way_of(scope)
        if way is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = way.route
        first = await receive()  # the whole body, see `Limits`
        response = await self._response(way, first)
        if response is not None:
            await response(scope, receive, send)
            return
        messages = iter([first])

        async def again() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, again, send)

    async def _response(self, way: _Way, message: Message) -> Response | None:
        """Return the answer, or None where the app has to say what is wrong."""
        try:
            body = way.kind.model_validate_json(message.get("body", b""))
            return await way.answered(self._service, body)
        except (ValidationError, RequestValidationError):
            return None
        except (RaysysError, RefusedError) as error:
            return self._service.refusal_of(error)


def _way_of(scope: Message) -> _Way | None:
    """Return the way of a request; None: it goes to the app."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    plain = len(types) == 1 and types[0].partition(b";")[0].strip() == b"application/json"
    return _WAYS.get(path_of(scope)) if plain else None
