"""Query: ask the builds of a run, or a running service, from the shell; the answer is a table.

Examples:
    raysys query run=R user_id=42 ranking=like top_k=10
    raysys query run=R 'profile=[{item_id: "1193", rating: 5}, {item_id: "661"}]'
    raysys query run=R 'titles=[Toy Story, "Jumanji (1995)"]' 'allow={genres: [Comedy, Drama]}'
    raysys query run=R similar_to=1193
    raysys query run=R vector=[0.1,0.7,...]          (or vectors=FILE.npy, one table each)
    raysys query run=R user_id=42 explain=1193
    raysys query url=http://127.0.0.1:8000 user_id=42

The key of a service is read from RAYSYS_KEY.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from raysys import fields
from raysys.commands.serve_admin import KEY_VARIABLE
from raysys.config import JobConfig, identifier, location, require_run
from raysys.errors import ConfigError, DataError
from raysys.events.feed import Feed
from raysys.http.client import Client, checked
from raysys.http.wire import MAX_VECTORS
from raysys.reports.tables import aligned
from raysys.scoring.rankings import warn_of_lone_gamma
from raysys.search.explain import Explained
from raysys.search.query import Id, RecommendQuery, SimilarItem
from raysys.search.search import Search
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_TITLE_WIDTH = 48
_SHOWN = 3
_LEFT = ("item_id", "title", "name", "P(level)", "because", "atoms", "in the profile", "most of it")
_KEYS = {"k": "top_k", "explain": "because"}  # fields that the command calls otherwise
_LEFT_OUT = ("cursor", "experiment")  # a shell asks for a longer list, and of nobody's arm
_QUESTIONS = ("user_id", "profile", "titles", "similar_to", "vector", "vectors")

T = TypeVar("T")


def _with_request(cls: type[T]) -> type[T]:
    """Add the fields of a `RecommendQuery` to a configuration: what HTTP takes, `query` takes."""
    added, lines = [], []
    for name, info in RecommendQuery.model_fields.items():
        if name in _LEFT_OUT:
            continue
        key = _KEYS.get(name, name)
        own = identifier if Id in typing.get_args(info.annotation) else dataclasses.field
        added.append((key, info.annotation, own(default=info.default)))
        lines.append(f"        {key}: {info.description}.")
    made = dataclasses.make_dataclass(cls.__name__, added, bases=(cls,))
    made.__module__, made.__qualname__ = cls.__module__, cls.__qualname__
    made.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), *lines, "    "])
    return typing.cast(type[T], made)


@_with_request
@dataclasses.dataclass
class QueryConfig(JobConfig):
    """One question: one of user_id, profile, titles, similar_to, vector and vectors.

    With user_id, profile is what the user did since the history was stored.

    Attributes:
        url: of a running service; without it the builds of `run` are opened here.
        titles: a profile of liked items by title, or by text that one title alone holds.
        similar_to: an item_id.
        vector: numbers in the space of the indexed vectors.
        vectors: .npy matrix of such rows.
        explain: an item_id: the atoms that it shares with the profile or user.
    """

    url: str | None = None
    titles: list[str] | None = None
    similar_to: str | None = identifier()
    vector: list[float] | None = None
    vectors: str | None = location(None)
    explain: str | None = identifier()

    def __post_init__(self) -> None:
        """Raise ConfigError for what no request may say."""
        try:
            RecommendQuery.model_validate(_request(self) | {"user_id": None, "profile": []})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            accepted = first["msg"].removeprefix("Input should be ")
            raise fields.refused(_KEYS.get(name, name), first["input"], accepted) from error


def query(cfg: QueryConfig) -> str:
    """Return the answer as a table.

    Raises:
        ConfigError: not exactly one question; RaysysError: see `Search` and `ServiceError`.
    """
    asked = [name for name in _QUESTIONS if getattr(cfg, name) is not None]
    if len(asked) != 1 and asked != ["user_id", "profile"]:
        raise ConfigError(f"query answers exactly one of {', '.join(f'{q}=' for q in _QUESTIONS)}")
    if cfg.explain is not None and asked[0] not in ("user_id", "profile", "titles"):
        raise ConfigError(f"explain= goes with user_id=, profile= or titles=, not {asked[0]}=")
    request = _request(cfg)
    if "gamma" in request and "ranking" not in request:
        warn_of_lone_gamma()
    if cfg.url is not None:
        if cfg.titles is not None or cfg.explain is not None:
            raise ConfigError(
                f"{'titles' if cfg.explain is None else 'explain'}= needs run=, not url="
            )
        with Client(cfg.url, key=os.environ.get(KEY_VARIABLE)) as client:
            return _answer(client, cfg, request)
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    search = Search.open(workspace, users=asked[0] == "user_id")
    if "user_id" in asked:  # as a service would
        feed = Feed(workspace.storage)
        feed.look()
        search.asking.lately = feed.of
    if cfg.titles is not None:
        request["profile"] = [{"item_id": search.items.by_title(title)} for title in cfg.titles]
    with Client.local(search) as client:
        if cfg.explain is None:
            return _answer(client, cfg, request)
        explained = search.explain(cfg.explain, checked(RecommendQuery, request))
        return _format_explained(explained, search)


def _request(cfg: QueryConfig) -> dict[str, Any]:
    """Return the fields of a `RecommendQuery` that are not as they are anyway."""
    given = {
        name: getattr(cfg, _KEYS.get(name, name))
        for name in RecommendQuery.model_fields
        if name not in _LEFT_OUT
    }
    fields_of = RecommendQuery.model_fields
    return {name: value for name, value in given.items() if value != fields_of[name].default}


def _answer(client: Client, cfg: QueryConfig, request: dict[str, Any]) -> str:
    common = {name: request[name] for name in ("k", "allow", "deny") if name in request}
    if cfg.similar_to is not None:
        return format_table(client.similar(cfg.similar_to, **common).items)
    if cfg.vector is not None or cfg.vectors is not None:
        rows = _query_vectors(cfg)
        parts = np.split(rows, range(MAX_VECTORS, len(rows), MAX_VECTORS))
        answers = [client.search(part.tolist(), **common) for part in parts]
        return "\n".join(format_table(items) for answer in answers for items in answer.lists)
    answer = client.recommend(**request)
    if answer.counted_until is not None:
        moment = datetime.datetime.fromtimestamp(answer.counted_until, datetime.UTC)
        log.info("counted until=%s", moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
    if answer.degraded is not None:
        log.warning("answered by=%s reason=%s", answer.degraded.answered_by, answer.degraded.reason)
    if answer.unknown_items:
        ids = ", ".join(map(repr, answer.unknown_items))
        log.warning("items not in the catalogue item_ids=%s", ids)
    return format_table(answer.items)


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


def format_table(items: Sequence[SimilarItem]) -> str:
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


def _format_explained(explained: Explained, search: Search) -> str:
    """Return one line per atom: what it brought, and who else holds it."""
    items = search.items

    def names(nums: Sequence[int]) -> str:
        shown = [_short(items.titles[num] or items.item_ids[num]) for num in nums[:_SHOWN]]
        return "; ".join(shown) + (f" (+{len(nums) - _SHOWN})" if len(nums) > _SHOWN else "")

    rows = [
        {
            "atom": str(shared.atom),
            "name": search.atoms.name(shared.atom) or "",
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


def _row(rank: int, item: SimilarItem) -> dict[str, str]:
    def number(name: str, form: str) -> str:
        value = getattr(item, name, None)
        return "" if value is None else format(value, form)

    levels = getattr(item, "levels", None) or {}
    reasons = getattr(item, "because", None) or []
    atoms = getattr(item, "atoms", None) or []
    return {
        "rank": str(rank),
        "item_id": item.item_id,
        "title": _short(item.title or ""),
        "score": format(item.score, ".4g"),
        "P(consume)": number("p_consume", ".5f"),
        "P(like)": number("p_like", ".3f"),
        "E(rating)": number("expected_rating", ".2f"),
        "P(level)": " ".join(f"{name}:{share:.2f}" for name, share in levels.items()),
        "because": "; ".join(_short(reason.title or reason.item_id) for reason in reasons),
        "atoms": "; ".join(_short(atom.name or str(atom.atom)) for atom in atoms[:_SHOWN]),
    }


def _short(title: str) -> str:
    return title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + "…"
