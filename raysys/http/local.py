"""The service in this process, behind the client's transport."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
from anyio.from_thread import start_blocking_portal

from raysys.http.app import Holder, create_app

if TYPE_CHECKING:
    from raysys.search.search import Search


class InProcess(httpx.BaseTransport):
    """Runs every request through the app on a thread of its own; works inside event loops too."""

    def __init__(self, search: Search) -> None:
        self._app = httpx.ASGITransport(create_app(Holder(search)), raise_app_exceptions=False)
        self._open = ExitStack()
        self._portal = self._open.enter_context(start_blocking_portal())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the app's answer."""
        return self._portal.call(self._ask, request)

    def close(self) -> None:
        """Stop the thread."""
        self._open.close()

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        answer = await self._app.handle_async_request(request)
        body = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)
