"""The Ray Serve application.

    serve run raysys.cluster.serve_app:build run=runs/first replicas=2
    raysys serve run=runs/first port=8000     (starts Ray and Serve if need be)

One deployment opens the current index of a run and answers HTTP v1. Scale it with `replicas=`: each
replica maps what it reads, and shares that memory with those on its node. More machines join the
Ray cluster. Replicas follow the run: a newer index, or newer changes, are served without a restart.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import ray
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from raysys.cluster import ingress  # noqa: F401  # isort: skip  # before Serve, which reads it
from ray import serve as serve
from ray.serve import Application

from raysys import fields
from raysys.config import JobConfig, load, location, require, require_run
from raysys.config import local as local_field
from raysys.errors import RaysysError, told
from raysys.http.admin import Everyone, Order
from raysys.http.app import create_app
from raysys.http.follow import Following, canaries
from raysys.http.keys import KeyRing
from raysys.http.logs import Logs
from raysys.http.service import Holder, ServiceOptions
from raysys.http.wire import Scenario
from raysys.scoring.rankings import Ranking
from raysys.search.changes import KIND
from raysys.search.query import conditions
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)

_ORDER_S = {"state": 5.0, "metrics": 5.0, "look": 500.0}  # to open an index takes its time
_SWITCH_S = 0.0005  # between threads of Python: what opens an index must not hold up answers
_TRIED = 3  # changes and indexes of before that a new replica tries
_TARGET_ONGOING = 8  # requests at a replica; more of them start another one


@dataclasses.dataclass
class ServeConfig(JobConfig):
    """Settings of the service.

    Attributes:
        name: of the Serve application.
        build_id: of the index to serve; null takes the current one.
        verify: compare every served file with its hash before answering.
        follow_s: seconds between looks for a newer index or newer changes, which are then served
            without a restart; 0: never, as with `build_id`.
        replicas: processes that answer, each on `cpus` CPUs; a fraction shares one. null: two, or
            one where two would leave no CPU free.
        max_replicas: replicas that are started as more requests come; null: no more.
        cpus: CPUs that Ray reserves for one replica.
        max_ongoing_requests: of one replica; the proxy queues what comes beyond.
        max_queued_requests: of one proxy, or of one replica behind HAProxy; what comes beyond is
            answered 503. -1: no limit.
        timeout_s: for an answer that is not short; what takes longer is answered 503.
        keys: file of keys that `raysys serve key` writes; null: whoever reaches the port may ask.
        logs: folder for the access and the audit log, JSON lines; null: none are written.
        scenarios: presets by name, such as `{home: {ranking: discover^0.3, k: 10}}`.
        host: address to listen on; 0.0.0.0 for every interface.
        port: TCP port to listen on.
        route_prefix: path before /v1.
        local: serve from this process by uvicorn alone, without Ray.
    """

    name: str = local_field("raysys")
    build_id: str | None = local_field(None)
    verify: bool = local_field(True)
    follow_s: float = local_field(10.0)
    replicas: int | None = local_field(None)
    max_replicas: int | None = local_field(None)
    cpus: float = local_field(1.0)
    max_ongoing_requests: int = local_field(64)
    max_queued_requests: int = local_field(1024)
    timeout_s: float = local_field(10.0)
    keys: str | None = location(None)
    logs: str | None = location(None)
    scenarios: dict[str, Any] = local_field(factory=dict)
    host: str = local_field("127.0.0.1")
    port: int = local_field(8000)
    route_prefix: str = local_field("/")
    local: bool = local_field(False)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that Serve would refuse later."""
        require(self.replicas is None or self.replicas >= 1, "replicas", self.replicas, "1 or more")
        most, least = self.max_replicas, self.replicas or 1
        require(most is None or most >= least, "max_replicas", most, f"{least} or more")
        require(0 < self.timeout_s < math.inf, "timeout_s", self.timeout_s, "more than 0")
        require(0 <= self.follow_s < math.inf, "follow_s", self.follow_s, "0 or more")
        require(self.cpus >= 0, "cpus", self.cpus, "0 or more")
        ongoing = self.max_ongoing_requests
        require(ongoing >= 1, "max_ongoing_requests", ongoing, "1 or more")
        queued = self.max_queued_requests
        require(queued >= -1, "max_queued_requests", queued, "-1 or more")
        require(1 <= self.port <= 65535, "port", self.port, "1 to 65535")
        prefix = self.route_prefix
        accepted = "/ or a path that begins and does not end with /"
        ok = prefix == "/" or (prefix.startswith("/") and not prefix.endswith("/"))
        require(ok, "route_prefix", prefix, accepted)
        self.presets()

    def presets(self) -> dict[str, Scenario]:
        """Return the scenarios.

        Raises:
            ConfigError: one says what no preset may.
        """
        found = {}
        for name, given in self.scenarios.items():
            try:
                found[str(name)] = Scenario.model_validate(given)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, ("scenarios", name, *first["loc"])))
                accepted = first["msg"].removeprefix("Input should be ")
                raise fields.refused(key, first["input"], accepted) from error
        return found

    def options(self, *, request_ids: bool) -> ServiceOptions:
        """Return how a replica answers; it opens the files of keys and logs.

        Raises:
            ConfigError: one of them cannot be opened.
        """
        queued = self.max_queued_requests
        keys = None if self.keys is None else KeyRing(self.keys)
        if keys is not None:
            keys.start()
        return ServiceOptions(
            request_ids=request_ids,
            scenarios=self.presets(),
            keys=keys,
            logs=None if self.logs is None else Logs(self.logs),
            max_ongoing=None if queued < 0 else self.max_ongoing_requests + queued,
            timeout_s=self.timeout_s,
        )

    @property
    def following_s(self) -> float:
        """Seconds between looks for newer builds; 0 where one index is served for good."""
        return 0.0 if self.build_id is not None else self.follow_s


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
    follows = cfg.following_s > 0
    search = _opened(workspace, build_id, verify=cfg.verify, current=follows)
    _warn_of_presets(search, cfg.presets())
    holder = Holder(search)
    following = None
    if follows:
        following = Following(holder, workspace, verify=cfg.verify, every_s=cfg.following_s)
        following.start()
    return create_app(
        holder,
        cfg.options(request_ids=request_ids),
        following=following,
        workspace=workspace if follows else None,
        name=name,
        everyone=everyone,
    )


def _warn_of_presets(search: Search, presets: Mapping[str, Scenario]) -> None:
    """Name the presets that every query of this build would be refused with."""
    for name, preset in presets.items():
        try:
            if preset.ranking is not None:
                search.engine.checked(Ranking.parse(preset.ranking))
            search.allowed(conditions(preset.allow), conditions(preset.deny))
        except RaysysError as error:
            log.warning("scenario=%s does not fit index=%s: %s", name, search.build_id, error)


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
