"""Who asks, and what becomes of it: ids of requests, keys, rates, the access log, times by route.

The outermost ASGI layer of the app. Nothing of a request is read before its key has been found
good. What is logged names routes, never the ids in a path or anything of a body.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any

from raysys.http.keys import Key, KeyRing, Scope, given_key
from raysys.http.limits import App, Message, Receive, RefusedError, Send, path_of, refuse
from raysys.http.logs import Logs
from raysys.http.metrics import Metrics
from raysys.http.page import PAGE_PATHS
from raysys.http.wire import VERSION

REQUEST_ID = "x-request-id"
VERSION_HEADER = "x-raysys-version"
KEY = "raysys.key"  # of a request's scope: the key that it came with
OPEN = (
    *("/livez", "/readyz", "/v1/health", "/openapi.json", "/docs", "/docs/oauth2-redirect"),
    *PAGE_PATHS,
)
WATCHED = ("/metrics", "/v1/status")  # answered also where the service is too busy
ADMIN = "/v1/admin/"
WRITTEN = {"/v1/events": Scope.WRITE}  # what routes of other scopes than `read` want

_ODD = re.compile(rb"[^!-~]")
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_PATH = 200  # characters of one that the audit log holds
_BUSY_S = 1  # seconds after which a refused request may come again


class Access:
    """The layer.

    Args:
        app: what answers.
        metrics: counts requests.
        counted: called with the outcome of each request that is refused here.
        keys: who may ask; None: everybody, but nobody for what administrates.
        logs: of requests; None: none.
        max_ongoing: requests that are worked on at once; more are answered 503.
        named: put the request's id on answers; False where what is around does.
        routes: paths that logs and measures may name.
    """

    def __init__(
        self,
        app: App,
        *,
        metrics: Metrics,
        counted: Callable[[str], None],
        keys: KeyRing | None = None,
        logs: Logs | None = None,
        max_ongoing: int | None = None,
        named: bool = True,
        routes: Collection[str] = (),
    ) -> None:
        self._routes = frozenset(routes)
        self._app, self._metrics, self._counted = app, metrics, counted
        self._keys, self._logs, self._named = keys, logs, named
        self._most, self._ongoing = max_ongoing, 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; everything but HTTP goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = self._id(headers)
        scope[REQUEST_ID] = request_id.decode()  # for what answers outside of this layer
        status = 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(VERSION_HEADER.encode(), VERSION.encode())]
                if self._named:
                    more.append((REQUEST_ID.encode(), request_id))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        self._ongoing += 1
        self._metrics.running.inc()
        try:
            self._check(scope, headers)
            await self._app(scope, receive, named)
        except RefusedError as refused:
            self._counted(f"error_{refused.status}")
            await refuse(refused, named)
        finally:
            self._ongoing -= 1
            self._metrics.running.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", None) or self._route(scope)
            method = scope["method"] if route != "unknown" else "any"
            self._metrics.request(method, route, status, seconds)
            if self._logs is not None:
                self._log(scope, route, status, seconds)

    def _id(self, headers: dict[bytes, bytes]) -> bytes:
        given = headers.get(REQUEST_ID.encode(), b"")
        if given and not self._named:  # what is around returns it as it is
            return _ODD.sub(b"?", given[:128])
        return given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()

    def _route(self, scope: Message) -> str:
        """Return the route of what was refused before one was chosen."""
        path = path_of(scope)
        return path if path in self._routes else "unknown"

    def _check(self, scope: Message, headers: dict[bytes, bytes]) -> None:
        """Raise RefusedError where a request may not be answered."""
        path = path_of(scope)
        if path in OPEN:
            return
        wanted = Scope.ADMIN if path.startswith(ADMIN) else WRITTEN.get(path, Scope.READ)
        if self._keys is not None:
            self._use(scope, headers, wanted)
        elif wanted is Scope.ADMIN:
            raise RefusedError(403, "no_keys", "this service has no keys: start it with keys=FILE")
        told_always = wanted is Scope.ADMIN or path in WATCHED
        if self._most is not None and self._ongoing > self._most and not told_always:
            text = f"{self._most} requests are worked on already: try again"
            raise RefusedError(503, "busy", text, {"retry-after": str(_BUSY_S)})

    def _use(self, scope: Message, headers: dict[bytes, bytes], wanted: Scope) -> None:
        assert self._keys is not None
        secret = given_key(headers)
        key = None if secret is None else self._keys.find(secret)
        if key is None:
            text = "a key is needed: Authorization: Bearer KEY"
            text = text if secret is None else "this key is not known"
            raise RefusedError(401, "unauthorized", text, {"www-authenticate": "Bearer"})
        scope[KEY] = key
        if not key.may(wanted):
            raise RefusedError(403, "forbidden", f"key {key.name!r} has no scope {wanted.value!r}")
        wait_s = self._keys.spend(key)
        if wait_s:
            text = f"key {key.name!r} has {key.per_second:g} requests a second"
            raise RefusedError(429, "too_many", text, {"retry-after": str(int(wait_s) + 1)})

    def _log(self, scope: Message, route: str, status: int, seconds: float) -> None:
        assert self._logs is not None
        key: Key | None = scope.get(KEY)
        record: dict[str, Any] = {
            "id": scope[REQUEST_ID],
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1e3 * seconds, 3),
            "key": None if key is None else key.name,
        }
        self._logs.access(record)
        path = path_of(scope)
        if key is not None and path.startswith(ADMIN):  # others could fill the disk
            self._logs.audit({**record, "path": path[:_PATH]})
