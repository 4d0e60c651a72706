"""What a client may ask, as calls that its synchronous and its asynchronous form send alike."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from raysys.errors import RaysysError
from raysys.http.wire import (
    AtomList,
    BatchAnswer,
    BatchRequest,
    Erased,
    EraseRequest,
    ErrorBody,
    EvaluationAnswer,
    EventEntry,
    EventsRequest,
    FoundItems,
    Health,
    ItemDetailsList,
    ItemList,
    ItemsRequest,
    Replicas,
    RollbackRequest,
    Scenarios,
    SimilarItems,
    SimilarRequest,
    Status,
    Taken,
    VectorHits,
    VectorRequest,
)
from raysys.search.query import Answer, RecommendQuery

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)
Given = Mapping[str, Any] | None


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


@dataclasses.dataclass(frozen=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    Attributes:
        method, path: of the request.
        answer: reads it.
        content: further arguments of `httpx.Client.request`.
        repeatable: asking twice does no harm, so a lost connection is no reason to give up.
    """

    method: str
    path: str
    answer: TypeAdapter[T]
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    repeatable: bool = True

    def read(self, response: httpx.Response) -> T:
        """Return the answer.

        Raises:
            ServiceError: the service refused, or its answer is in another format.
        """
        if response.status_code != httpx.codes.OK:
            raise _refused(response)
        try:
            return self.answer.validate_json(response.content)
        except ValidationError as error:
            text = f"{self.method} {response.url} answered in an unknown format: "
            text += str(error.errors()[:1])
            raise ServiceError(text, status=response.status_code, type="format") from error


_ANSWER, _BATCH = TypeAdapter(Answer), TypeAdapter(BatchAnswer)
_SIMILAR, _LIST = TypeAdapter(SimilarItems), TypeAdapter(ItemList)
_HITS, _FOUND = TypeAdapter(VectorHits), TypeAdapter(FoundItems)
_EVALUATION = TypeAdapter(EvaluationAnswer)
_TAKEN, _ERASED = TypeAdapter(Taken), TypeAdapter(Erased)
_ATOMS = TypeAdapter(AtomList)
_DETAILS, _SCENARIOS = TypeAdapter(ItemDetailsList), TypeAdapter(Scenarios)
_HEALTH, _STATUS, _REPLICAS = TypeAdapter(Health), TypeAdapter(Status), TypeAdapter(Replicas)


def recommend(query: RecommendQuery | None, fields: Mapping[str, Any]) -> Call[Answer]:
    """Ask for one list."""
    query = query or checked(RecommendQuery, fields)
    return Call("POST", "/v1/recommend", _ANSWER, {"json": _sent(query)})


def batch(queries: Sequence[RecommendQuery | Mapping[str, Any]]) -> Call[BatchAnswer]:
    """Ask for many lists."""
    body = checked(BatchRequest, {"queries": list(queries)})
    return Call("POST", "/v1/recommend/batch", _BATCH, {"json": _sent(body)})


def similar(item_id: str, k: int, allow: Given, deny: Given) -> Call[SimilarItems]:
    """Ask for items like one."""
    path = f"/v1/items/{_in_path(item_id)}/similar"
    return Call("GET", path, _SIMILAR, {"params": _params(k, allow, deny)})


def similar_to(items: Sequence[str], k: int, allow: Given, deny: Given) -> Call[ItemList]:
    """Ask for items like several together."""
    body = checked(SimilarRequest, {"items": list(items), "k": k, "allow": allow, "deny": deny})
    return Call("POST", "/v1/similar", _LIST, {"json": _sent(body)})


def search(
    vectors: Sequence[Sequence[float]], k: int, allow: Given, deny: Given
) -> Call[VectorHits]:
    """Ask for items near vectors."""
    body = checked(VectorRequest, {"vectors": vectors, "k": k, "allow": allow, "deny": deny})
    return Call("POST", "/v1/search", _HITS, {"json": _sent(body)})


def nobody(name: str, k: int, allow: Given, deny: Given) -> Call[ItemList]:
    """Ask for the `popular` or the `recent` items."""
    return Call("GET", f"/v1/{name}", _LIST, {"params": _params(k, allow, deny)})


def titles(title: str, k: int, allow: Given, deny: Given) -> Call[FoundItems]:
    """Ask for items by title."""
    return Call("GET", "/v1/items", _FOUND, {"params": {"title": title} | _params(k, allow, deny)})


def items(item_ids: Sequence[str]) -> Call[ItemDetailsList]:
    """Ask what is known of items."""
    body = checked(ItemsRequest, {"items": list(item_ids)})
    return Call("POST", "/v1/items", _DETAILS, {"json": _sent(body)})


def atoms(k: int, atom: int | None) -> Call[AtomList]:
    """Ask for the atoms that most items hold, or for the strongest items of one."""
    params = {"k": k} if atom is None else {"k": k, "atom": atom}
    return Call("GET", "/v1/atoms", _ATOMS, {"params": params})


def scenarios() -> Call[Scenarios]:
    """Ask for the presets of the service."""
    return Call("GET", "/v1/scenarios", _SCENARIOS)


def events(entries: Sequence[EventEntry | Mapping[str, Any]]) -> Call[Taken]:
    """Tell what users did; events get an id here, so that a repeated request counts once."""
    body = checked(EventsRequest, {"events": [_with_id(entry) for entry in entries]})
    return Call("POST", "/v1/events", _TAKEN, {"json": _sent(body)})


def erase(user_id: str) -> Call[Erased]:
    """Have the events of a user forgotten."""
    body = checked(EraseRequest, {"user_id": user_id})
    return Call("POST", "/v1/admin/erase", _ERASED, {"json": _sent(body)})


def health() -> Call[Health]:
    """Ask whether the service is up."""
    return Call("GET", "/v1/health", _HEALTH)


def status() -> Call[Status]:
    """Ask what one replica serves."""
    return Call("GET", "/v1/status", _STATUS)


def evaluation() -> Call[EvaluationAnswer]:
    """Ask what evaluations say of what is served."""
    return Call("GET", "/v1/evaluation", _EVALUATION)


def replicas() -> Call[Replicas]:
    """Ask what every replica serves."""
    return Call("GET", "/v1/admin/replicas", _REPLICAS)


def reload() -> Call[Replicas]:
    """Have every replica look for newer builds."""
    return Call("POST", "/v1/admin/reload", _REPLICAS)


def rollback(build_id: str | None, kind: str) -> Call[Replicas]:
    """Have a build of before served; asked twice it would go two steps back."""
    body = checked(RollbackRequest, {"build_id": build_id, "kind": kind})
    return Call("POST", "/v1/admin/rollback", _REPLICAS, {"json": _sent(body)}, repeatable=False)


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
    """Return a request as JSON values: what was given, so that presets fill in the rest."""
    content: dict[str, Any] = body.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    return content


def _params(k: int, allow: Given, deny: Given) -> dict[str, Any]:
    given = {"allow": allow, "deny": deny}
    return {"k": k} | {name: json.dumps(dict(each)) for name, each in given.items() if each}


def _with_id(entry: EventEntry | Mapping[str, Any]) -> Any:
    given = entry.model_dump(exclude_none=True) if isinstance(entry, EventEntry) else entry
    if not isinstance(given, Mapping) or given.get("event_id") is not None:
        return given
    return {**given, "event_id": uuid.uuid4().hex}


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
