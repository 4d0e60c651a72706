"""What every request is held to before anything reads it: the size and the time of its body.

An ASGI layer around the app. A body that is too large is refused by its Content-Length, or where
there is none as soon as too much has come; one that stops coming is refused after a while. Each
answer carries the request's id, its own (`X-Request-ID`) or a new one.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from raysys.http.wire import ErrorBody, ErrorInfo

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 16 << 20
BODY_TIMEOUT_S = 10.0
REQUEST_ID = "x-request-id"
_ODD = re.compile(rb"[^!-~]")
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class _RefusedError(Exception):
    """A body is refused with this status."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Limits:
    """The layer.

    Args:
        app: what answers.
        counted: called with the outcome of each request that is refused here.
        named: put the request's id on answers; False where what is around does.
        max_body_bytes: of a body.
        body_timeout_s: until a whole body has come.
    """

    def __init__(
        self,
        app: App,
        *,
        counted: Callable[[str], None],
        named: bool = True,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._app, self._counted, self._named = app, counted, named
        self._max_bytes, self._timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; everything but HTTP goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID.encode(), b"")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        if given and not self._named:  # what is around returns it as it is
            request_id = _ODD.sub(b"?", given[:128])

        scope[REQUEST_ID] = request_id.decode()  # for what answers outside of this layer

        async def named(message: Message) -> None:
            if self._named and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), request_id)]
            await send(message)

        try:
            body = await self._body(headers, receive)
        except _RefusedError as refused:
            await self._refuse(refused, named)
            return
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def whole() -> Message:
            return next(parts, None) or await receive()

        await self._app(scope, whole, named)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            _RefusedError: it is too large or too slow.
        """
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        parts, size, until = [], 0, time.monotonic() + self._timeout_s
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(until - time.monotonic(), 0))
            except TimeoutError:
                text = f"the body was not complete after {self._timeout_s:g} s"
                raise _RefusedError(408, "slow_request", text) from None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large()
            parts.append(part)
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> _RefusedError:
        return _RefusedError(413, "too_large", f"a body may have {self._max_bytes} bytes at most")

    async def _refuse(self, refused: _RefusedError, send: Send) -> None:
        """Answer for the app, and end the connection: the rest of the body is not read."""
        self._counted(f"error_{refused.status}")
        body = ErrorBody(error=ErrorInfo(type=refused.kind, message=str(refused)))
        content = json.dumps(body.model_dump()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})
