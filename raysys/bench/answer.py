"""The whole answer: what a recommendation takes as the catalogue grows, step by step.

    raysys bench suite=answer source=RUN keep=DIR sizes=[10000,100000,1000000] users=100000

`source` is a run with an index of a model; its catalogue and users are grown by the rule of
`bench/grown_run.py`, and the run of every size is indexed by the `index` job. A fresh process opens
it as a replica does and answers stored users. Times are CPU times of one thread; an answer's is the
best of three rounds, then the median over users. `walk_ms` is what an answer took before: the
float32 product with all items and its normalisation, as NumPy does it.

Private memory is what the process cannot share; mapped is what it touched of files, which processes
of a node share.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raysys.bench.grown_run import grow_run
from raysys.bench.resources import load_average
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import scratch
from raysys.config import location, require, require_run
from raysys.data.arrays import Floats
from raysys.data.cells import concat
from raysys.index.files import IndexFacts
from raysys.scoring.rankings import Ranking
from raysys.search.query import RecommendQuery
from raysys.search.rescoring import best_of
from raysys.search.search import Search
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_ASKED = 200
_ROUNDS = 3
_TOP_K = 20
_BATCH = 100
_WALKED_BYTES = 5 << 30  # of a float32 matrix, at most


@dataclasses.dataclass
class AnswerBenchConfig(BenchConfig):
    """Settings of the answer suite.

    Attributes:
        source: a run with an index of a model; empty: `run`.
        sizes: numbers of items, none below the source's.
        users: stored users of the grown runs.
        keep: folder of the grown runs; empty: they are not kept.
    """

    source: str = location("")
    sizes: list[int] = dataclasses.field(default_factory=lambda: [100_000, 1_000_000])
    users: int = 100_000
    keep: str = location("")

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(min(self.sizes, default=0) >= 1, "sizes", self.sizes, "1 or more each")
        require(self.users >= 1, "users", self.users, ">= 1")


def rows(cfg: AnswerBenchConfig) -> list[dict[str, Any]]:
    """Return a row for every size and ranking, and one for the replica of every size."""
    if not cfg.source:
        require_run(cfg)
    source = cfg.source or cfg.run
    found: list[dict[str, Any]] = []
    with scratch() as folder:
        for size in cfg.sizes:
            run = f"{cfg.keep or folder}/{size}-items-{cfg.users}-users"
            workspace = grow_run(
                source, run, n_items=size, n_users=cfg.users, seed=cfg.seed, ray=cfg.ray
            )
            facts = IndexFacts.of(workspace.current("index"))
            told = f"from raysys.bench.answer import replica; replica({run!r}, {cfg.seed})"
            done = subprocess.run(
                [sys.executable, "-c", told], stdout=subprocess.PIPE, text=True, check=True
            )
            for row in json.loads(done.stdout.splitlines()[-1]):
                row = {"n_items": size, **row, "load_average": load_average()}
                if row["part"] == "replica":
                    errors = {k: v for k, v in (facts.normaliser or {}).items() if "error" in k}
                    row |= {f"log_p_{name}": value for name, value in errors.items()}
                found.append(row)
                log.info("bench %s", row)
    return found


def replica(run: str, seed: int) -> None:
    """Open a run as a replica does, measure its answers and write the rows as JSON."""
    started = time.perf_counter()
    search = Search.open(Workspace(run), verify=False)
    open_s = time.perf_counter() - started
    rng = np.random.default_rng(seed)
    users = [f"user-{num}" for num in rng.integers(0, search.n_users, _ASKED)]
    found = [_answers(search, users, name) for name in search.rankings]
    memory = _memory()
    scorer = search.engine.scorer
    assert scorer is not None
    verified, verify_s = _timed(lambda: Search.open(Workspace(run)))
    del verified
    row = {
        "part": "replica",
        "latent": scorer.width,
        "n_users": search.n_users,
        "open_s": round(open_s, 2),
        "open_with_hashes_s": round(verify_s, 2),
        **memory,
        **_walk(search, users[:20]),
    }
    sys.stdout.write(json.dumps([*found, row]) + "\n")


def _answers(search: Search, users: list[str], name: str) -> dict[str, Any]:
    """Return the CPU times of answers by one ranking, whole and by step, in ms."""
    engine, ranking = search.engine, Ranking(name)
    scorer = engine.scorer
    assert scorer is not None
    queries = [_query(user, name) for user in users]
    histories = [search.asking.history(query)[0] for query in queries]
    histories = [history.take(history.item_num < scorer.n_items) for history in histories]
    z = [engine.encode(history) for history in histories]

    def found(n: int) -> Any:
        return engine.candidates(z[n], ranking, 300, exclude=histories[n].item_lists)[0][0]

    candidates = [found(n) for n in range(len(users))]
    asked = {
        "encode_ms": lambda n: engine.encode(histories[n]),
        "search_ms": found,
    }

    def rescore(n: int) -> object:
        return best_of(
            scorer, z[n][0], candidates[n], log_z=0.0, changes=None, top_k=_TOP_K, ranking=ranking
        )

    best = [nums[None] if name == "consume" else None for nums in candidates]
    asked["normalise_ms"] = lambda n: engine.log_z(z[n], histories[n], best[n])
    asked["rescore_ms"] = rescore
    asked["whole_ms"] = lambda n: search.recommend(queries[n])
    row: dict[str, Any] = {"part": "answer", "ranking": name}
    for step, function in asked.items():
        times = _cpu(function, len(users))
        row[step] = round(float(np.median(times)) * 1e3, 4)
        if step == "whole_ms":
            row["whole_p99_ms"] = round(float(np.quantile(times, 0.99)) * 1e3, 4)
    every = concat(histories[:_BATCH])
    batch = _cpu(lambda _: list(engine.lists(every, top_k=_TOP_K, ranking=ranking)), 1)
    return row | {"batch_ms_a_profile": round(float(batch[0]) * 1e3 / every.n_users, 4)}


def _query(user_id: str, ranking: str | None) -> RecommendQuery:
    return RecommendQuery.model_validate({"user_id": user_id, "k": _TOP_K, "ranking": ranking})


def _cpu(function: Callable[[int], object], count: int) -> Floats:
    """Return the best of three CPU times of this thread for each call, in seconds."""
    times = np.empty((_ROUNDS, count))
    for turn in range(_ROUNDS):
        for n in range(count):
            used = time.thread_time()
            function(n)
            times[turn, n] = time.thread_time() - used
    return np.asarray(times.min(axis=0))


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return function(), time.perf_counter() - started


def _memory() -> dict[str, int]:
    """Return private and mapped bytes of this process."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.strip().endswith("kB"):
            found[name] = int(value.split()[0]) * 1024
    return {
        "private_mb": round(found["Anonymous"] / 1e6),
        "mapped_mb": round((found["Rss"] - found["Anonymous"]) / 1e6),
    }


def _walk(search: Search, users: list[str]) -> dict[str, float]:
    """Return the CPU time of the float32 product with all items and its normalisation."""
    scorer = search.engine.scorer
    assert scorer is not None
    if scorer.n_items * scorer.width * 4 > _WALKED_BYTES:
        return {}
    matrix = np.empty((scorer.n_items, scorer.width), dtype=np.float32)
    for start in range(0, len(matrix), 8192):
        nums = np.arange(start, min(start + 8192, len(matrix)))
        matrix[nums] = scorer.vectors(nums)
    histories = [search.asking.history(_query(user, None))[0] for user in users]
    z = [search.engine.encode(history)[0, : scorer.width] for history in histories]

    def walk(n: int) -> object:
        logs = scorer.link(matrix @ z[n] + scorer.prior)
        return logs - np.log(np.exp(logs - logs.max()).sum())

    return {"walk_ms": round(float(np.median(_cpu(walk, len(users)))) * 1e3, 3)}
