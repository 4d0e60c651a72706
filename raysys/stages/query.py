"""Query: ask the builds of a run, or a running service, from the shell; the answer is a table.

Examples:
    raysys query run=R user_id=42 ranking=like top_k=10
    raysys query run=R 'profile=[{item_id: "1193", rating: 5}, {item_id: "661"}]'
    raysys query run=R similar_to=1193
    raysys query url=http://127.0.0.1:8000 user_id=42
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from raysys.builds import Workspace
from raysys.config import JobConfig, require, require_run
from raysys.errors import ConfigError
from raysys.retrieval.query import DEFAULT_GAMMA, Hit, ProfileEntry, RecommendQuery
from raysys.retrieval.search import Search
from raysys.serving.client import Client
from raysys.serving.wire import Item, SimilarItem

log = logging.getLogger(__name__)

_TITLE_WIDTH = 48


@dataclasses.dataclass
class QueryEntry:
    """One interaction of `profile`."""

    item_id: str = ""
    rating: float | None = None
    event: str | None = None
    timestamp: int | None = None


@dataclasses.dataclass
class QueryConfig(JobConfig):
    """One question: exactly one of `user_id`, `profile` and `similar_to`.

    Attributes:
        url: of a running service; without it the builds of `run` are opened here.
        user_id: a stored user.
        profile: a list of {item_id, rating?, event?, timestamp?}; empty asks for the prior.
        similar_to: an item_id.
        top_k: length of the list.
        ranking: consume, rating, like, discover or similar; null takes the build's first.
        exclude_seen: leave out the items of the profile.
        gamma: of the discover ranking.
    """

    url: str | None = None
    user_id: str | None = None
    profile: list[QueryEntry] | None = None
    similar_to: str | None = None
    top_k: int = 20
    ranking: str | None = None
    exclude_seen: bool = True
    gamma: float = DEFAULT_GAMMA

    def __post_init__(self) -> None:
        """Raise ConfigError for a length out of range."""
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")


def query(cfg: QueryConfig) -> str:
    """Return the answer as a table.

    Raises:
        ConfigError: not exactly one question; RaysysError: see `Search` and `ServiceError`.
    """
    asked = [cfg.user_id is not None, cfg.profile is not None, cfg.similar_to is not None]
    if sum(asked) != 1:
        raise ConfigError("query answers exactly one of user_id=, profile= and similar_to=")
    return _ask_service(cfg) if cfg.url else _ask_builds(cfg)


def _ask_builds(cfg: QueryConfig) -> str:
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    search = Search.open(workspace, users=cfg.user_id is not None)
    if cfg.similar_to is not None:
        return format_table(search.similar(cfg.similar_to, top_k=cfg.top_k))
    entries = cfg.profile
    answer = search.recommend(
        RecommendQuery(
            user_id=cfg.user_id,
            profile=None if entries is None else [ProfileEntry(**vars(e)) for e in entries],
            top_k=cfg.top_k,
            ranking=cfg.ranking,
            exclude_seen=cfg.exclude_seen,
            gamma=cfg.gamma,
        )
    )
    _warn_of_unknown(answer.unknown_items)
    return format_table(answer.items)


def _ask_service(cfg: QueryConfig) -> str:
    assert cfg.url is not None
    with Client(cfg.url) as client:
        if cfg.similar_to is not None:
            return format_table(client.similar(cfg.similar_to, k=cfg.top_k).items)
        entries = cfg.profile
        answer = client.recommend(
            user_id=cfg.user_id,
            profile=None if entries is None else [vars(entry) for entry in entries],
            k=cfg.top_k,
            ranking=cfg.ranking,
            exclude_seen=cfg.exclude_seen,
            gamma=cfg.gamma,
        )
    _warn_of_unknown(answer.unknown_items)
    return format_table(answer.items)


def format_table(items: Sequence[Hit | Item | SimilarItem]) -> str:
    """Return aligned columns; those that are empty throughout are left out."""
    rows = [_row(rank, item) for rank, item in enumerate(items, start=1)]
    if not rows:
        return "no items\n"
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = [{name: name for name in names}, *rows]
    text = ("  ".join(_align(name, line[name], widths[name]) for name in names) for line in lines)
    return "\n".join(line.rstrip() for line in text) + "\n"


def _row(rank: int, item: Hit | Item | SimilarItem) -> dict[str, str]:
    def number(name: str, form: str) -> str:
        value = getattr(item, name, None)
        return "" if value is None else format(value, form)

    title = item.title or ""
    return {
        "rank": str(rank),
        "item_id": item.item_id,
        "title": title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + "…",
        "score": format(item.score, ".4g"),
        "P(consume)": number("p_consume", ".5f"),
        "P(like)": number("p_like", ".3f"),
        "E(rating)": number("expected_rating", ".2f"),
    }


def _align(name: str, text: str, width: int) -> str:
    return text.ljust(width) if name in ("item_id", "title") else text.rjust(width)


def _warn_of_unknown(ids: Sequence[str]) -> None:
    if ids:
        log.warning("items not in the catalogue item_ids=%s", ", ".join(map(repr, ids)))
