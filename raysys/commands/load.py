"""Load: ask a running service, open or closed loop, and show how long its answers took.

Examples:
    raysys load url=http://127.0.0.1:8000 run=R connections=8
    raysys load url=http://127.0.0.1:8000 run=R per_second=200 seconds=60
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os

import numpy as np

from raysys.commands.serve_admin import KEY_VARIABLE, ServiceConfig
from raysys.config import require
from raysys.data.profiles import Profiles
from raysys.errors import ConfigError
from raysys.http.load import Load
from raysys.scoring.rankings import Ranking
from raysys.store.builds import StageResult, Workspace

log = logging.getLogger(__name__)

_BAR = 40  # characters
_MAX_BATCH = 256


@dataclasses.dataclass
class LoadConfig(ServiceConfig):
    """How a service is asked.

    With `run` its stored users are asked for in a random order, else nobody in particular.

    Attributes:
        connections: at once.
        per_second: requests that come by themselves, whatever became of those before; null: every
            connection asks again as soon as it has its answer.
        seconds: how long.
        k: length of the lists.
        ranking: of the lists; null: the build's first.
        batch: queries of one request; 1: the route of single ones.
        retries: further attempts where an answer was lost or the service busy.
        users: users that are asked for at most.
    """

    connections: int = 8
    per_second: float | None = None
    seconds: float = 10.0
    k: int = 20
    ranking: str | None = None
    batch: int = 1
    retries: int = 0
    users: int = 10_000

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be asked."""
        for name in ("connections", "k", "users"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(1 <= self.batch <= _MAX_BATCH, "batch", self.batch, f"1 to {_MAX_BATCH}")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        require(0 < self.seconds < math.inf, "seconds", self.seconds, "more than 0")
        rate = self.per_second
        require(rate is None or 0 < rate < math.inf, "per_second", rate, "more than 0")
        if self.ranking is not None:
            Ranking.parse(self.ranking)


def load(cfg: LoadConfig) -> StageResult:
    """Ask, log a histogram, and return counts, rates and quantiles.

    Raises:
        ServiceError: the service does not answer; BuildError: `run` has no profiles.
    """
    with cfg.client() as client:
        client.health()
    key = os.environ.get(KEY_VARIABLE)
    asked = Load(
        url=cfg.url,
        bodies=bodies(cfg),
        path="/v1/recommend" if cfg.batch == 1 else "/v1/recommend/batch",
        connections=cfg.connections,
        per_second=cfg.per_second,
        seconds=cfg.seconds,
        retries=cfg.retries,
        headers={} if key is None else {"authorization": f"Bearer {key}"},
        seed=cfg.seed,
    )
    log.info("load url=%s connections=%d seconds=%g", cfg.url, cfg.connections, cfg.seconds)
    result = asked.run()
    pairs = result.histogram()
    most = max((count for _, count in pairs), default=1)
    for bound, count in pairs:
        log.info("%9.2f ms %8d %s", bound, count, "#" * math.ceil(_BAR * count / most))
    record = result.record()
    if not len(result.latency_ms):
        raise ConfigError(f"no request was answered: {record['errors']}")
    return StageResult(extra=record | {"histogram_ms": pairs})


def bodies(cfg: LoadConfig) -> list[bytes]:
    """Return the bodies of requests, taken in turn."""
    query = {"k": cfg.k} | ({} if cfg.ranking is None else {"ranking": cfg.ranking})
    whom: list[dict[str, object]] = [{"profile": []}]
    if cfg.run:
        ids = Profiles.open(
            Workspace(cfg.run, cache_dir=cfg.cache_dir).current("profiles")
        ).user_ids
        size = min(cfg.users, len(ids))
        rows = np.random.default_rng(cfg.seed).permutation(len(ids))[:size]
        whom = [{"user_id": ids[int(row)].as_py()} for row in rows]
    queries = [query | each for each in whom]
    if cfg.batch == 1:
        return [json.dumps(each).encode() for each in queries]
    n_batches = max(1, len(queries) // cfg.batch)
    return [
        json.dumps(
            {"queries": [queries[(b * cfg.batch + i) % len(queries)] for i in range(cfg.batch)]}
        ).encode()
        for b in range(n_batches)
    ]
