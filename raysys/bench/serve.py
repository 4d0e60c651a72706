"""HTTP: what a service answers a second, and what its clients see while things happen to it.

Part `answers`: closed loops of several numbers of connections, at the same app behind HAProxy,
behind Serve's own proxy, and under uvicorn alone, which is the floor. Part `events`: an open loop
at half of what was measured, over HAProxy and two replicas, first quiet, then while newer builds
are exchanged, the service is deployed again, a replica or the proxy is killed, a damaged build is
offered. Events run without retries and with those of the client.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from raysys.bench.resources import load_average
from raysys.bench.serve_host import Alone, Host, free_port, linked
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import scratch
from raysys.commands.load import LoadConfig, bodies
from raysys.commands.update import UpdateConfig, update
from raysys.compressor.embeddings import Embeddings
from raysys.config import require, require_run
from raysys.http.load import Load, LoadResult
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Build, Workspace

log = logging.getLogger(__name__)

SERVERS = ("uvicorn", "haproxy", "serve proxy")
_OWN_PROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
_FOLLOW_S = 1.0
_SWAP_S = 3.0  # from one exchange to the next
_PLAIN = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_REST_S = 3.0  # until what an event began is over
_BATCH = 100
TRIED = (0, 6)  # further attempts: none, and as many as the client makes
_WARM = 200  # requests before anything is timed


@dataclasses.dataclass
class ServeBenchConfig(BenchConfig):
    """Settings of the serve suite; `run` has an index and profiles, and is not changed.

    Attributes:
        connections: of the closed loops.
        seconds: of each measurement.
        swaps: exchanges of builds while requests come.
        events: measure them too.
    """

    connections: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32])
    seconds: float = 10.0
    swaps: int = 20
    events: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(min(self.connections, default=0) >= 1, "connections", self.connections, "1 or more")
        require(self.seconds > 0, "seconds", self.seconds, "more than 0")
        require(self.swaps >= 1, "swaps", self.swaps, "1 or more")


def rows(cfg: ServeBenchConfig) -> list[dict[str, Any]]:
    """Return a row for every server and number of connections, and one for every event."""
    require_run(cfg)
    search = Search.open(Workspace(cfg.run, cache_dir=cfg.cache_dir), verify=False)
    shape = {"n_items": search.n_items, "n_users": search.n_users}
    del search
    single = bodies(LoadConfig(run=cfg.run, seed=cfg.seed))
    batches = bodies(LoadConfig(run=cfg.run, seed=cfg.seed, batch=_BATCH))
    found: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        found.append({**shape, **row, "load_average": load_average()})
        log.info("bench %s", found[-1])

    with scratch() as folder:
        run = f"{folder}/run"
        linked(cfg.run, run)
        for server in SERVERS:
            with _started(server, run) as url:
                Load(url, single[:_WARM], connections=1, seconds=2).run()
                for connections in cfg.connections:
                    asked = Load(url, single, connections=connections, seconds=cfg.seconds)
                    add(_answers(server, connections, 1, asked.run()))
                asked = Load(
                    url, batches, "/v1/recommend/batch", connections=1, seconds=cfg.seconds
                )
                add(_answers(server, 1, _BATCH, asked.run()))
        if cfg.events:
            _events(cfg, run, single, add)
    return found


def _answers(server: str, connections: int, batch: int, result: LoadResult) -> dict[str, Any]:
    told = result.record()
    return {
        "part": "answers",
        "server": server,
        "connections": connections,
        "batch": batch,
        "per_second": round(batch * told["per_second"], 1),
        "p50_ms": told["ms"]["p50"],
        "p99_ms": told["ms"]["p99"],
        "failed": told["failed"],
    }


def _events(
    cfg: ServeBenchConfig, run: str, single: list[bytes], add: Callable[[dict[str, Any]], None]
) -> None:
    """Add a row for every event, without and with retries."""
    workspace = Workspace(run)
    changes = _changes(run, cfg.swaps + 1)
    damaged = changes.pop()
    settings = {"run": run, "replicas": 2, "cpus": 0.5, "follow_s": _FOLLOW_S, "port": free_port()}
    with Host(settings, {}) as host:
        Load(host.url, single[:_WARM], connections=2, seconds=2).run()
        most = Load(host.url, single, connections=8, seconds=cfg.seconds).run().record()
        rate = most["per_second"] / 2
        add({"part": "events", "event": "capacity", "per_second": most["per_second"]})

        def swap() -> None:
            for build in changes:
                started = time.monotonic()
                workspace.go_back(build)
                _until(lambda build=build: _serves(host.url, build))  # type: ignore[misc]
                time.sleep(max(0.0, started + _SWAP_S - time.monotonic()))

        def offer() -> None:
            path = damaged.path("vectors.npy")
            path.write_bytes(path.read_bytes()[:-1] + b"x")
            workspace.go_back(damaged)
            _until(lambda: _refused(host.url))
            workspace.go_back(changes[-1])

        def again(order: str) -> Callable[[], None]:
            return lambda: log.info("bench %s %s", order, host.tell(order))

        events: dict[str, Callable[[], None]] = {
            "quiet": lambda: time.sleep(0),
            "swaps": swap,
            "redeploy": again("redeploy"),
            "replica killed": again("kill replica"),
            "proxy killed": again("kill proxy"),
            "second proxy killed": again("kill second proxy"),
            "damaged build": offer,
        }
        for name, event in events.items():
            for retries in TRIED:
                result, seconds = _during(
                    Load(
                        host.url,
                        single,
                        connections=64,
                        per_second=rate,
                        seconds=cfg.seconds,
                        retries=retries,
                        seed=cfg.seed,
                    ),
                    event,
                )
                told = result.record()
                add(
                    {
                        "part": "events",
                        "event": name,
                        "retries": retries,
                        "event_s": round(seconds, 1),
                        "requests": told["requests"],
                        "failed": told["failed"],
                        "errors": json.dumps(told["errors"]),
                        "p50_ms": told["ms"]["p50"],
                        "p99_ms": told["ms"]["p99"],
                        "max_ms": told["ms"]["max"],
                    }
                )
                time.sleep(_REST_S)


def _during(asked: Load, event: Callable[[], None]) -> tuple[LoadResult, float]:
    """Return what became of requests while something happened, and how long that took.

    Requests go on for their time before it begins to count, and until it is over.
    """
    took: list[float] = []

    def happen() -> None:
        time.sleep(min(2.0, asked.seconds / 4))
        started = time.perf_counter()
        event()
        took.append(time.perf_counter() - started)

    thread = threading.Thread(target=happen)
    thread.start()
    parts = [asked.run()]
    while thread.is_alive():
        parts.append(dataclasses.replace(asked, seconds=2.0, seed=len(parts)).run())
    thread.join()
    errors: dict[str, int] = {}
    for part in parts:
        for name, count in part.errors.items():
            errors[name] = errors.get(name, 0) + count
    whole = LoadResult(
        sum(part.seconds for part in parts),
        np.concatenate([part.latency_ms for part in parts]),
        errors,
        sum(part.retried for part in parts),
    )
    return whole, took[0]


@contextmanager
def _started(server: str, run: str) -> Iterator[str]:
    """Start a service and give its URL."""
    port = free_port()
    if server != "uvicorn":
        environment: Mapping[str, str] = _OWN_PROXY if server == "serve proxy" else {}
        with Host({"run": run, "replicas": 1, "port": port}, environment) as host:
            yield host.url
        return
    with Alone(run, port=port) as alone:
        yield alone.url


def _changes(run: str, n: int) -> list[Build]:
    """Return changes that each delete one item more; none is current."""
    workspace = Workspace(run)
    ids = Embeddings.open(Served.open(workspace, verify=False).coded.embeddings).item_ids()
    built = []
    for num in range(n):
        update(UpdateConfig(run=run, delete=[ids[-1 - num]]))
        built.append(workspace.current("changes"))
    workspace.go_back(built[0])
    return built


def _serves(url: str, build: Build) -> bool:
    """Tell whether the replica that happens to answer serves a build."""
    status = _get(f"{url}/v1/status") or {}
    return bool(status.get("build_ids", {}).get("changes") == build.build_id)


def _refused(url: str) -> bool:
    status = _get(f"{url}/v1/status") or {}
    return bool((status.get("following") or {}).get("refused"))


def _get(url: str) -> dict[str, Any] | None:
    """Ask in a way that takes no time from the requests that are measured in this process."""
    try:
        with _PLAIN.open(url, timeout=5) as answer:
            return dict(json.load(answer))
    except (OSError, ValueError):
        return None


def _until(happened: Callable[[], bool], *, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(0.1)
