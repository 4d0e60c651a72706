"""The Ray Serve application.

    serve run raysys.cluster.serve_app:build run=runs/first replicas=2
    raysys serve run=runs/first port=8000     (starts Ray and Serve if need be)

One deployment opens the current index of a run and answers HTTP v1. Scale it with `replicas=`: each
replica maps what it reads, and shares that memory with those on its node. More machines join the
Ray cluster. Replicas follow the run: a newer index, or newer changes, are served without a restart.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import click
from fastapi import FastAPI

from raysys.cluster import ingress  # noqa: F401  # isort: skip  # before Serve, which reads it
from ray import serve as serve
from ray.serve import Application

from raysys.config import JobConfig, load, require, require_run
from raysys.config import local as local_field
from raysys.errors import RaysysError
from raysys.http.app import Holder, ServiceOptions, create_app
from raysys.http.follow import Following
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Workspace

log = logging.getLogger(__name__)


@dataclasses.dataclass
class ServeConfig(JobConfig):
    """Settings of the service.

    Attributes:
        name: of the Serve application.
        build_id: of the index to serve; null takes the current one.
        verify: compare every served file with its hash before answering.
        follow_s: seconds between looks for a newer index or newer changes, which are then served
            without a restart; 0: never, as with `build_id`.
        replicas: processes that answer, each on `cpus` CPUs; a fraction shares one.
        cpus: CPUs that Ray reserves for one replica.
        max_ongoing_requests: of one replica; the proxy queues what comes beyond.
        max_queued_requests: of one proxy, or of one replica behind HAProxy; what comes beyond is
            answered 503. -1: no limit.
        host: address to listen on; 0.0.0.0 for every interface. There is no authentication.
        port: TCP port to listen on.
        route_prefix: path before /v1.
        local: serve from this process by uvicorn alone, without Ray.
    """

    name: str = local_field("raysys")
    build_id: str | None = local_field(None)
    verify: bool = local_field(True)
    follow_s: float = local_field(10.0)
    replicas: int = local_field(1)
    cpus: float = local_field(1.0)
    max_ongoing_requests: int = local_field(64)
    max_queued_requests: int = local_field(1024)
    host: str = local_field("127.0.0.1")
    port: int = local_field(8000)
    route_prefix: str = local_field("/")
    local: bool = local_field(False)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that Serve would refuse later."""
        require(self.replicas >= 1, "replicas", self.replicas, "1 or more")
        require(0 <= self.follow_s < math.inf, "follow_s", self.follow_s, "0 or more")
        require(self.cpus >= 0, "cpus", self.cpus, "0 or more")
        most = self.max_ongoing_requests
        require(most >= 1, "max_ongoing_requests", most, "1 or more")
        queued = self.max_queued_requests
        require(queued >= -1, "max_queued_requests", queued, "-1 or more")
        require(1 <= self.port <= 65535, "port", self.port, "1 to 65535")
        prefix = self.route_prefix
        accepted = "/ or a path that begins and does not end with /"
        ok = prefix == "/" or (prefix.startswith("/") and not prefix.endswith("/"))
        require(ok, "route_prefix", prefix, accepted)

    @property
    def following_s(self) -> float:
        """Seconds between looks for newer builds; 0 where one index is served for good."""
        return 0.0 if self.build_id is not None else self.follow_s


@serve.ingress()
class Service:
    """One replica: an opened search behind the HTTP app.

    Args:
        run: absolute path or URI.
        cache_dir: where builds on object stores are fetched to.
        build_id: of the index; one that follows its run opens the current index, and this one where
            that is refused.
        verify: check hashes on this node too.
        follow_s: seconds between looks for newer builds; 0: never.
    """

    def __init__(
        self, run: str, *, cache_dir: str | None, build_id: str, verify: bool, follow_s: float
    ) -> None:
        workspace = Workspace(run, cache_dir=cache_dir)
        search = _opened(workspace, build_id, verify=verify, current=follow_s > 0)
        options = ServiceOptions(request_ids=False)
        self._app = followed_app(
            search, workspace, verify=verify, follow_s=follow_s, options=options
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app of this replica; Serve calls it after the constructor."""
        return self._app


def _opened(workspace: Workspace, build_id: str, *, verify: bool, current: bool) -> Search:
    """Open the current index or, where that is refused or not asked for, the one of the start.

    A replica that starts anew, long after the service did, begins where the others are.
    """
    if current:
        try:
            return Search.open(workspace, verify=verify)
        except RaysysError as error:
            log.warning("service opens index=%s: %s", build_id, error)
    return Search.open(workspace, build_id=build_id, verify=verify)


def followed_app(
    search: Search,
    workspace: Workspace,
    *,
    verify: bool,
    follow_s: float,
    options: ServiceOptions | None = None,
) -> FastAPI:
    """Return the app over a search, and begin to follow its run unless `follow_s` is 0."""
    holder = Holder(search)
    if follow_s == 0:
        return create_app(holder, options)
    following = Following(holder, workspace, verify=verify, every_s=follow_s)
    following.start()
    return create_app(holder, options, following=following.state)


def application(cfg: ServeConfig) -> tuple[Application, dict[str, str]]:
    """Check the builds here, where an error is one clear line, and describe the deployment.

    Returns:
        The application and the {kind: build_id} that it will serve.

    Raises:
        BuildError: see `Served.open`.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    served = Served.open(workspace, build_id=cfg.build_id, verify=cfg.verify)
    deployment = serve.deployment(
        Service,
        name="search",
        num_replicas=cfg.replicas,
        ray_actor_options={"num_cpus": cfg.cpus},
        max_ongoing_requests=cfg.max_ongoing_requests,
        max_queued_requests=cfg.max_queued_requests,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},
    )
    app = deployment.bind(
        cfg.run,
        cache_dir=cfg.cache_dir,
        build_id=served.index.build_id,
        verify=cfg.verify,
        follow_s=cfg.following_s,
    )
    return app, served.build_ids


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
        return application(cfg)[0]
    except RaysysError as error:
        raise click.ClickException(" ".join(str(error).split())) from error
