"""The way of most requests: a list for one user, past what FastAPI does for every route.

An ASGI layer around the app. It answers what it can read as it is, by the same function as the
route; all else goes on to the app, which says what is wrong. Of an answer of a millisecond half
was the way through the app.
"""

from __future__ import annotations

from types import SimpleNamespace

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from raysys.errors import RaysysError
from raysys.http.limits import App, Message, Receive, RefusedError, Send, path_of
from raysys.http.lists import RECOMMEND, recommended
from raysys.http.service import Service
from raysys.search.query import RecommendQuery

_ROUTE = SimpleNamespace(path=RECOMMEND)


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
        scope["route"] = _ROUTE
        first = await receive()  # the whole body, see `Limits`
        response = await self._response(first)
        if response is not None:
            await response(scope, receive, send)
            return
        messages = iter([first])

        async def again() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, again, send)

    async def _response(self, message: Message) -> Response | None:
        """Return the answer, or None where the app has to say what is wrong."""
        try:
            query = RecommendQuery.model_validate_json(message.get("body", b""))
            return await recommended(self._service, query)
        except (ValidationError, RequestValidationError):
            return None
        except (RaysysError, RefusedError) as error:
            return self._service.refusal_of(error)


def _is_plain(scope: Message) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    if path_of(scope) != RECOMMEND:
        return False
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(types) == 1 and types[0].startswith(b"application/json")
