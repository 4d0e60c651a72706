"""A small typed client of the HTTP service.

with Client("http://127.0.0.1:8000") as client:
    answer = client.recommend(user_id="42", k=10)
    print([item.title for item in answer.items])
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from raysys.errors import RaysysError
from raysys.http.wire import (
    ErrorBody,
    Health,
    SimilarItems,
    Status,
    VectorHits,
    VectorRequest,
)
from raysys.search.query import Answer, RecommendQuery

if TYPE_CHECKING:  # keeps the search out of the client
    from raysys.search.search import Search

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)

_FIRST_PAUSE_S = 0.1
_ANSWERS: dict[Any, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (Answer, SimilarItems, VectorHits, Health, Status)
}


class ServiceError(RaysysError):
    """The service refused a request or could not be reached.

    Attributes:
        status: HTTP status, 0 when no answer came.
        type: the error's type as the service names it, e.g. `unknown_user`.
    """

    def __init__(self, message: str, *, status: int = 0, type: str = "unreachable") -> None:
        super().__init__(message)
        self.status = status
        self.type = type


class Client:
    """Asks one service. Every call only reads, so all are retried where no replica answered.

    Args:
        base_url: where the service listens.
        timeout_s: for one attempt.
        retries: further attempts after the first; the pause starts at 0.1 s and doubles.
        transport: replaces the network, e.g. `httpx.MockTransport`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 10.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, transport=transport)
        self._retries = retries

    @classmethod
    def local(cls, search: Search) -> Client:
        """Return a client that a search in this process answers, without a socket.

        A RaysysError that a service would hide (a damaged build) comes through as it is.
        """
        from raysys.http.local import InProcess  # a server, which most clients do not need

        return cls("http://local", transport=InProcess(search))

    def recommend(self, query: RecommendQuery | None = None, /, **fields: Any) -> Answer:
        """Recommend items to a stored user or for a profile.

        Args:
            query: what is asked.
            fields: of a `RecommendQuery`, where none is given: `user_id="42", k=10`.

        Raises:
            ServiceError: 404 for an unknown user, 422 for anything a caller should change (also
                what breaks the wire format and was not sent), 0 when no answer came.
        """
        query = query or checked(RecommendQuery, fields)
        return self._call("POST", "/v1/recommend", Answer, json=_sent(query))

    def similar(
        self,
        item_id: str,
        *,
        k: int = 20,
        allow: Mapping[str, Any] | None = None,
        deny: Mapping[str, Any] | None = None,
    ) -> SimilarItems:
        """List the `k` items most similar to `item_id`; ServiceError 404 when it is unknown."""
        path = f"/v1/items/{_in_path(item_id)}/similar"
        given = {"allow": allow, "deny": deny}
        masks = {name: json.dumps(dict(each)) for name, each in given.items() if each}
        return self._call("GET", path, SimilarItems, params={"k": k, **masks})

    def search(
        self,
        vectors: Sequence[Sequence[float]],
        *,
        k: int = 20,
        allow: Mapping[str, Any] | None = None,
        deny: Mapping[str, Any] | None = None,
    ) -> VectorHits:
        """List the `k` items nearest to every vector in the space of the indexed ones."""
        values = {"vectors": vectors, "k": k, "allow": allow, "deny": deny}
        body = _sent(checked(VectorRequest, values))
        return self._call("POST", "/v1/search", VectorHits, json=body)

    def health(self) -> Health:
        """Return the service's health; ServiceError when it is not up."""
        return self._call("GET", "/v1/health", Health)

    def status(self) -> Status:
        """Return what one replica serves."""
        return self._call("GET", "/v1/status", Status)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, answer: type[T], **content: Any) -> T:
        response = self._send(method, path, **content)
        if response.status_code != httpx.codes.OK:
            raise _refused(response)
        try:
            value: T = _ANSWERS[answer].validate_json(response.content)
        except ValidationError as error:
            text = f"{method} {response.url} answered in an unknown format: {error.errors()[:1]}"
            raise ServiceError(text, status=response.status_code, type="format") from error
        return value

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        pause_s = _FIRST_PAUSE_S
        for left in range(self._retries, -1, -1):
            try:
                response = self._http.request(method, path, **content)
            except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout) as error:
                if not left:
                    where = f"{method} {self._http.base_url.join(path)}"
                    raise ServiceError(f"{where}: no answer: {error}") from error
            except httpx.HTTPError as error:
                where = f"{method} {self._http.base_url.join(path)}"
                raise ServiceError(f"{where}: {type(error).__name__}: {error}") from error
            else:
                if not left or not _passing(response):
                    return response
            time.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")


def _passing(response: httpx.Response) -> bool:
    """Tell whether another try may be answered: it is busy, or no replica was there to answer."""
    if response.status_code in (502, 503, 504):
        return True
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code == httpx.codes.INTERNAL_SERVER_ERROR and not is_json


def checked(body: type[Body], values: Mapping[str, Any]) -> Body:
    """Return a request.

    Raises:
        ServiceError: it breaks the wire format.
    """
    try:
        return body.model_validate(values)
    except ValidationError as error:
        fields = [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors()]
        text = "; ".join(f"{name}: {reason}" for name, reason in fields)
        raise ServiceError(text, status=422, type="invalid_request") from error


def _sent(body: BaseModel) -> dict[str, Any]:
    """Return a request as JSON values."""
    content: dict[str, Any] = body.model_dump(mode="json", exclude_none=True)
    return content


def _in_path(item_id: str) -> str:
    """Return an id as one segment of a path.

    Raises:
        ServiceError: it is not valid Unicode.
    """
    try:
        quoted = quote(item_id, safe="")
    except UnicodeEncodeError as error:
        text = f"item_id={item_id!r} is not valid Unicode"
        raise ServiceError(text, status=422, type="invalid_request") from error
    return quoted.replace(".", "%2E") if item_id in (".", "..") else quoted  # else resolved


def _refused(response: httpx.Response) -> ServiceError:
    try:
        error = ErrorBody.model_validate_json(response.content).error
    except ValidationError:
        text = f"status {response.status_code}: {response.text[:200]}"
        return ServiceError(text, status=response.status_code, type="http")
    return ServiceError(error.message, status=response.status_code, type=error.type)
