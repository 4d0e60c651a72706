"""A question to a search and its answer: one set of types from the request to the list.

HTTP takes and returns them as JSON, the client takes and returns them, `raysys query` asks with
them and `Search` answers them. Ids are strings; integers are accepted and read as decimal text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raysys.errors import ConfigError, DataError
from raysys.scoring.rankings import (
    DEFAULT_GAMMA,
    MAX_GAMMA,
    NAMES,
    RANKINGS,
    Ranking,
    spellings,
)

MAX_PROFILE = 10_000
MAX_ATOMS = 32  # that one query raises or mutes
MAX_CURSOR = 1 << 20  # characters, and those of all queries of a batch
_MAX_FIELDS = 50  # of an object
_MAX_VALUES = 1_000  # of a condition
_YEAR_5138 = 100_000_000_000  # larger numbers are milliseconds

Items = NDArray[np.int32]
Floats = NDArray[np.floating[Any]]


class UnknownUserError(DataError):
    """A user id that the profiles do not hold."""


def _id_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode: it holds half of a surrogate pair") from None
    return value


def _ranking_text(value: str) -> str:
    try:
        Ranking.parse(value)
    except ConfigError:
        *others, last = map(repr, spellings())
        raise PydanticCustomError(
            "ranking", "Input should be {expected}", {"expected": f"{', '.join(others)} or {last}"}
        ) from None
    return value


_MAX_ID = 4096
Id = Annotated[
    str,
    BeforeValidator(_id_text),
    AfterValidator(_encodable),
    Field(min_length=1, max_length=_MAX_ID),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": _MAX_ID},
                {"type": "integer", "description": "read as its decimal text"},
            ]
        }
    ),
]
_NO_TRUTH = BeforeValidator(_no_truth)  # texts of numbers are what a command line has
Seconds = Annotated[int, _NO_TRUTH, Field(ge=0, lt=_YEAR_5138)]  # UTC
Count = Annotated[int, Strict()]  # true is no number
Flag = Annotated[bool, Strict()]  # 1 is neither true nor false
_WITH_GAMMA = "|".join(name for name, rule in RANKINGS.items() if rule.gamma is not None)
_WEIGHTED = rf"^({_WITH_GAMMA})\^[0-9](\.[0-9]{{1,6}})?$"  # a part of what is accepted
RankingText = Annotated[
    str,
    AfterValidator(_ranking_text),
    WithJsonSchema({"type": "string", "anyOf": [{"enum": list(NAMES)}, {"pattern": _WEIGHTED}]}),
]


class Wire(BaseModel):
    """A request: fields that it does not know are refused, those that it has are never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > _MAX_FIELDS:
            raise ValueError(f"{len(given)} fields: expected {_MAX_FIELDS} at most")
        return given


Value = str | bool | int | FiniteFloat
Bound = str | Annotated[FiniteFloat, Strict()]  # true is no number


class Range(Wire):
    """A range of numbers or of ISO 8601 dates, ends included; numbers may be text."""

    min: Bound | None = None
    max: Bound | None = None


AtomNumber = Annotated[str, BeforeValidator(_id_text), Field(max_length=20)]
AtomWeights = Annotated[
    dict[AtomNumber, Annotated[FiniteFloat, _NO_TRUTH, Field(ge=-1, le=1)]],
    Field(max_length=MAX_ATOMS),
]
Condition = Value | Annotated[list[Value], Field(max_length=_MAX_VALUES, fail_fast=True)] | Range
"""One value, any of several, or a range; text is compared as text, numbers as numbers."""


class ProfileEntry(Wire):
    """One interaction of a posted profile; without rating and event it counts as a liking."""

    item_id: Id
    rating: Annotated[FiniteFloat, _NO_TRUTH] | None = Field(None, description="in rating units")
    event: str | None = Field(None, description="an event level, in logs that have events")
    timestamp: Seconds | None = Field(None, description="UTC seconds")


class RecommendQuery(Wire):
    """Body of POST /v1/recommend: a stored user, a profile (empty: the prior), or both.

    With both, the profile is what the user did since the history was stored.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["user_id"], "properties": {"user_id": {"not": {"type": "null"}}}},
                {"required": ["profile"], "properties": {"profile": {"not": {"type": "null"}}}},
            ],
            "examples": [
                {"user_id": "42", "k": 10, "ranking": "like"},
                {
                    "profile": [{"item_id": "1193", "rating": 5}, {"item_id": "661"}],
                    "k": 5,
                    "explain": True,
                },
                {"user_id": "42", "profile": [{"item_id": "1193"}], "fallback": True},
            ],
        }
    )

    user_id: Id | None = Field(None, description="a stored user")
    profile: Annotated[list[ProfileEntry], Field(max_length=MAX_PROFILE, fail_fast=True)] | None = (
        Field(
            None,
            description="interactions {item_id, rating?, event?, timestamp?}; alone and empty: the "
            "prior; with user_id: what came after the stored history",
        )
    )
    k: Count = Field(20, ge=1, description="length of the list")
    ranking: RankingText | None = Field(
        None,
        description=f"order of the list: {', '.join(spellings())}; default: consume, or similar "
        "where the build has no autoencoder",
    )
    exclude_seen: Flag = Field(True, description="leave out the items of the profile")
    gamma: Annotated[FiniteFloat, Strict()] = Field(
        DEFAULT_GAMMA,
        ge=0,
        description="weight against likely finds, where the text of the ranking has none",
        json_schema_extra={"maximum": MAX_GAMMA},  # the service's, see `create_app`
    )
    allow: Annotated[dict[str, Condition], Field(max_length=_MAX_FIELDS)] | None = Field(
        None, description="conditions on item attributes that must hold"
    )
    deny: Annotated[dict[str, Condition], Field(max_length=_MAX_FIELDS)] | None = Field(
        None, description="conditions on item attributes none of which may hold"
    )
    atoms: AtomWeights | None = Field(
        None,
        description="atoms of the codes to raise (up to 1) or mute (down to -1), by their number: "
        '{"17": 1, "204": -1}; scores follow, probabilities stay',
    )
    levels: Flag = Field(False, description="return P(level) of every level")
    explain: Flag = Field(
        False, description="name with each item what of the profile and which atoms brought it"
    )
    cursor: Annotated[str, Field(max_length=MAX_CURSOR)] | None = Field(
        None, description="of the answer before: the list goes on behind it and never repeats"
    )
    fallback: Flag = Field(
        False,
        description="for an unknown user, an unknown ranking or a profile without a known item, "
        "answer with what is left: the model, similar items, popular items",
    )
    scenario: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="a preset of the service: fields that are not given are its own"
    )
    experiment: Flag = Field(True, description="false: in no arm, as where staff look at a user")

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if self.user_id is None and self.profile is None:
            raise ValueError("give user_id, profile or both")
        return self

    def order(self, default: str) -> Ranking:
        """Return the ranking asked for, or the default."""
        return Ranking.parse(self.ranking or default, self.gamma)


@dataclasses.dataclass
class FoundItem:
    """One item of the catalogue."""

    item_id: str
    title: str | None


@dataclasses.dataclass
class ItemDetails(FoundItem):
    """One item with its attributes, as JSON values; conditions of `allow` and `deny` name them."""

    attributes: dict[str, Any]


@dataclasses.dataclass
class SimilarItem:
    """One item of a list."""

    item_id: str
    title: str | None
    score: Annotated[float, Field(description="of the ranking, or a cosine; higher is better")]


@dataclasses.dataclass
class AtomShare:
    """One atom of an item's code; `share` is its part, with its sign, of all atoms' sizes."""

    atom: int
    name: str | None
    share: float


@dataclasses.dataclass
class Atom:
    """One atom of the codes."""

    atom: int
    name: str | None
    n_items: Annotated[int, Field(description="items that hold it with its sign")]
    items: Annotated[
        list[SimilarItem], Field(description="that hold most of it; the score is how much")
    ]


@dataclasses.dataclass
class Hit(SimilarItem):
    """One recommended item; probabilities are null where the build has no autoencoder.

    `levels` is there on request only, and never for upserted items.
    """

    p_consume: Annotated[
        float | None, Field(description="P(item | profile), sums to 1 over items")
    ] = None
    p_like: Annotated[float | None, Field(description="P(a liked level | item, profile)")] = None
    expected_rating: Annotated[
        float | None, Field(description="in rating units; null: no ratings")
    ] = None
    levels: Annotated[
        dict[str, float] | None,
        Field(description="P(level), on request", exclude_if=lambda levels: not levels),
    ] = None
    because: Annotated[
        list[SimilarItem] | None,
        Field(
            description="items of the profile that are most like this one, by cosine; on request",
            exclude_if=lambda because: because is None,
        ),
    ] = None
    atoms: Annotated[
        list[AtomShare] | None,
        Field(
            description="at most 5 atoms that brought most, on request; none of items that came "
            "after the index",
            exclude_if=lambda atoms: atoms is None,
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class Degraded:
    """Why an answer is not the one that was asked for, and what made it.

    Attributes:
        reason: `unknown_user`; `no_history`: no item of the user or profile is known; `ranking`:
            the build cannot give it.
        answered_by: `model`, `similar` or `popular`.
    """

    reason: Literal["unknown_user", "no_history", "ranking"]
    answered_by: Literal["model", "similar", "popular"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Answer of POST /v1/recommend: a list, best first.

    Attributes:
        build_id: of the index.
        ranking: what the list is sorted by, as it was asked for.
        unknown_items: profile items that the catalogue does not hold.
        items: at most k hits.
        counted_until: UTC seconds that the counters of what is taken lately stand at; None where
            lists do not follow time.
        changes_id: of the changes since the index; None without any.
        cursor: asks for the next page; None where this list is the last.
        degraded: why this is not what was asked for; None where it is.
        arm: of the experiment that the user is in; None where there is none.
        took_ms: milliseconds by stage.
    """

    build_id: str
    ranking: RankingText
    unknown_items: Annotated[list[str], Field(description="profile items outside the catalogue")]
    items: list[Hit]
    counted_until: Annotated[
        int | None, Field(description="UTC seconds that the counters of items stand at")
    ] = None
    changes_id: Annotated[
        str | None, Field(description="of the changes since the index was built")
    ] = None
    cursor: Annotated[
        str | None, Field(description="asks for the next page; null: this was the last")
    ] = None
    degraded: Annotated[
        Degraded | None, Field(description="why this is not what was asked for; null: it is")
    ] = None
    arm: Annotated[
        str | None, Field(description="of the experiment that the user is in; null: in none")
    ] = None
    took_ms: Annotated[
        dict[str, float], Field(description="milliseconds by stage, of a batch as a whole")
    ] = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The list of one user, best first.

    Attributes:
        item_nums: int32 [k].
        scores: [k] of the ranking.
        p_consume, p_like: [k], None without an autoencoder.
        expected_rating: [k], None where the model has no rated levels, nan for upserted items.
        level_probs: [k, R], nan for upserted items; None without an autoencoder.
    """

    item_nums: Items
    scores: Floats
    p_consume: Floats | None = None
    p_like: Floats | None = None
    expected_rating: Floats | None = None
    level_probs: Floats | None = None


def conditions(given: Mapping[str, Condition] | None) -> dict[str, Any] | None:
    """Return conditions as plain values."""
    if given is None:
        return None
    return {
        name: c.model_dump(exclude_none=True) if isinstance(c, Range) else c
        for name, c in given.items()
    }
