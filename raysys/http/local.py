"""The service in this process, behind the client's transport."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
from anyio.from_thread import start_blocking_portal
from fastapi import Request, Response

from raysys.errors import RaysysError
from raysys.http.app import Holder, ServiceOptions, create_app

if TYPE_CHECKING:
    from raysys.search.search import Search

_ERRORS = "raysys.errors"  # of a request's scope: what the caller gets in place of an answer


class InProcess(httpx.BaseTransport):
    """Runs every request through the app on a thread of its own; works inside event loops too.

    Where a service would hide a RaysysError as a fault of its own, the caller gets it: whoever asks
    in this process can act upon it.
    """

    def __init__(self, search: Search) -> None:
        app = create_app(Holder(search), ServiceOptions(gamma_limit=math.inf))
        app.add_exception_handler(RaysysError, _pass_on)
        self._app = app
        self._open = ExitStack()
        self._portal = self._open.enter_context(start_blocking_portal())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the app's answer."""
        return self._portal.call(self._ask, request)

    def close(self) -> None:
        """Stop the thread."""
        self._open.close()

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        errors: list[Exception] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self._app(scope | {_ERRORS: errors}, receive, send)

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        answer = await transport.handle_async_request(request)
        body = await answer.aread()
        if errors:
            raise errors[0]
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)


async def _pass_on(request: Request, error: Exception) -> Response:
    request.scope[_ERRORS].append(error)
    return Response(status_code=500)
