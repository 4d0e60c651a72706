"""Query: ask the builds of a run, or a running service, from the shell; the answer is a table.

Examples:
    raysys query run=R user_id=42 ranking=like top_k=10
    raysys query run=R 'profile=[{item_id: "1193", rating: 5}, {item_id: "661"}]'
    raysys query run=R 'titles=[Toy Story, "Jumanji (1995)"]' 'allow={genres: [Comedy, Drama]}'
    raysys query run=R similar_to=1193
    raysys query run=R vector=[0.1,0.7,...]          (or vectors=FILE.npy, one table each)
    raysys query run=R user_id=42 explain=1193
    raysys query url=http://127.0.0.1:8000 user_id=42
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.config import JobConfig, identifier, location, require, require_run
from raysys.errors import ConfigError, DataError
from raysys.http.client import Client
from raysys.http.wire import Item, SimilarItem
from raysys.reports.tables import aligned
from raysys.search.explain import Explained
from raysys.search.items import ItemTable
from raysys.search.query import DEFAULT_GAMMA, Hit, ProfileEntry, RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_TITLE_WIDTH = 48
_SHOWN = 3
_LEFT = ("item_id", "title", "P(level)", "in the profile", "most of it")
_QUESTIONS = ("user_id", "profile", "titles", "similar_to", "vector", "vectors")


@dataclasses.dataclass
class QueryEntry:
    """One interaction of `profile`."""

    item_id: str = identifier("")
    rating: float | None = None
    event: str | None = None
    timestamp: int | None = None


@dataclasses.dataclass
class QueryConfig(JobConfig):
    """One question: exactly one of user_id, profile, titles, similar_to, vector and vectors.

    Attributes:
        url: of a running service; without it the builds of `run` are opened here.
        user_id: a stored user.
        profile: a list of {item_id, rating?, event?, timestamp?}; empty asks for the prior.
        titles: a profile of liked items by title, or by text that one title alone holds.
        similar_to: an item_id.
        vector: numbers in the space of the indexed vectors.
        vectors: .npy matrix of such rows.
        explain: an item_id: the atoms that it shares with the profile or user.
        top_k: length of the list.
        ranking: consume, rating, like, discover or similar; null takes the build's first.
        exclude_seen: leave out the items of the profile.
        gamma: of the discover ranking.
        allow: conditions on item attributes that must hold: {genres: Comedy, year: {min: 1990}}.
        deny: conditions none of which may hold.
        levels: show P(level) of every level.
    """

    url: str | None = None
    user_id: str | None = identifier()
    profile: list[QueryEntry] | None = None
    titles: list[str] | None = None
    similar_to: str | None = identifier()
    vector: list[float] | None = None
    vectors: str | None = location(None)
    explain: str | None = identifier()
    top_k: int = 20
    ranking: str | None = None
    exclude_seen: bool = True
    gamma: float = DEFAULT_GAMMA
    allow: dict[str, Any] = dataclasses.field(default_factory=dict)
    deny: dict[str, Any] = dataclasses.field(default_factory=dict)
    levels: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for a length out of range."""
        require(self.top_k >= 1, "top_k", self.top_k, "1 or more")


def query(cfg: QueryConfig) -> str:
    """Return the answer as a table.

    Raises:
        ConfigError: not exactly one question; RaysysError: see `Search` and `ServiceError`.
    """
    asked = [name for name in _QUESTIONS if getattr(cfg, name) is not None]
    if len(asked) != 1:
        raise ConfigError(f"query answers exactly one of {', '.join(f'{q}=' for q in _QUESTIONS)}")
    if cfg.explain is not None and asked[0] not in ("user_id", "profile", "titles"):
        raise ConfigError(f"explain= goes with user_id=, profile= or titles=, not {asked[0]}=")
    return _ask_service(cfg, asked[0]) if cfg.url else _ask_builds(cfg)


def _ask_builds(cfg: QueryConfig) -> str:
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    search = Search.open(workspace, users=cfg.user_id is not None)
    limits: dict[str, Any] = {"top_k": cfg.top_k, "allow": cfg.allow, "deny": cfg.deny}
    if cfg.similar_to is not None:
        return format_table(search.similar(cfg.similar_to, **limits))
    if cfg.vector is not None or cfg.vectors is not None:
        lists = search.nearest(_query_vectors(cfg), **limits)
        return "\n".join(format_table(hits) for hits in lists)
    asked = RecommendQuery(
        user_id=cfg.user_id,
        profile=_profile(cfg, search),
        ranking=cfg.ranking,
        exclude_seen=cfg.exclude_seen,
        gamma=cfg.gamma,
        levels=cfg.levels,
        **limits,
    )
    if cfg.explain is not None:
        return _format_explained(search.explain(cfg.explain, asked), search.items)
    answer = search.recommend(asked)
    _warn_of_unknown(answer.unknown_items)
    return format_table(answer.items)


def _profile(cfg: QueryConfig, search: Search) -> list[ProfileEntry] | None:
    if cfg.titles is not None:
        return [ProfileEntry(search.items.by_title(title)) for title in cfg.titles]
    return None if cfg.profile is None else [ProfileEntry(**vars(e)) for e in cfg.profile]


def _query_vectors(cfg: QueryConfig) -> NDArray[np.float32]:
    if cfg.vector is not None:
        return np.array([cfg.vector], dtype=np.float32)
    try:
        rows = np.load(str(cfg.vectors), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"vectors={cfg.vectors} cannot be read as a .npy matrix: {error}"
        ) from error
    return np.atleast_2d(np.asarray(rows, dtype=np.float32))


def _ask_service(cfg: QueryConfig, asked: str) -> str:
    assert cfg.url is not None
    if asked not in ("user_id", "profile", "similar_to") or cfg.explain is not None:
        raise ConfigError(f"{(cfg.explain and 'explain') or asked}= needs run=, not url=")
    limits = {"allow": cfg.allow or None, "deny": cfg.deny or None}
    with Client(cfg.url) as client:
        if cfg.similar_to is not None:
            return format_table(client.similar(cfg.similar_to, k=cfg.top_k, **limits).items)
        entries = cfg.profile
        answer = client.recommend(
            user_id=cfg.user_id,
            profile=None if entries is None else [vars(entry) for entry in entries],
            k=cfg.top_k,
            ranking=cfg.ranking,
            exclude_seen=cfg.exclude_seen,
            gamma=cfg.gamma,
            levels=cfg.levels,
            **limits,
        )
    _warn_of_unknown(answer.unknown_items)
    return format_table(answer.items)


def format_table(items: Sequence[Hit | Item | SimilarItem]) -> str:
    """Return aligned columns; those that are empty throughout are left out."""
    return _aligned([_row(rank, item) for rank, item in enumerate(items, start=1)]) or "no items\n"


def _aligned(rows: list[dict[str, str]]) -> str:
    names = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    if not names:
        return ""
    cells = [names, *([_one_line(row[name]) for name in names] for row in rows)]
    left = [column for column, name in enumerate(names) if name in _LEFT]
    return "\n".join(aligned(cells, left=left)) + "\n"


def _one_line(text: str) -> str:
    """Return text whose line feeds and the like are spelled, as ids may hold them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _format_explained(explained: Explained, items: ItemTable) -> str:
    """Return one line per atom: what it brought, and who else holds it."""

    def names(nums: Sequence[int]) -> str:
        shown = [_short(items.titles[num] or items.item_ids[num]) for num in nums[:_SHOWN]]
        return "; ".join(shown) + (f" (+{len(nums) - _SHOWN})" if len(nums) > _SHOWN else "")

    rows = [
        {
            "atom": str(shared.atom),
            "brought": format(shared.contribution, "+.4g"),
            "in the profile": names(shared.profile),
            "most of it": names(shared.examples),
        }
        for shared in explained.atoms
    ]
    rest = explained.score - explained.bias - sum(a.contribution for a in explained.atoms)
    tail = (
        f"other atoms {rest:+.4g}, item itself {explained.bias:+.4g}, score {explained.score:.4g}"
    )
    return f"{_aligned(rows)}{tail}\n"


def _row(rank: int, item: Hit | Item | SimilarItem) -> dict[str, str]:
    def number(name: str, form: str) -> str:
        value = getattr(item, name, None)
        return "" if value is None else format(value, form)

    levels = getattr(item, "levels", None) or {}
    return {
        "rank": str(rank),
        "item_id": item.item_id,
        "title": _short(item.title or ""),
        "score": format(item.score, ".4g"),
        "P(consume)": number("p_consume", ".5f"),
        "P(like)": number("p_like", ".3f"),
        "E(rating)": number("expected_rating", ".2f"),
        "P(level)": " ".join(f"{name}:{share:.2f}" for name, share in levels.items()),
    }


def _short(title: str) -> str:
    return title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + "…"


def _warn_of_unknown(ids: Sequence[str]) -> None:
    if ids:
        log.warning("items not in the catalogue item_ids=%s", ", ".join(map(repr, ids)))
