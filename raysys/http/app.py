"""HTTP v1: `create_app(current)`, an ordinary FastAPI app without Ray.

    POST /v1/recommend    RecommendQuery   -> Answer
    POST /v1/search                        -> VectorHits
    POST /v1/events       EventsRequest    -> Taken
    GET  /v1/items/{item_id}/similar?k=20  -> SimilarItems
    GET  /v1/health                        -> Health
    GET  /v1/status                        -> Status
    GET  /                                 the explorer page, no part of v1

Ids are strings; JSON integers are accepted and read as their decimal text. In paths, an id is
percent-encoded UTF-8 with an empty safe set (`urllib.parse.quote(item_id, safe="")`); an encoded
slash (`%2F`) and a bare one mean the same. The ids `.` and `..` are `%2E` and `%2E%2E` (clients
resolve bare dots). Every error has the body
`{"error": {"type", "message", "details"}}`: 422 for what a client should change, 404 for an unknown
user, item or path, 405 for a method that a path has not, 408 and 413 for bodies that are too slow
or too large (`limits.py`), 503 when the service is too busy (try again), 500 for our own faults.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.routing import Route

from raysys.errors import DataError, RaysysError, SearchError
from raysys.events.feed import Feed
from raysys.http.access import REQUEST_ID, Access
from raysys.http.admin import Control, Everyone, Order, add_admin
from raysys.http.evaluation import add_evaluation
from raysys.http.events import add_events
from raysys.http.follow import Following
from raysys.http.items import add_items
from raysys.http.limits import Limits, RefusedError
from raysys.http.lists import add_lists
from raysys.http.page import add_page
from raysys.http.service import Service, ServiceOptions
from raysys.http.shortcut import Shortcut
from raysys.http.wire import CONDITIONS, ErrorBody
from raysys.store.builds import Workspace

if TYPE_CHECKING:  # keeps the search out of this module
    from raysys.search.search import Search

log = logging.getLogger(__name__)

_NAMED = 20  # rejected fields of an answer


class _IdConvertor(PathConvertor):
    """An id in a path: any text, line feeds too."""

    regex = "(?s:.*)"


def create_app(
    current: Callable[[], Search],
    options: ServiceOptions | None = None,
    *,
    following: Following | None = None,
    workspace: Workspace | None = None,
    run: Workspace | None = None,
    name: str = "local",
    everyone: Everyone | None = None,
    feed: Feed | None = None,
) -> FastAPI:
    """Return the HTTP service over what `current` returns, which every request asks once.

    Args:
        current: what is served.
        options: how it answers.
        following: the way to newer builds of `workspace`; None: one index is served for good.
        workspace: the run that is followed.
        run: that what is served lies in, where its evaluations are to be shown.
        name: of this replica.
        everyone: has an order carried out by all replicas; None: this is the only one.
        feed: takes events; None: none are taken.

    The app's state has the replica's `control`.
    """
    options = options or ServiceOptions()
    service = Service(
        current,
        options,
        following.state if following is not None else None,
        name=name,
        feed=feed,
    )
    control = Control(service, following)

    async def alone(order: Order) -> list[Any]:
        return [await run_in_threadpool(control.obey, order)]

    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorBody} for code in (401, 403, 404, 405, 408, 413, 422, 429, 500, 503)
    }
    register_url_convertor("id", _IdConvertor())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if feed is not None:  # what waits is written
            await run_in_threadpool(feed.stop)

    app = FastAPI(
        title="raysys",
        version="1",
        responses=errors,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.control = control
    _handle_errors(app, service)
    add_admin(app, service, everyone or alone, workspace)
    add_lists(app, service)
    add_items(app, service)
    add_events(app, service)
    add_evaluation(app, service, run)
    add_page(app)
    app.add_middleware(Shortcut, service=service)
    app.add_middleware(Limits, counted=service.counts.add)
    app.add_middleware(
        Access,
        metrics=service.metrics,
        counted=service.counts.add,
        keys=options.keys,
        logs=options.logs,
        max_ongoing=options.max_ongoing,
        named=options.request_ids,
        routes=[route.path for route in app.routes if isinstance(route, Route)],
    )
    app.openapi = functools.partial(_schema, app)  # type: ignore[method-assign]
    return app


def _schema(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document; FastAPI calls JSON in a query parameter a string."""
    document = FastAPI.openapi(app)
    given = CONDITIONS.json_schema(ref_template="#/components/schemas/{model}")
    given.pop("$defs", None)
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in ("allow", "deny") and parameter.pop("schema", None):
                    parameter["content"] = {"application/json": {"schema": given}}
    return document


def _printable(path: tuple[int | str, ...]) -> str:
    """Join a field's path; JSON keys may hold halves of surrogate pairs, answers may not."""
    return ".".join(str(part) for part in path).encode(errors="replace").decode()


def _handle_errors(app: FastAPI, service: Service) -> None:
    """Give every error the one body."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        details = [
            {"field": _printable(entry["loc"]), "message": entry["msg"]}
            for entry in error.errors()[:_NAMED]
        ]
        message = "; ".join(f"{entry['field']}: {entry['message']}" for entry in details[:5])
        return service.refusal(422, "invalid_request", message, details)

    @app.exception_handler(DataError)
    @app.exception_handler(SearchError)
    async def bad_query(_: Request, error: RaysysError) -> JSONResponse:
        answer = service.refusal_of(error)
        assert answer is not None
        return answer

    @app.exception_handler(RefusedError)
    async def not_now(_: Request, error: RefusedError) -> JSONResponse:
        answer = service.refusal_of(error)
        assert answer is not None
        return answer

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # what the schema calls valid JSON is no text at all
            return service.refusal(422, "invalid_request", f"body: {error.detail}")
        return service.refusal(error.status_code, "http", str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        request_id = request.scope.get(REQUEST_ID, "")
        log.error("request failed path=%s id=%s", request.url.path, request_id, exc_info=error)
        message = "the service failed to answer; its log has the details"
        headers = {REQUEST_ID: request_id} if service.options.request_ids else None
        return service.refusal(500, "internal", message, headers=headers)
