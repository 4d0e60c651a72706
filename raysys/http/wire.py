"""The wire types of HTTP v1: what requests and answers look like as JSON.

Ids are strings; JSON integers are accepted and read as their decimal text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    TypeAdapter,
    model_validator,
)

from raysys.search.query import DEFAULT_GAMMA

MAX_PROFILE = 10_000
MAX_VECTORS = 1_000
_YEAR_5138 = 100_000_000_000  # larger numbers are milliseconds

Ranking = Literal["consume", "rating", "like", "discover", "similar"]


def _id_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: it holds half of a surrogate pair") from None
    return value


Id = Annotated[
    str, BeforeValidator(_id_text), AfterValidator(_encodable), Field(min_length=1, max_length=4096)
]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid")


Value = str | bool | int | FiniteFloat
Bound = str | Annotated[FiniteFloat, Strict()]  # true is no number


class Range(_Wire):
    """A range of numbers or of ISO 8601 dates, ends included; numbers may be text."""

    min: Bound | None = None
    max: Bound | None = None


Condition = Value | list[Value] | Range
"""One value, any of several, or a range; text is compared as text, numbers as numbers."""


class ProfileItem(_Wire):
    """One interaction of a posted profile; without rating and event it counts as a liking."""

    item_id: Id
    rating: FiniteFloat | None = None
    event: str | None = None
    timestamp: Annotated[int, Field(ge=0, lt=_YEAR_5138)] | None = Field(
        None, description="UTC seconds"
    )


class RecommendRequest(_Wire):
    """Body of POST /v1/recommend: a stored user, or a profile (empty: the prior)."""

    user_id: Id | None = None
    profile: Annotated[list[ProfileItem], Field(max_length=MAX_PROFILE)] | None = None
    k: int = Field(20, ge=1, description="length of the list")
    ranking: Ranking | None = Field(
        None, description="default: consume, or similar where the build has no autoencoder"
    )
    exclude_seen: bool = True
    gamma: float = Field(
        DEFAULT_GAMMA, ge=0, le=10, description="discover: weight against likely finds"
    )

    allow: dict[str, Condition] | None = Field(
        None, description="conditions on item attributes that must hold"
    )
    deny: dict[str, Condition] | None = Field(
        None, description="conditions on item attributes none of which may hold"
    )
    levels: bool = Field(False, description="return P(level) of every level with each item")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.user_id is None) == (self.profile is None):
            raise ValueError("give either user_id or profile")
        return self


class Item(_Wire):
    """One recommended item; probabilities are null where the build has no autoencoder."""

    item_id: str
    title: str | None = None
    score: float = Field(description="of the ranking; higher is better")
    p_consume: float | None = Field(None, description="P(item | profile), sums to 1 over items")
    p_like: float | None = Field(None, description="P(a liked level | item, profile)")
    expected_rating: float | None = Field(None, description="in rating units; null: no ratings")
    levels: dict[str, float] | None = Field(None, description="P(level), on request")


class Recommendations(_Wire):
    """Answer of POST /v1/recommend."""

    build_id: str
    ranking: Ranking
    unknown_items: list[str] = Field(description="profile items outside the catalogue")
    items: list[Item]


class SimilarItem(_Wire):
    """One similar item; the score is a cosine."""

    item_id: str
    title: str | None = None
    score: float


class SimilarItems(_Wire):
    """Answer of GET /v1/items/{item_id}/similar."""

    build_id: str
    item_id: str
    items: list[SimilarItem]


class VectorRequest(_Wire):
    """Body of POST /v1/search: vectors in the space of the indexed ones."""

    vectors: Annotated[list[list[FiniteFloat]], Field(min_length=1, max_length=MAX_VECTORS)]
    k: int = Field(20, ge=1, description="length of every list")
    allow: dict[str, Condition] | None = None
    deny: dict[str, Condition] | None = None


class VectorHits(_Wire):
    """Answer of POST /v1/search: one list per vector; the score is a cosine."""

    build_id: str
    lists: list[list[SimilarItem]]


class Health(_Wire):
    """Answer of GET /v1/health: the service has loaded its builds and answers."""

    status: Literal["ok"] = "ok"
    build_id: str


class Status(_Wire):
    """Answer of GET /v1/status, of the one replica that was asked."""

    build_ids: dict[str, str]
    facts: dict[str, Any]
    rankings: list[str]
    n_items: int
    n_users: int
    uptime_s: float
    counts: dict[str, int] = Field(description="requests since the start, by outcome")


class ErrorDetail(_Wire):
    """One rejected field."""

    field: str
    message: str


class ErrorInfo(_Wire):
    """What went wrong, for programs (`type`) and people (`message`)."""

    type: str
    message: str
    details: list[ErrorDetail] = []


class ErrorBody(_Wire):
    """The body of every answer that is not 200."""

    error: ErrorInfo


CONDITIONS = TypeAdapter(dict[str, Condition])


def conditions(given: dict[str, Condition] | None) -> dict[str, Any] | None:
    """Return conditions as plain values."""
    if given is None:
        return None
    return {
        name: c.model_dump(exclude_none=True) if isinstance(c, Range) else c
        for name, c in given.items()
    }
