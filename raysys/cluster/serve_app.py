"""The Ray Serve application.

    serve run raysys.cluster.serve_app:build run=runs/first replicas=2
    raysys serve run=runs/first port=8000     (starts Ray and Serve if need be)

One deployment opens the current index of a run and answers HTTP v1. Scale it with `replicas=`: each
replica maps what it reads, and shares that memory with those on its node. More machines join the
Ray cluster. Replicas follow the run: a newer index, or newer changes, are served without a restart.
"""

from __future__ import annotations

import gc
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import ray
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from raysys.cluster import ingress  # noqa: F401  # isort: skip  # before Serve, which reads it
from ray import serve as serve
from ray.serve import Application

from raysys.cluster.serve_config import ServeConfig
from raysys.config import load, require_run
from raysys.errors import BuildError, ConfigError, RaysysError, SearchError, told
from raysys.events.feed import Feed
from raysys.http.admin import Everyone, Order
from raysys.http.app import create_app
from raysys.http.arms import Arm, Experiment
from raysys.http.follow import Following, canaries
from raysys.http.keys import KeyRing
from raysys.http.service import Holder, ServiceOptions
from raysys.http.wire import Scenario
from raysys.scoring.rankings import Ranking
from raysys.search.changes import KIND
from raysys.search.query import conditions
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Workspace
from raysys.store.uses import SERVE

log = logging.getLogger(__name__)

_ORDER_S = {"state": 5.0, "metrics": 5.0, "look": 500.0}  # to open an index takes its time
_SWITCH_S = 0.0005  # between threads of Python: what opens an index must not hold up answers
_TRIED = 3  # changes and indexes of before that a new replica tries
_NEW_OBJECTS = 50_000  # between two looks for garbage: a batch of lists makes thousands
_TARGET_ONGOING = 8  # requests at a replica; more of them start another one


@serve.ingress()
class Service:
    """One replica: an opened search behind the HTTP app.

    Args:
        cfg: of the service.
        build_id: of the index; one that follows its run opens the current index, and this one where
            that is refused.
    """

    def __init__(self, cfg: ServeConfig, build_id: str) -> None:
        ours = logging.getLogger("raysys")  # into the replica's log, each line with its level
        ours.handlers, ours.propagate = logging.getLogger("ray.serve").handlers, False
        ours.setLevel(logging.INFO)
        context = serve.get_replica_context()
        self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        self._app = app_of(
            cfg,
            build_id,
            request_ids=False,
            name=context.replica_id.unique_id,
            everyone=self._everyone,
        )
        settle()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls it after the constructor."""
        return self._app

    async def obey(self, order: Order) -> Any:
        """Carry out an order that all replicas have been given."""
        return await run_in_threadpool(self._app.state.control.obey, order)

    async def _everyone(self, order: Order) -> list[Any]:
        sent = self._handle.broadcast("obey", order)
        try:
            return list(await sent.results_async(timeout_s=_ORDER_S[order], return_exceptions=True))
        except TimeoutError as error:  # the others are not told of
            return [await self.obey(order), error]


def settle() -> None:
    """Let no later look for garbage go over what a process holds once it serves.

    That is half a million objects of modules and types: a look at all of them holds up answers.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def app_of(
    cfg: ServeConfig,
    build_id: str | None = None,
    *,
    request_ids: bool = True,
    name: str = "local",
    everyone: Everyone | None = None,
) -> FastAPI:
    """Return the app of a replica, and begin to follow its run unless one index is asked for.

    Args:
        cfg: of the service.
        build_id: of the index of the start; None: the current one.
        request_ids: put ids on answers.
        name: of the replica.
        everyone: has an order carried out by all replicas; None: this is the only one.

    Raises:
        BuildError: see `Served.open`, or the index gives no usable list.
    """
    sys.setswitchinterval(_SWITCH_S)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    use = workspace.announce(SERVE)
    follows = cfg.following_s > 0
    search = _opened(workspace, build_id, verify=cfg.verify, current=follows)
    use.only(build.place for build in search.served.builds)
    _warn_of_presets(search, cfg.presets())
    holder = Holder(search)
    feed = None
    if cfg.events.take:
        begin = search.engine.fitted_until or 0
        feed = Feed(workspace.storage, cfg.events.options(), begin=begin)
        feed.start()
        search.asking.lately = feed.of
    following = None
    if follows:
        following = Following(holder, workspace, verify=cfg.verify, every_s=cfg.following_s)
        following.start()
    return create_app(
        holder,
        cfg.options(request_ids=request_ids, experiment=_experiment(cfg, workspace, holder, feed)),
        following=following,
        workspace=workspace if follows else None,
        run=workspace,
        name=name,
        everyone=everyone,
        feed=feed,
    )


def _experiment(
    cfg: ServeConfig, workspace: Workspace, holder: Holder, feed: Feed | None
) -> Experiment | None:
    """Open the indexes of the arms that have their own.

    Raises:
        BuildError: see `Served.open`; ConfigError: an arm asks for what its index cannot give.
    """
    chosen = cfg.experiment
    if chosen.name is None:
        return None
    entries = chosen.entries()
    total = sum(entry.weight for entry in entries.values())
    arms = []
    workspace = Workspace(workspace.run, cache_dir=cfg.cache_dir)
    workspace.announce(SERVE)  # for itself: what is followed takes turns
    current = holder()
    for name, entry in entries.items():
        search = None
        if entry.build_id is not None:
            search = Holder(_tried(workspace, entry.build_id, verify=cfg.verify))
            if feed is not None:
                search().asking.lately = feed.of
        try:
            _check_preset(current if search is None else search(), entry.settings)
        except RaysysError as error:
            raise ConfigError(f"experiment.arms.{name} does not fit: {error}") from error
        arms.append(Arm(name, entry.weight / total, search, entry.settings))
    return Experiment(
        chosen.name,
        arms,
        salt=chosen.name if chosen.salt is None else chosen.salt,
        feed=feed if chosen.impressions else None,
    )


def _warn_of_presets(search: Search, presets: Mapping[str, Scenario]) -> None:
    """Name the presets that every query of this build would be refused with."""
    for name, preset in presets.items():
        try:
            _check_preset(search, preset)
        except RaysysError as error:
            log.warning("scenario=%s does not fit index=%s: %s", name, search.build_id, error)


def _check_preset(search: Search, preset: Scenario) -> None:
    """Raise RaysysError for a preset that every query of a build would be refused with."""
    if preset.ranking is not None:
        search.engine.checked(Ranking.parse(preset.ranking))
    most = max(ServiceOptions().k_limit, search.n_items)
    if preset.k is not None and preset.k > most:
        raise SearchError(f"k={preset.k} is not accepted: expected 1 to {most}")
    search.allowed(conditions(preset.allow), conditions(preset.deny))


def _opened(workspace: Workspace, build_id: str | None, *, verify: bool, current: bool) -> Search:
    """Open what is to be served, and ask it canary queries.

    A replica that starts anew, long after the service did, begins where the others are: with the
    current index or, where that is refused, with what was served before. Only the first start of a
    service, which has no `build_id`, takes nothing but what is current.

    Args:
        workspace: the run.
        build_id: of the index at the service's start; None: that is now.
        verify: check hashes.
        current: take the current index rather than that of the start.
    """
    if not current or build_id is None:
        return _tried(workspace, build_id, verify=verify)
    changes = [workspace.current(KIND).build_id] if workspace.has(KIND) else []
    changes = [*changes, *workspace.before(KIND)]
    indexes = [None, *workspace.before("index")[:_TRIED], build_id]
    ways = list(itertools.product(indexes, range(min(len(changes), _TRIED) + 1)))
    for place, (index, n_left_out) in enumerate(ways, start=1):
        try:
            return _tried(workspace, index, verify=verify, without=changes[:n_left_out])
        except Exception as error:
            if place == len(ways):
                raise
            log.warning("service cannot start with what is current: %s", told(error))
    raise AssertionError("the last way raises or returns")


def _tried(
    workspace: Workspace, build_id: str | None, *, verify: bool, without: Sequence[str] = ()
) -> Search:
    served = Served.open(workspace, build_id=build_id, verify=verify, without=without)
    search = Search(served)
    canaries(search, search)
    return search


def checked(cfg: ServeConfig) -> Served:
    """Check settings and builds here, where an error is one clear line.

    Raises:
        BuildError: see `Served.open`; ConfigError: the file of keys or the run is not usable.
    """
    require_run(cfg)
    if cfg.keys is not None:
        KeyRing(cfg.keys)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    for name, entry in cfg.experiment.entries().items():
        try:
            if entry.build_id is not None:
                Served.open(workspace, build_id=entry.build_id, verify=cfg.verify)
        except BuildError as error:
            raise BuildError(f"experiment.arms.{name}: {error}") from error
    return Served.open(workspace, build_id=cfg.build_id, verify=cfg.verify)


def replicas_of(cfg: ServeConfig, cpus: float) -> int:
    """Return how many replicas begin on a cluster of so many CPUs: two, if one CPU stays free."""
    if cfg.replicas is not None:
        return cfg.replicas
    return min(2, cfg.max_replicas or 2) if cpus >= 2 * cfg.cpus + 1 else 1


def application(cfg: ServeConfig, served: Served, *, replicas: int) -> Application:
    """Describe the deployment.

    Args:
        cfg: of the service.
        served: what `checked` returned.
        replicas: at the start.
    """
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if cfg.max_replicas is not None and cfg.max_replicas > replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": cfg.max_replicas,
                "target_ongoing_requests": _TARGET_ONGOING,
            }
        }
    deployment = serve.deployment(
        Service,
        name="search",
        ray_actor_options={"num_cpus": cfg.cpus},
        max_ongoing_requests=cfg.max_ongoing_requests,
        max_queued_requests=cfg.max_queued_requests,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        max_surge_percent=100,  # what is new starts before what is old stops
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},
        **scaling,
    )
    return deployment.bind(cfg, served.index.build_id)


def build(args: Mapping[str, Any]) -> Application:
    """Return the application for `serve run raysys.cluster.serve_app:build key=value ...`.

    Raises:
        click.ClickException: bad settings or builds; the Serve command line shows it as one line.
    """
    for key in ("host", "port", "name", "route_prefix", "local"):
        if key in args:
            log.warning("setting ignored key=%s reason=%s", key, "serve run decides it")
    try:
        cfg = load(ServeConfig, args)
        cpus = ray.cluster_resources().get("CPU", 0.0) if ray.is_initialized() else 0.0
        return application(cfg, checked(cfg), replicas=replicas_of(cfg, cpus))
    except RaysysError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
