"""The loop: simulated users come to a real service for weeks and answer its lists by events.

Part `weeks`: three services of one index, each met by the same users with the same luck. `frozen`
is told nothing. `events` is told every click and all that users take elsewhere. `refreshed` is told
the same, and each week its events go into the log and its counters are refreshed. The rows say, a
week, which share of visits clicks and which share of what users then took elsewhere the list of
the week had.

Part `ab`: models are trained and evaluated on the log before the first week. Pairs of them meet the
users as arms of one service: those that two offline metrics prefer, and the first and the last.
`raysys experiment report` says which is better. Then the agreement of the metrics with the table of
the reports says how often they had picked it. The truth is known: the mean chance of a click.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import progress
from raysys.bench.agreement_measures import agreement, read_table
from raysys.bench.loop_plot import CONDITIONS, loop_panels
from raysys.bench.resources import load_average
from raysys.bench.serve_host import Alone, free_port, linked
from raysys.bench.suites import BenchConfig
from raysys.bench.vectors import scratch
from raysys.cluster.connect import connected
from raysys.commands.evaluate import EvaluateConfig, evaluate
from raysys.commands.events import FoldConfig, fold
from raysys.commands.experiment_report import ExperimentReportConfig, report
from raysys.commands.index import IndexConfig, index
from raysys.commands.prepare import prepare
from raysys.commands.train import TrainConfig, train
from raysys.commands.update import UpdateConfig, update
from raysys.config import load, require
from raysys.errors import BuildError
from raysys.http.client import Client
from raysys.prepare.config import PrepareConfig
from raysys.reports.experiment_offline import ONLINE, SYSTEM, metrics_of
from raysys.reports.plots import draw
from raysys.simulate.site import Site, SiteSpec
from raysys.simulate.visitors import WEEK, Ids, Taken, Visitors
from raysys.simulate.world import DAY, WorldSpec
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_LISTED = 10
_BATCH = 256
_SENT = 1_000
_SWAP_S = 60.0
_REPLAYED = ("events.clock=events", "events.ttl_days=400")
_EARLY_S = 6 * 3600  # of a week, before anybody clicks: the clock is that of events
_CONTENDERS: dict[str, dict[str, Any]] = {
    "wide": {},
    "narrow": {"latent": 8},
    "likelihood": {"latent": 32, "consume_loss": "likelihood"},
}
_OFFLINE = ("model.cutoff.recall@20", "model.cutoff.recall@20^0.3")


@dataclasses.dataclass
class LoopBenchConfig(BenchConfig):
    """Settings of the loop suite; it makes a run of its own.

    Attributes:
        weeks: that users come.
        n_users, n_items, n_interactions: size of the site, over a year.
        bias: exponent of what the site offers by popularity.
        taste_drift: share of the way to another taste that users go in the year.
        latent: of the model.
        ab_weeks: that the experiment runs.
    """

    weeks: int = 20
    n_users: int = 4_000
    n_items: int = 1_000
    n_interactions: int = 240_000
    ab_weeks: int = 8
    bias: float = 0.5
    taste_drift: float = 0.3
    latent: int = 128

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        require(3 <= self.weeks <= 30, "weeks", self.weeks, "3 to 30")
        require(3 <= self.ab_weeks <= self.weeks, "ab_weeks", self.ab_weeks, "3 to weeks")
        for name, least in (("n_users", 100), ("n_items", 100), ("n_interactions", 1_000)):
            require(getattr(self, name) >= least, name, getattr(self, name), f">= {least}")

    def visitors(self) -> Visitors:
        """Return users of a site, of a year that ends with the last week."""
        world = WorldSpec(
            n_users=self.n_users,
            n_items=self.n_items,
            n_interactions=self.n_interactions,
            seed=self.seed,
        )
        site = Site(SiteSpec(world, bias=self.bias, taste_drift=self.taste_drift))
        return Visitors(site, first_day=world.days - 7 * self.weeks)


def rows(cfg: LoopBenchConfig) -> list[dict[str, Any]]:
    """Return a row for every condition and week."""
    found: list[dict[str, Any]] = []

    def add(row: Mapping[str, Any]) -> None:
        found.append({**row, "load_average": load_average()})
        log.info("bench %s", found[-1])

    with scratch() as folder, connected(cfg.ray):
        base = f"{folder}/base"
        source = _written(cfg.visitors(), Path(folder, "log.parquet"))
        with progress.shown("off"):
            prepare(load(PrepareConfig, {"run": base, "source": source}))
        _indexed(base, {"latent": cfg.latent})
        for condition in CONDITIONS:
            run = f"{folder}/{condition}"
            linked(base, run)
            for row in _weeks(cfg, run, condition):
                add({"part": "weeks", "condition": condition, **row})
        for row in _tests(cfg, base):
            add(row)
    if cfg.run:
        Path(cfg.run).mkdir(parents=True, exist_ok=True)
        draw(loop_panels(found), Path(cfg.run) / "loop.png")
    return found


def _indexed(run: str, autoencoder: Mapping[str, Any]) -> str:
    """Train a model and make its index; return the index's build_id."""
    with progress.shown("off"):
        train(load(TrainConfig, {"run": run, "autoencoder": autoencoder}))
        return index(load(IndexConfig, {"run": run})).build_ids["index"]


def _written(visitors: Visitors, path: Path) -> str:
    """Write the log before the first week and return where."""
    taken, world = visitors.before(), visitors.site.world
    users, items = pa.array(world.user_ids()), pa.array(world.item_ids())
    pq.write_table(
        pa.table(
            {
                "user_id": users.take(pa.array(taken.user)),
                "item_id": items.take(pa.array(taken.item)),
                "timestamp": taken.time,
            }
        ),
        path,
    )
    return str(path)


class _Site:
    """A service as the site's users meet it."""

    def __init__(self, client: Client, site: Site) -> None:
        self._client = client
        self._users, self._items = site.world.user_ids(), site.world.item_ids()
        self.arms: list[str] = []
        self._number = {item_id: number for number, item_id in enumerate(self._items)}

    def lists(self, users: Ids) -> Ids:
        """Return the items of users' lists, [V, L], -1 where one is shorter; keep their arms."""
        shown = np.full((len(users), _LISTED), -1, dtype=np.int64)
        self.arms = []
        for start in range(0, len(users), _BATCH):
            block = users[start : start + _BATCH]
            queries = [{"user_id": self._users[user], "k": _LISTED} for user in block]
            for row, entry in enumerate(self._client.recommend_all(queries).answers, start):
                if entry.answer is None:
                    raise BuildError(f"the service does not answer: {entry.error}")
                self.arms.append(entry.answer.arm or "")
                numbers = [self._number[hit.item_id] for hit in entry.answer.items]
                shown[row, : len(numbers)] = numbers
        return shown

    def tell(
        self, taken: Taken, name: str, *, kind: str | None = None, until: float = math.inf
    ) -> None:
        """Send events of a kind, up to a time."""
        events = [
            {
                "event_id": f"{name}-{number}",
                "user_id": self._users[user],
                "item_id": self._items[item],
                "timestamp": int(when),
                "event": kind,
            }
            for number, (user, item, when) in enumerate(
                zip(taken.user, taken.item, taken.time, strict=True)
            )
            if when < until
        ]
        for start in range(0, len(events), _SENT):
            self._client.send(events[start : start + _SENT])


def _weeks(cfg: LoopBenchConfig, run: str, condition: str) -> Iterator[dict[str, Any]]:
    """Yield what each week brings."""
    visitors = cfg.visitors()
    words = [*_REPLAYED, "follow_s=0.5"]
    with Alone(run, port=free_port(), words=words) as service, Client(service.url) as client:
        site = _Site(client, visitors.site)
        for week in range(cfg.weeks):
            started = time.perf_counter()
            users = visitors.visitors(week)
            lists = site.lists(users)
            clicks = visitors.clicks(users, lists, week)
            organic = visitors.organic(week)
            if condition != "frozen":
                site.tell(clicks.taken, f"click-{week}")
                site.tell(organic, f"elsewhere-{week}")
            if condition == "refreshed" and week + 1 < cfg.weeks:
                _refresh(run, client)
            hits, targets = _recall(users, lists, organic)
            yield {
                "week": week,
                "visits": len(users),
                "conversion": round(float(clicks.chance.mean()), 4),
                "clicks": round(len(clicks.taken.user) / len(users), 4),
                "recall": round(hits / max(targets, 1), 4),
                "targets": targets,
                "seconds": round(time.perf_counter() - started, 1),
            }


def _tests(cfg: LoopBenchConfig, run: str) -> Iterator[dict[str, Any]]:
    """Yield rows of the contenders, of the experiments, and of what metrics make of them."""
    workspace = Workspace(run)
    builds: dict[str, str] = {}
    offline: dict[str, dict[str, float]] = {}
    for name, settings in _CONTENDERS.items():
        builds[name] = _indexed(run, {"latent": cfg.latent, **settings})
        with progress.shown("off"):
            evaluate(load(EvaluateConfig, {"run": run}))
        offline[name] = metrics_of(workspace, builds[name], "")
        shown = {m.removeprefix("model.cutoff."): round(offline[name][m], 4) for m in _OFFLINE}
        yield {"part": "contender", "contender": name, **shown}
    tables = []
    for name, (arm, control) in _pairs(offline).items():
        own = f"{run}-{name}"  # its events are the first that its service hears of
        shutil.copytree(run, own, copy_function=os.link)
        row, table = _test(cfg, own, name, {arm: builds[arm], control: builds[control]})
        tables.append(read_table(Path(table)))
        yield row
    settings = {"online": ONLINE, "system": SYSTEM, "metrics": list(_OFFLINE), "replicates": 0}
    for entry in agreement(pa.concat_tables(tables), reference=None, seed=cfg.seed, **settings):
        yield {
            "part": "agreement",
            "metric": entry.metric,
            "picked": entry.picked,
            "experiments": entry.cells,
        }


def _pairs(offline: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, str]]:
    """Return who meets: the winners of both metrics, and the first and the last by the penalised.

    Where one contender wins both metrics, it meets the second by the penalised.
    """
    plain, penalised = (sorted(offline, key=lambda c: -offline[c][m]) for m in _OFFLINE)
    other = penalised[0] if penalised[0] != plain[0] else penalised[1]
    return {"winners": (plain[0], other), "first and last": (penalised[0], penalised[-1])}


def _test(
    cfg: LoopBenchConfig, run: str, name: str, builds: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Let users meet an arm and a control; return what the report says, and its table."""
    arms = {arm: {"build_id": build_id} for arm, build_id in builds.items()}
    words = [*_REPLAYED, "follow_s=0", f"experiment.name={name}", "experiment.impressions=true"]
    words.append(f"experiment.arms={json.dumps(arms)}")
    visitors = cfg.visitors()
    chances: dict[str, list[float]] = {arm: [] for arm in builds}
    with Alone(run, port=free_port(), words=words) as service, Client(service.url) as client:
        site = _Site(client, visitors.site)
        for week in range(cfg.ab_weeks):
            organic, users = visitors.organic(week), visitors.visitors(week)
            told = f"{name}-elsewhere-{week}"
            site.tell(organic, told, until=visitors.start(week) + _EARLY_S)
            lists = site.lists(users)
            clicks = visitors.clicks(users, lists, week)
            for arm, chance in zip(site.arms, clicks.chance, strict=True):
                chances[arm].append(float(chance))
            site.tell(clicks.taken, f"{name}-click-{week}", kind="click")
            site.tell(organic, told)  # also what was told before: it counts once
    arm, control = builds
    with progress.shown("off"):
        fold(FoldConfig(run=run))
        asked = {"outcome": "conversions", "events": ["click"], "window_s": 2 * DAY}
        horizon_s = (cfg.ab_weeks - 2) * WEEK  # of most users it has passed by then
        asked |= {"run": run, "name": name, "control": control, "horizon_s": horizon_s}
        found = report(load(ExperimentReportConfig, asked))
    [compared] = found.extra["comparisons"]
    seen = compared["per_impression"]
    row = {
        "part": "ab",
        "experiment": name,
        "arm": arm,
        "control": control,
        "users": compared["users"],
        "clicks_arm": round(float(np.mean(chances[arm])), 4),
        "clicks_control": round(float(np.mean(chances[control])), 4),
        "difference": round(seen["difference"], 4),
        "difference_low": round(seen["low"], 4),
        "difference_high": round(seen["high"], 4),
        "p_at_any_time": round(compared["p_value"], 4),
        "decided_at": compared["decided_at"],
        "better": compared["better"],
        "p_split": round(found.extra["split"]["p_value"], 3),
    }
    return row, found.extra["table"]


def _recall(users: Ids, lists: Ids, organic: Taken) -> tuple[int, int]:
    """Return how many of the items that visitors took elsewhere lists had, and of how many."""
    place = {int(user): row for row, user in enumerate(users)}
    rows = np.array([place.get(int(user), -1) for user in organic.user], dtype=np.int64)
    met = rows >= 0
    return int((lists[rows[met]] == organic.item[met, None]).any(axis=1).sum()), int(met.sum())


def _refresh(run: str, client: Client) -> None:
    """Take the events into the log, refresh the counters, and wait until they are served."""
    with progress.shown("off"):
        fold(FoldConfig(run=run))
        prepare(load(PrepareConfig, {"run": run, "source": f"{run}/events", "mode": "append"}))
        update(UpdateConfig(run=run, refresh=True))
    build_id = Workspace(run).current("changes").build_id
    until = time.monotonic() + _SWAP_S
    while client.status().build_ids.get("changes") != build_id:
        require(time.monotonic() < until, "run", run, "changes that the service takes")
        time.sleep(0.1)
