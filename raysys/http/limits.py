"""What every request is held to before anything reads it: the size and the time of its body.

An ASGI layer around the app. A body that is too large is refused by its Content-Length, or where
there is none as soon as too much has come; one that stops coming is refused after a while.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from raysys.http.wire import ErrorBody, ErrorInfo

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 16 << 20
BODY_TIMEOUT_S = 10.0


class RefusedError(Exception):
    """A request is answered with this status before the app sees it.

    Attributes:
        status, kind: of the answer.
        headers: more of the answer's headers.
    """

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})


class Limits:
    """The layer.

    Args:
        app: what answers.
        counted: called with the outcome of each request that is refused here.
        max_body_bytes: of a body.
        body_timeout_s: until a whole body has come.
    """

    def __init__(
        self,
        app: App,
        *,
        counted: Callable[[str], None],
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._app, self._counted = app, counted
        self._max_bytes, self._timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; everything but HTTP goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(dict(scope["headers"]), receive)
        except RefusedError as refused:  # the rest of the body is not read
            refused.headers["connection"] = "close"
            self._counted(f"error_{refused.status}")
            await refuse(refused, send)
            return
        if body is None:  # nobody is there any more; half of a request is none
            return
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def whole() -> Message:
            return next(parts, None) or await receive()

        await self._app(scope, whole, send)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the whole body, or None where the client has gone.

        Raises:
            RefusedError: it is too large or too slow.
        """
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._max_bytes:
                        raise self._too_large()
                    parts.append(part)
                    if message["type"] == "http.disconnect":
                        return None
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            text = f"the body was not complete after {self._timeout_s:g} s"
            raise RefusedError(408, "slow_request", text) from None

    def _too_large(self) -> RefusedError:
        return RefusedError(413, "too_large", f"a body may have {self._max_bytes} bytes at most")


def path_of(scope: Message) -> str:
    """Return the path of a request as the app's routes have it."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


async def refuse(refused: RefusedError, send: Send) -> None:
    """Answer in place of the app."""
    body = ErrorBody(error=ErrorInfo(type=refused.kind, message=str(refused)))
    content = json.dumps(body.model_dump()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content))}
    raw = [(k.encode(), v.encode()) for k, v in (headers | refused.headers).items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
