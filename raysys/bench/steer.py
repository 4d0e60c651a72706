"""Steering: what raising and muting an atom does to users' lists, and what it takes.

    raysys bench suite=steer run=RUN

`run` has an index of a model. For every ranking, users of the log are asked about atoms of which
one of the ten strongest items is in their list of 20 as it is. Parts of the record:

    mute   at -1: the share of users whose list then holds none of the ten for any of their atoms,
           and the same over pairs of a user and an atom; of the items that went, the share that
           holds the atom; and how often an item that went holds more of it than one that stayed
           (ties count half).
    unit   the share of the list that changes, by weight; the strongest ten in the list on average.
    whole  the share of the list that scoring every item would give as well, by weight.
    time   an answer with one atom, with three, and without any, asked in turn in random order:
           the medians, and the median over users of the ratios.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.bench.suites import BenchConfig
from raysys.config import require, require_run
from raysys.data.cells import Cells, concat
from raysys.data.profiles import Profiles
from raysys.errors import ConfigError
from raysys.index.strengths import N_FULL, Strengths
from raysys.scoring.rankings import Ranking
from raysys.search.query import RecommendQuery
from raysys.search.rescoring import best_of
from raysys.search.search import Search
from raysys.search.steering import Steering, steering_of
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_TOP_K = 20
_ATOMS = 3  # of a user
_WEIGHTS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
_ROUNDS = 5


@dataclasses.dataclass
class SteerBenchConfig(BenchConfig):
    """Settings of the steer suite.

    Attributes:
        users: of the log, at equal distances.
        timed: of them, whose answers are timed.
    """

    users: int = 300
    timed: int = 100

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(self.users >= 1, "users", self.users, ">= 1")
        require(1 <= self.timed <= self.users, "timed", self.timed, f"1..{self.users}")


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A user and an atom that is strong in the user's list.

    Attributes:
        row: of the user.
        atom: its number.
        before: the list as it is, item_nums.
    """

    row: int
    atom: int
    before: NDArray[np.int32]


def rows(cfg: SteerBenchConfig) -> list[dict[str, Any]]:
    """Return the rows of every ranking."""
    require_run(cfg)
    search = Search.open(Workspace(cfg.run))
    store, profiles = search.opened.users, search.served.coded.profiles
    if store is None or profiles is None or search.engine.scorer is None:
        raise ConfigError(f"run={cfg.run} has no model: expected an index of one")
    user_ids = Profiles.open(profiles).user_ids
    places = np.unique(np.linspace(0, len(user_ids) - 1, cfg.users).astype(np.int64))
    ids = [str(user_ids[int(place)].as_py()) for place in places]
    history = concat([store.history(user_id) for user_id in ids])
    rng = np.random.default_rng([cfg.seed, 0x57EE])
    found = []
    for name in search.rankings:
        ranking = Ranking(name)
        pairs = _pairs(search, history, ranking, rng)
        after = {weight: _steered(search, history, ranking, pairs, weight) for weight in _WEIGHTS}
        strengths = search.opened.strengths
        data = Path(cfg.run).name
        common = {"data": data, "ranking": name, "n_items": search.n_items}
        found.append({"part": "mute", **common, **_muted(strengths, pairs, after[-1.0])})
        for weight, lists in after.items():
            row = {"part": "unit", **common, "weight": weight, **_changed(strengths, pairs, lists)}
            found.append(row)
        if not _scores_all(search):
            for weight in (-1.0, 0.0, 1.0):
                share = _whole(search, history, ranking, pairs, weight, after[weight])
                row = {"part": "whole", **common, "weight": weight, "share": round(share, 4)}
                found.append(row)
        found.append({"part": "time", **common, **_timed(search, ids[: cfg.timed], name, rng)})
        log.info("bench %s", found[-1])
    return found


def _scores_all(search: Search) -> bool:
    return search.engine.normaliser is not None and search.engine.normaliser.exact


def _lists(
    search: Search, history: Cells, ranking: Ranking, steerings: list[Steering | None] | None
) -> Iterator[NDArray[np.int32]]:
    for ranked in search.engine.lists(
        history, top_k=_TOP_K, ranking=ranking, steerings=steerings, probabilities=False
    ):
        yield ranked.item_nums


def _pairs(
    search: Search, history: Cells, ranking: Ranking, rng: np.random.Generator
) -> list[_Pair]:
    """Return at most three atoms of every user of which the list has one of the ten strongest."""
    strongest = search.opened.strengths.strongest[:, :N_FULL]
    atoms, _ = np.nonzero(strongest >= 0)
    nums = strongest[strongest >= 0]
    found = []
    for row, before in enumerate(_lists(search, history, ranking, None)):
        there = np.unique(atoms[np.isin(nums, before)])
        some = rng.permutation(there)[:_ATOMS]
        found += [_Pair(row, int(atom), before) for atom in np.sort(some)]
    return found


def _steered(
    search: Search, history: Cells, ranking: Ranking, pairs: list[_Pair], weight: float
) -> list[NDArray[np.int32]]:
    steerings = [steering_of({str(p.atom): weight}, search.opened.strengths) for p in pairs]
    users = concat([history.users(np.array([pair.row])) for pair in pairs])
    return list(_lists(search, users, ranking, steerings))


def _muted(
    strengths: Strengths, pairs: list[_Pair], after: list[NDArray[np.int32]]
) -> dict[str, Any]:
    left = np.array(
        [
            np.isin(strengths.strongest[pair.atom, :N_FULL], now).sum()
            for pair, now in zip(pairs, after, strict=True)
        ]
    )
    users = np.array([pair.row for pair in pairs])
    holding, ahead = [], []
    for pair, now in zip(pairs, after, strict=True):
        held = strengths.shares(np.array([pair.atom]), np.ones(1, np.float32), pair.before)
        gone = ~np.isin(pair.before, now)
        if gone.any():
            holding.append(float((held[gone] > 0).mean()))
        if gone.any() and not gone.all():
            difference = held[gone][:, None] - held[~gone][None]
            ahead.append(float((difference > 0).mean() + (difference == 0).mean() / 2))
    clear = [not left[users == user].any() for user in np.unique(users)]
    return {
        "users": len(clear),
        "users_without": round(float(np.mean(clear)), 4),
        "pairs": len(pairs),
        "pairs_without": round(float((left == 0).mean()), 4),
        "gone_holding": round(float(np.mean(holding)), 4),
        "gone_holds_more": round(float(np.mean(ahead)), 4),
    }


def _changed(
    strengths: Strengths, pairs: list[_Pair], after: list[NDArray[np.int32]]
) -> dict[str, float]:
    changed, before, now = [], [], []
    for pair, nums in zip(pairs, after, strict=True):
        changed.append(1 - np.isin(nums, pair.before).mean())
        strongest = strengths.strongest[pair.atom, :N_FULL]
        before.append(np.isin(strongest, pair.before).sum())
        now.append(np.isin(strongest, nums).sum())
    return {
        "changed": round(float(np.mean(changed)), 4),
        "strongest_before": round(float(np.mean(before)), 2),
        "strongest": round(float(np.mean(now)), 2),
    }


def _whole(
    search: Search,
    history: Cells,
    ranking: Ranking,
    pairs: list[_Pair],
    weight: float,
    after: list[NDArray[np.int32]],
) -> float:
    """Return the mean share of lists that the scores of all items give as well."""
    engine = search.engine
    assert engine.scorer is not None
    shares = []
    z = engine.encode(history)
    own = engine.known(history).item_lists
    for pair, now in list(zip(pairs, after, strict=True))[:: max(len(pairs) // 200, 1)]:
        allowed = engine.alive.copy()
        allowed[own[pair.row]] = False
        nums = np.flatnonzero(allowed[: engine.scorer.n_items]).astype(np.int32)
        steering = steering_of({str(pair.atom): weight}, search.opened.strengths)
        ranked = best_of(
            engine.scorer,
            z[pair.row],
            nums,
            log_z=0.0,
            changes=None,
            top_k=_TOP_K,
            ranking=ranking,
            shares=None if steering is None else steering.shares(nums),
        )
        shares.append(np.isin(ranked.item_nums, now).mean())
    return float(np.mean(shares))


def _timed(
    search: Search, ids: list[str], ranking: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Return medians of an answer's milliseconds, and of the ratios to the one without atoms."""
    used = np.flatnonzero(search.opened.strengths.n_items >= N_FULL)
    signs = {"plain": (), "again": (), "mute": (-1,), "raise": (1,), "three": (1, -1, 0.5)}
    taken: dict[str, list[float]] = {kind: [] for kind in signs}
    for user_id in ids:
        best = dict.fromkeys(signs, np.inf)
        for _ in range(_ROUNDS):
            for kind in rng.permutation(list(signs)).tolist():
                some = rng.choice(used, len(signs[kind]), replace=False)
                atoms = {str(a): float(w) for a, w in zip(some, signs[kind], strict=True)}
                given = {"user_id": user_id, "ranking": ranking, "atoms": atoms or None}
                query = RecommendQuery.model_validate(given)
                started = time.thread_time()
                search.recommend(query)
                best[kind] = min(best[kind], time.thread_time() - started)
        for kind, seconds in best.items():
            taken[kind].append(seconds)
    plain = np.array(taken["plain"])
    row: dict[str, Any] = {"plain_ms": round(float(np.median(plain)) * 1e3, 4)}
    for kind in signs:
        if kind != "plain":
            row[kind] = round(float(np.median(np.array(taken[kind]) / plain)), 4)
    return row
