"""Events: how many a service takes on one core, how soon lists follow, and what a kill loses.

Part `taken`: batches from several connections to a service that may use one CPU, beside the sender
on others. Part `seen`: an event goes to one service, and another one of the same run is asked for
its user until it knows it, quiet and while batches come. Part `answers`: the time of a list for a
user of no and of many events. Part `killed`: a service is killed (kill -9) while batches come, and
started again; then what was acknowledged is compared with the Parquet files.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from raysys.bench.resources import load_average
from raysys.bench.serve_host import Alone, free_port, linked
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import scratch
from raysys.commands.events import FoldConfig, fold
from raysys.config import require, require_run
from raysys.events.fold import files_of, read_file
from raysys.events.records import EVENTS
from raysys.http.client import Client, ServiceError
from raysys.search.search import Search
from raysys.store.builds import Workspace
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

_BATCH = 1_000
_SENDERS = 2
_ASKED = 400  # lists that are timed
_OF_USER = 100  # events of a user whose lists are timed
_LIVED_S = (0.3, 1.2)  # until a kill


@dataclasses.dataclass
class EventsBenchConfig(BenchConfig):
    """Settings of the events suite; `run` has an index and profiles, and is not changed.

    Attributes:
        seconds: in which batches come.
        events: that are followed from one service to another.
        kills: of the service.
    """

    seconds: float = 10.0
    events: int = 50
    kills: int = 10

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be used."""
        require(self.seconds > 0, "seconds", self.seconds, "more than 0")
        require(self.events >= 1, "events", self.events, "1 or more")
        require(self.kills >= 1, "kills", self.kills, "1 or more")


def rows(cfg: EventsBenchConfig) -> list[dict[str, Any]]:
    """Return the rows of every part."""
    require_run(cfg)
    search = Search.open(Workspace(cfg.run, cache_dir=cfg.cache_dir), verify=False)
    shape = {"n_items": search.n_items, "n_users": search.n_users}
    items = [item.item_id for item in search.popular(top_k=min(1_000, search.n_items))]
    del search
    found: list[dict[str, Any]] = []

    def add(row: dict[str, Any]) -> None:
        found.append({**shape, **row, "load_average": load_average()})
        log.info("bench %s", found[-1])

    with scratch() as folder:
        run = f"{folder}/run"
        linked(cfg.run, run)
        with (
            Alone(run, port=free_port(), cpu=0) as first,
            Alone(run, port=free_port()) as second,
        ):
            add({"part": "seen", "load": "quiet", **_seen(first, second, items, cfg.events)})
            used, started = first.cpu_s(), time.perf_counter()
            with _sent(first.url, items, "taken") as sent:
                time.sleep(cfg.seconds)
            seconds = time.perf_counter() - started
            used = first.cpu_s() - used
            n_events = sum(map(len, sent.acknowledged))
            add(
                {
                    "part": "taken",
                    "per_second": round(n_events / seconds),
                    "per_cpu_second": round(n_events / used),
                    "batch_p50_ms": round(1e3 * float(np.median(sent.seconds)), 1),
                    "batch_p99_ms": round(1e3 * float(np.quantile(sent.seconds, 0.99)), 1),
                }
            )
            with _sent(first.url, items, "busy"):
                row = _seen(first, second, items, cfg.events, prefix="busy")
            add({"part": "seen", "load": "batches", **row})
            add({"part": "answers", **_answers(first, items)})
        add({"part": "killed", **_killed(run, items, cfg)})
    return found


class _Sent:
    """What senders sent and what was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[list[str]] = []
        self.seconds: list[float] = []
        self.stopped = threading.Event()


@contextmanager
def _sent(url: str, items: Sequence[str], name: str) -> Iterator[_Sent]:
    """Send batches from several connections while the block runs."""
    sent = _Sent()

    def send(number: int) -> None:
        draw = np.random.default_rng(number)
        with Client(url, retries=0) as client:
            for batch in range(1_000_000):
                if sent.stopped.is_set():
                    return
                ids = [f"{name}-{number}-{batch}-{place}" for place in range(_BATCH)]
                users = draw.integers(0, 20_000, _BATCH)
                chosen = draw.integers(0, len(items), _BATCH)
                events = [
                    {"event_id": event_id, "user_id": f"{name}-{user}", "item_id": items[item]}
                    for event_id, user, item in zip(ids, users, chosen, strict=True)
                ]
                started = time.perf_counter()
                try:
                    client.send(events)
                except ServiceError:  # it was killed: nobody knows
                    return
                sent.seconds.append(time.perf_counter() - started)
                sent.acknowledged.append(ids)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(_SENDERS)]
    for thread in threads:
        thread.start()
    try:
        yield sent
    finally:
        sent.stopped.set()
        for thread in threads:
            thread.join()


def _seen(
    first: Alone, second: Alone, items: Sequence[str], n_events: int, *, prefix: str = "quiet"
) -> dict[str, Any]:
    """Return how long after the acknowledgement another service knows a user."""
    waits = []
    with Client(first.url) as here, Client(second.url) as there:
        for number in range(n_events):
            user = f"{prefix} {number}"
            here.send([{"user_id": user, "item_id": items[number % len(items)]}])
            acknowledged = time.perf_counter()
            while True:
                try:
                    there.recommend(user_id=user, k=1)
                    break
                except ServiceError as error:
                    if error.type != "unknown_user":
                        raise
            waits.append(time.perf_counter() - acknowledged)
    return {
        "events": n_events,
        "seen_p50_s": round(float(np.median(waits)), 3),
        "seen_max_s": round(max(waits), 3),
    }


def _answers(service: Alone, items: Sequence[str]) -> dict[str, Any]:
    """Return the times of lists for a user of one event, and of many."""
    took: dict[str, list[float]] = {"few": [], "many": []}
    with Client(service.url) as client:
        for name, n_events in (("few", 1), ("many", _OF_USER)):
            client.send([{"user_id": name, "item_id": item} for item in items[:n_events]])
        for number in range(2 * _ASKED):
            name = ("few", "many")[number % 2]
            started = time.perf_counter()
            client.recommend(user_id=name)
            took[name].append(time.perf_counter() - started)
    return {f"{name}_p50_ms": round(1e3 * float(np.median(t)), 2) for name, t in took.items()}


def _killed(run: str, items: Sequence[str], cfg: EventsBenchConfig) -> dict[str, Any]:
    """Return what was lost and what was doubled of that which a killed service acknowledged."""
    draw = np.random.default_rng(cfg.seed)
    acknowledged: list[str] = []
    for kill in range(cfg.kills):
        with Alone(run, port=free_port()) as service:
            with _sent(service.url, items, f"kill{kill}") as sent:
                time.sleep(draw.uniform(*_LIVED_S))
                service.process.kill()
                service.process.wait()
            acknowledged += [event_id for batch in sent.acknowledged for event_id in batch]
    fold(FoldConfig(run=run))
    storage, counts = Storage(run), Counter[str]()
    for name in files_of(storage, EVENTS):
        counts.update(read_file(storage, name, ["event_id"])["event_id"].to_pylist())
    return {
        "kills": cfg.kills,
        "events": len(acknowledged),
        "lost": sum(not counts[event_id] for event_id in acknowledged),
        "doubled": sum(count > 1 for count in counts.values()),
    }
