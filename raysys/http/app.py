"""HTTP v1: `create_app(current)`, an ordinary FastAPI app without Ray.

    POST /v1/recommend    RecommendQuery   -> Answer
    POST /v1/search                        -> VectorHits
    GET  /v1/items/{item_id}/similar?k=20  -> SimilarItems
    GET  /v1/health                        -> Health
    GET  /v1/status                        -> Status

Ids are strings; JSON integers are accepted and read as their decimal text. In paths, an id is
percent-encoded UTF-8 with an empty safe set (`urllib.parse.quote(item_id, safe="")`); an encoded
slash (`%2F`) and a bare one mean the same. The ids `.` and `..` are `%2E` and `%2E%2E` (clients
resolve bare dots). Every error has the body
`{"error": {"type", "message", "details"}}`: 422 for what a client should change, 404 for an unknown
user, item or path, 405 for a method that a path has not, 408 and 413 for bodies that are too slow
or too large (`limits.py`), 503 when the service is too busy (try again), 500 for our own faults.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException

from raysys.errors import DataError, SearchError, UnknownItemError
from raysys.http.limits import REQUEST_ID, Limits
from raysys.http.wire import (
    CONDITIONS,
    ErrorBody,
    Followed,
    Health,
    SimilarItems,
    Status,
    VectorHits,
    VectorRequest,
)
from raysys.scoring.rankings import MAX_GAMMA, Ranking
from raysys.search.query import Answer, RecommendQuery, UnknownUserError, conditions

if TYPE_CHECKING:  # keeps the search out of this module
    from raysys.search.search import Search

log = logging.getLogger(__name__)
A = TypeVar("A")

_NAMED = 20  # rejected fields of an answer
_SHORT = 100  # items of a list or a profile whose answer takes about a millisecond


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """How a service answers.

    Attributes:
        k_limit: longest list that is answered; the size of the catalogue where that is more.
        gamma_limit: largest weight of a ranking.
        request_ids: answers carry `X-Request-ID`; False under Serve, which puts it there.
    """

    k_limit: int = 1_000
    gamma_limit: float = MAX_GAMMA
    request_ids: bool = True


class Holder:
    """The search that is served; another may take its place while requests run.

    A request asks once, so it is answered by one search from start to end.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._exchange = threading.Lock()

    def __call__(self) -> Search:
        """Return what is served now."""
        return self._search

    def exchange(self, search: Search) -> Search:
        """Serve another search; return the one before, which running requests may still use."""
        with self._exchange:  # else two at once may both return the same search
            before, self._search = self._search, search
        return before


class _Counts:
    """Requests by outcome, safe to add to from several threads."""

    def __init__(self) -> None:
        self._counter: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, outcome: str) -> None:
        with self._lock:
            self._counter[outcome] += 1

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._counter.items()))


class _IdConvertor(PathConvertor):
    """An id in a path: any text, line feeds too."""

    regex = "(?s:.*)"


def create_app(
    current: Callable[[], Search],
    options: ServiceOptions | None = None,
    *,
    following: Callable[[], Followed] | None = None,
) -> FastAPI:
    """Return the HTTP service over what `current` returns, which every request asks once.

    `following` tells how what is served follows its run.
    """
    options = options or ServiceOptions()
    started = time.monotonic()
    counts = _Counts()
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorBody} for code in (404, 405, 408, 413, 422, 500, 503)
    }
    register_url_convertor("id", _IdConvertor())
    app = FastAPI(title="raysys", version="1", responses=errors)
    _handle_errors(app, counts, options)
    app.add_middleware(Limits, counted=counts.add, named=options.request_ids)
    _add_lists(app, current, counts, options)

    @app.get("/v1/health")
    async def health() -> Health:
        """Tell that the service is up."""
        return Health(build_id=current().build_id)

    @app.get("/v1/status")
    async def status() -> Status:
        """Say what is served and how much was asked of this replica."""
        search = current()
        return Status(
            build_ids=search.build_ids,
            facts=search.facts,
            rankings=list(search.rankings),
            n_items=search.n_items,
            n_users=search.n_users,
            uptime_s=round(time.monotonic() - started, 3),
            counts=counts.snapshot(),
            following=following() if following is not None else None,
        )

    app.openapi = functools.partial(_schema, app)  # type: ignore[method-assign]
    return app


def _add_lists(
    app: FastAPI, current: Callable[[], Search], counts: _Counts, options: ServiceOptions
) -> None:
    """Add the routes that answer with lists."""

    def asked(k: int) -> Search:
        search = current()
        limit = max(options.k_limit, search.n_items)
        if k > limit:
            raise SearchError(f"k={k} is not accepted: expected 1 to {limit}")
        return search

    @app.post("/v1/recommend")
    async def recommend(body: RecommendQuery) -> Answer:
        """Recommend items to a stored user or for a posted profile."""
        _check_weight(body, options.gamma_limit)
        search = asked(body.k)
        answer = await _answered(
            search.size_of(body), body.allow or body.deny, search.recommend, body
        )
        counts.add("recommend")
        return answer

    @app.get("/v1/items/{item_id:id}/similar")
    async def similar(
        item_id: str,
        k: Annotated[int, Query(ge=1)] = 20,
        allow: str | None = None,
        deny: str | None = None,
    ) -> SimilarItems:
        """List the items whose vectors have the highest cosine with that of `item_id`.

        `allow` and `deny` are conditions on attributes as JSON, as in /v1/recommend.
        """
        search = asked(k)
        masks: dict[str, Any] = {
            "allow": _parsed(allow, "allow"),
            "deny": _parsed(deny, "deny"),
        }
        items = await _answered(
            max(k, search.size_of_scan),
            allow or deny,
            functools.partial(search.similar, top_k=k, **masks),
            item_id,
        )
        counts.add("similar")
        return SimilarItems(search.build_id, item_id, items)

    # A plain function runs in a thread.
    @app.post("/v1/search")
    def nearest(body: VectorRequest) -> VectorHits:
        """List the items nearest to vectors in the space of the indexed ones."""
        search = asked(body.k)
        if len({len(vector) for vector in body.vectors}) > 1:
            raise SearchError("vectors must have one length")
        lists = search.nearest(
            np.array(body.vectors, dtype=np.float32),
            top_k=body.k,
            allow=conditions(body.allow),
            deny=conditions(body.deny),
        )
        counts.add("search")
        return VectorHits(search.build_id, lists)


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


async def _answered(size: int, conditions: object, answer: Callable[..., A], *asked: Any) -> A:
    """Return an answer, made here if it is short and in a thread if not.

    A thread's hand-over takes as long as a short answer. A long one there never delays the health
    check; masks of conditions go over all items.

    Args:
        size: of what the answer goes over.
        conditions: on attributes; nothing where there are none.
        answer: called with what is asked.
        asked: its arguments.
    """
    if size <= _SHORT and not conditions:
        return answer(*asked)
    return await run_in_threadpool(answer, *asked)


def _check_weight(body: RecommendQuery, limit: float) -> None:
    """Refuse a weight above the limit as a field that is out of range."""
    weights = {"gamma": body.gamma}
    if body.ranking is not None:
        weights["ranking"] = Ranking.parse(body.ranking).weight
    reason = f"Input should be less than or equal to {limit:g}"
    errors = [
        {"loc": ("body", name), "msg": reason if name == "gamma" else f"weight: {reason}"}
        for name, weight in weights.items()
        if weight > limit
    ]
    if errors:
        raise RequestValidationError(errors)


def _parsed(text: str | None, name: str) -> dict[str, Any] | None:
    """Return the conditions of a query parameter."""
    if text is None:
        return None
    try:
        return conditions(CONDITIONS.validate_json(text))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SearchError(f"{name}={text} is no JSON object of conditions: {reason}") from error


def _printable(path: tuple[int | str, ...]) -> str:
    """Join a field's path; JSON keys may hold halves of surrogate pairs, answers may not."""
    return ".".join(str(part) for part in path).encode(errors="replace").decode()


def _handle_errors(app: FastAPI, counts: _Counts, options: ServiceOptions) -> None:
    """Give every error the one body."""

    def reply(
        status: int,
        kind: str,
        message: str,
        details: Any = (),
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        counts.add(f"error_{status}")
        error = {"type": kind, "message": message, "details": list(details)}
        return JSONResponse({"error": error}, status_code=status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        details = [
            {"field": _printable(entry["loc"]), "message": entry["msg"]}
            for entry in error.errors()[:_NAMED]
        ]
        message = "; ".join(f"{entry['field']}: {entry['message']}" for entry in details[:5])
        return reply(422, "invalid_request", message, details)

    @app.exception_handler(UnknownUserError)
    async def unknown_user(_: Request, error: UnknownUserError) -> JSONResponse:
        return reply(404, "unknown_user", str(error))

    @app.exception_handler(UnknownItemError)
    async def unknown_item(_: Request, error: UnknownItemError) -> JSONResponse:
        return reply(404, "unknown_item", str(error))

    @app.exception_handler(DataError)
    @app.exception_handler(SearchError)
    async def bad_query(_: Request, error: Exception) -> JSONResponse:
        return reply(422, "bad_query", str(error))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # what the schema calls valid JSON is no text at all
            return reply(422, "invalid_request", f"body: {error.detail}")
        return reply(error.status_code, "http", str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        request_id = request.scope.get(REQUEST_ID, "")
        log.error("request failed path=%s id=%s", request.url.path, request_id, exc_info=error)
        message = "the service failed to answer; its log has the details"
        headers = {REQUEST_ID: request_id} if options.request_ids else None
        return reply(500, "internal", message, headers=headers)
