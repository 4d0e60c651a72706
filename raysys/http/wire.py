"""The wire types of HTTP v1 beside those of `search.query`: other requests, answers and errors."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from raysys.search.query import Condition, SimilarItem, Wire

MAX_VECTORS = 1_000
CONDITIONS = TypeAdapter(dict[str, Condition])


_Vector = Annotated[list[FiniteFloat], Field(min_length=1, fail_fast=True)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class SimilarItems:
    """Answer of GET /v1/items/{item_id}/similar; the score is a cosine."""

    build_id: str
    item_id: str
    items: list[SimilarItem]


class VectorRequest(Wire):
    """Body of POST /v1/search: vectors in the space of the indexed ones."""

    vectors: Annotated[list[_Vector], Field(min_length=1, max_length=MAX_VECTORS, fail_fast=True)]
    k: int = Field(20, ge=1, description="length of every list")
    allow: dict[str, Condition] | None = None
    deny: dict[str, Condition] | None = None


@dataclasses.dataclass(frozen=True)
class VectorHits:
    """Answer of POST /v1/search: one list per vector; the score is a cosine."""

    build_id: str
    lists: list[list[SimilarItem]]


class Health(_Answer):
    """Answer of GET /v1/health: the service has loaded its builds and answers."""

    status: Literal["ok"] = "ok"
    build_id: str


class Followed(_Answer):
    """How a replica follows its run."""

    every_s: float = Field(description="seconds between looks for newer builds")
    swaps: int = Field(description="newer builds that were taken since the start")
    served_since: int = Field(description="UTC seconds at which the present builds were taken")
    refused: str | None = Field(None, description="why something newer is not served")


class Status(_Answer):
    """Answer of GET /v1/status, of the one replica that was asked."""

    build_ids: dict[str, str]
    facts: dict[str, Any]
    rankings: list[str]
    n_items: int
    n_users: int
    uptime_s: float
    counts: dict[str, int] = Field(description="requests since the start, by outcome")
    following: Followed | None = Field(None, description="null: one index is served for good")


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
