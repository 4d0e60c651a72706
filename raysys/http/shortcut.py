"""The way of most requests: lists for one user or many, past what FastAPI does for every route.

An ASGI layer around the app. It answers what it can read as it is, by the same function as the
route; all else goes on to the app, which says what is wrong. Of an answer of a millisecond half
was the way through the app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from raysys.errors import RaysysError
from raysys.http.limits import App, Message, Receive, RefusedError, Send, path_of
from raysys.http.lists import BATCH, RECOMMEND, batched, recommended
from raysys.http.service import Service
from raysys.http.wire import BatchRequest
from raysys.search.query import RecommendQuery

_WAYS: Mapping[str, tuple[Any, Callable[[Service, Any], Awaitable[Response]]]] = {
    RECOMMEND: (RecommendQuery, recommended),
    BATCH: (BatchRequest, batched),
}
_ROUTES = {path: SimpleNamespace(path=path) for path in _WAYS}


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
        if not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        scope["route"] = _ROUTES[path]
        first = await receive()  # the whole body, see `Limits`
        response = await self._response(path, first)
        if response is not None:
            await response(scope, receive, send)
            return
        messages = iter([first])

        async def again() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, again, send)

    async def _response(self, path: str, message: Message) -> Response | None:
        """Return the answer, or None where the app has to say what is wrong."""
        kind, answered = _WAYS[path]
        try:
            return await answered(self._service, kind.model_validate_json(message.get("body", b"")))
        except (ValidationError, RequestValidationError):
            return None
        except (RaysysError, RefusedError) as error:
            return self._service.refusal_of(error)


def _is_plain(scope: Message) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    if path_of(scope) not in _WAYS:
        return False
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(types) == 1 and types[0].partition(b";")[0].strip() == b"application/json"
