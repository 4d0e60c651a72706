"""The service in this process, behind the client's transport."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import Request, Response

from raysys.errors import RaysysError
from raysys.http.app import create_app
from raysys.http.service import Holder, ServiceOptions

if TYPE_CHECKING:
    from raysys.search.search import Search

_ERRORS = "raysys.errors"  # of a request's scope: what the caller gets in place of an answer


class InProcess(httpx.BaseTransport):
    """Runs every request through the app on a thread of its own; works inside event loops too.

    The thread is a daemon, so a script that closes nothing ends all the same.

    Where a service would hide a RaysysError as a fault of its own, the caller gets it: whoever asks
    in this process can act upon it.
    """

    def __init__(self, search: Search) -> None:
        app = create_app(Holder(search), ServiceOptions(gamma_limit=math.inf))
        app.add_exception_handler(RaysysError, _pass_on)
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the app's answer."""
        return asyncio.run_coroutine_threadsafe(self._ask(request), self._loop).result()

    def close(self) -> None:
        """Stop the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

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
