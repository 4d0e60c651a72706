"""The wire types of HTTP v1 beside those of `search.query`: other requests, answers and errors."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict, TypeAdapter

from raysys.search.query import (
    Answer,
    Atom,
    AtomWeights,
    Condition,
    Count,
    FoundItem,
    Id,
    ItemDetails,
    RankingText,
    RecommendQuery,
    Seconds,
    SimilarItem,
    Wire,
)

VERSION = metadata.version("raysys")
MAX_VECTORS = 1_000
MAX_QUERIES = 256  # of a batch
MAX_ITEMS = 1_000  # that are described, or that others are to be like
MAX_EVENTS = 1_000  # of a request
CONDITIONS = TypeAdapter(dict[str, Condition])

_Vector = Annotated[list[Annotated[FiniteFloat, Strict()]], Field(min_length=1, fail_fast=True)]
_Length = Annotated[Count, Field(ge=1, description="length of the list")]


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Answer):
    """One rejected field."""

    field: str
    message: str


class ErrorInfo(_Answer):
    """What went wrong, for programs (`type`) and people (`message`)."""

    type: str
    message: str
    details: list[ErrorDetail] = []


class ErrorBody(_Answer):
    """The body of every answer that is not 200."""

    error: ErrorInfo


class BatchRequest(Wire):
    """Body of POST /v1/recommend/batch: queries that are answered each for itself."""

    model_config = _example({"queries": [{"user_id": "42", "k": 5}, {"profile": [], "k": 5}]})

    queries: Annotated[
        list[RecommendQuery], Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True)
    ]


class SimilarRequest(Wire):
    """Body of POST /v1/similar: items of the catalogue that others are to be like together."""

    model_config = _example({"items": ["1193", "661"], "k": 5})

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
    k: _Length = 20
    allow: dict[str, Condition] | None = None
    deny: dict[str, Condition] | None = None


class ItemsRequest(Wire):
    """Body of POST /v1/items: items to be described."""

    model_config = _example({"items": ["1193", "661"]})

    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class VectorRequest(Wire):
    """Body of POST /v1/search: vectors in the space of the indexed ones."""

    model_config = _example({"vectors": [[0.1, 0.7]], "k": 5})

    vectors: Annotated[list[_Vector], Field(min_length=1, max_length=MAX_VECTORS, fail_fast=True)]
    k: Count = Field(20, ge=1, description="length of every list")
    allow: dict[str, Condition] | None = None
    deny: dict[str, Condition] | None = None


class EventEntry(Wire):
    """What a user did with an item."""

    event_id: Annotated[Id, Field(max_length=200)] | None = Field(
        None, description="one that the user has already is the same event; null: it gets a new one"
    )
    user_id: Id
    item_id: Id
    rating: Annotated[FiniteFloat, Strict()] | None = Field(None, description="in rating units")
    event: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="its kind, such as `purchase`"
    )
    timestamp: Seconds | None = Field(None, description="UTC seconds; null: now")


class EventsRequest(Wire):
    """Body of POST /v1/events."""

    model_config = _example(
        {"events": [{"event_id": "a1", "user_id": "42", "item_id": "1193", "rating": 4.0}]}
    )

    events: Annotated[list[EventEntry], Field(min_length=1, max_length=MAX_EVENTS, fail_fast=True)]


@dataclasses.dataclass(frozen=True)
class Taken:
    """Answer of POST /v1/events: all of them are written down, whatever happens to the service.

    Attributes:
        accepted: events of the request.
        not_counted: of these, lists do not follow: the build does not know their item or kind yet,
            or they are too old.
    """

    accepted: int
    not_counted: int


class EraseRequest(Wire):
    """Body of POST /v1/admin/erase."""

    model_config = _example({"user_id": "42"})

    user_id: Id


@dataclasses.dataclass(frozen=True)
class Erased:
    """Answer of POST /v1/admin/erase.

    Attributes:
        user_id: whose events go.
        until_ms: events received by then, UTC milliseconds.
    """

    user_id: str
    until_ms: int


class Scenario(Wire):
    """A preset: what a query that names it has where it says nothing itself.

    Its conditions hold beside those of the query; of one attribute the preset's hold.
    """

    k: int | None = Field(None, ge=1)
    ranking: RankingText | None = None
    gamma: Annotated[FiniteFloat, Field(ge=0)] | None = None
    exclude_seen: bool | None = None
    levels: bool | None = None
    explain: bool | None = None
    fallback: bool | None = None
    atoms: AtomWeights | None = None
    allow: Annotated[dict[str, Condition], Field(min_length=1)] | None = None
    deny: Annotated[dict[str, Condition], Field(min_length=1)] | None = None

    def filled(self, query: RecommendQuery, *, over: bool = False) -> RecommendQuery:
        """Return a query with what it does not say itself; `over` it says nothing here itself."""
        said = frozenset() if over else query.model_fields_set
        given: dict[str, Any] = {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None and name not in said
        }
        for name in ("allow", "deny"):
            own, asked = getattr(self, name), getattr(query, name)
            if own:  # also where a query says that it has none
                given[name] = {**(asked or {}), **own}
        return query.model_copy(update=given)


@dataclasses.dataclass(frozen=True)
class BatchEntry:
    """One answer of a batch, or what is wrong with its query."""

    answer: Answer | None = None
    error: ErrorInfo | None = None


@dataclasses.dataclass(frozen=True)
class BatchAnswer:
    """Answer of POST /v1/recommend/batch, in the order of the queries."""

    answers: list[BatchEntry]


@dataclasses.dataclass(frozen=True)
class _Builds:
    build_id: str
    changes_id: str | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class ItemList(_Builds):
    """Items, best first; the score is what the route says."""

    items: list[SimilarItem]


@dataclasses.dataclass(frozen=True)
class SimilarItems(_Builds):
    """Answer of GET /v1/items/{item_id}/similar; the score is a cosine."""

    item_id: str
    items: list[SimilarItem]


@dataclasses.dataclass(frozen=True)
class VectorHits(_Builds):
    """Answer of POST /v1/search: one list per vector; the score is a cosine."""

    lists: list[list[SimilarItem]]


@dataclasses.dataclass(frozen=True)
class AtomList(_Builds):
    """Answer of GET /v1/atoms: those that most items hold first, or the one that was asked for."""

    atoms: list[Atom]


@dataclasses.dataclass(frozen=True)
class FoundItems(_Builds):
    """Answer of GET /v1/items?title=: items by their title."""

    items: list[FoundItem]


@dataclasses.dataclass(frozen=True)
class ItemDetailsList(_Builds):
    """Answer of POST /v1/items, in the order of the request."""

    items: list[ItemDetails]
    unknown_items: list[str]


@dataclasses.dataclass(frozen=True)
class Scenarios:
    """Answer of GET /v1/scenarios."""

    scenarios: dict[str, Scenario]


class Health(_Answer):
    """Answer of GET /v1/health: the service has loaded its builds and answers."""

    status: Literal["ok"] = "ok"
    build_id: str
    version: str = VERSION


class Followed(_Answer):
    """How a replica follows its run."""

    every_s: float = Field(description="seconds between looks for newer builds")
    swaps: int = Field(description="newer builds that were taken since the start")
    served_since: int = Field(description="UTC seconds at which the present builds were taken")
    refused: str | None = Field(None, description="why something newer is not served")


class Estimate(_Answer):
    """A metric with its 95 % interval, where one was drawn."""

    mean: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


class Evaluation(_Answer):
    """Headline metrics of `raysys evaluate`, of what is served."""

    reports: list[str] = Field(description="their names in the run")
    period: str = Field(description="the window of the targets: val or test")
    cutoffs: dict[str, int] | None = Field(description="UTC seconds at which the windows begin")
    split: str
    protocol: str
    users: int = Field(description="rows of the evaluation")
    methods: dict[str, dict[str, Estimate]] = Field(
        description="metrics by method: index, model and codes are what is served"
    )


class EvaluationAnswer(_Answer):
    """Answer of GET /v1/evaluation."""

    build_id: str
    evaluation: Evaluation | None = Field(description="null: what is served was not evaluated")


class Replica(_Answer):
    """What one replica serves, and how it follows."""

    replica: str
    build_ids: dict[str, str]
    uptime_s: float
    following: Followed | None = None


class Replicas(_Answer):
    """Answer of the routes of /v1/admin/: what every replica serves now."""

    replicas: list[Replica]
    unanswered: int = Field(0, description="replicas that did not answer")


class RollbackRequest(Wire):
    """Body of POST /v1/admin/rollback."""

    model_config = _example({})

    build_id: str | None = Field(None, description="of a build that was served before")
    kind: Literal["index", "changes"] = Field("index", description="what goes one step back")


class ArmState(_Answer):
    """One arm of an experiment."""

    arm: str
    share: float = Field(description="of users")
    build_id: str = Field(description="of the index that its users are answered from")


class ExperimentState(_Answer):
    """The experiment that a service runs."""

    experiment: str
    arms: list[ArmState]


class Status(_Answer):
    """Answer of GET /v1/status, of the one replica that was asked."""

    build_ids: dict[str, str]
    facts: dict[str, Any]
    rankings: list[str]
    n_items: int
    n_users: int
    uptime_s: float
    version: str = VERSION
    counts: dict[str, int] = Field(description="requests since the start, by outcome")
    following: Followed | None = Field(None, description="null: one index is served for good")
    experiment: ExperimentState | None = Field(None, description="null: none is run")
