"""Serve: answer over HTTP until the process is told to stop."""

from __future__ import annotations

import io
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TextIO

import httpx
import ray
import uvicorn
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from raysys.cluster.connect import connected
from raysys.cluster.ingress import share_port, through_haproxy
from raysys.cluster.second_proxy import forget_told, second_proxy
from raysys.cluster.serve_app import app_of, application, checked, replicas_of, settle
from raysys.cluster.serve_app import serve as ray_serve
from raysys.cluster.serve_config import ServeConfig
from raysys.config import require, require_run
from raysys.errors import BuildError, ConfigError, find_cause, told
from raysys.store.builds import StageResult

__all__ = ["ServeConfig", "serve"]

log = logging.getLogger(__name__)

_HAPROXY_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # it asks replicas on 127.0.0.1
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TAKEN = re.compile(r'being used by application "(.+?)"')  # as Serve says it
_LAST_LINE = "ServeController.graceful_shutdown failed"
_DRAIN_S = 10  # for requests that run when the service is told to stop
_ANSWERED_S = 60.0  # until a started service answers through what listens


def serve(cfg: ServeConfig) -> StageResult:
    """Start the service and block until SIGINT or SIGTERM; then stop what was started here.

    Ray, and Serve on it, are joined where they are there already, and then left running.

    Raises:
        BuildError: there is no index, or a build is damaged or mixed.
        ConfigError: the port or the route is taken, or the cluster does not answer.
    """
    require_run(cfg)
    with _interrupted_by_signals():
        try:
            build_ids = _serve_here(cfg) if cfg.local else _serve_on_ray(cfg)
        except KeyboardInterrupt:
            log.info("service interrupted before it was ready")
            build_ids = {}
    log.info("service stopped")
    return StageResult(build_ids=build_ids)


def _serve_here(cfg: ServeConfig) -> dict[str, str]:
    served = checked(cfg)
    _require_free_port(cfg)
    require(cfg.route_prefix == "/", "route_prefix", cfg.route_prefix, "/ with local=true")
    settings = uvicorn.Config(
        app_of(cfg),
        host=cfg.host,
        port=cfg.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    settle()
    _announce(cfg)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run()
    return served.build_ids


def _serve_on_ray(cfg: ServeConfig) -> dict[str, str]:
    served = checked(cfg)
    share_port()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # ray.init takes SIGTERM over, so it is claimed again once that is done
    with (
        _without_the_line_of_the_end(),
        connected(cfg.ray),
        _interrupted_by_signals(),
        _application_removed(cfg) as joined,
    ):
        cpus = ray.cluster_resources().get("CPU", 0.0)
        replicas = replicas_of(cfg, cpus)
        if replicas * cfg.cpus > cpus:
            needed = replicas * cfg.cpus
            log.warning("cluster too small cpus=%g needed=%g: waiting for more", cpus, needed)
        try:
            app = application(cfg, served, replicas=replicas)
            ray_serve.run(app, name=cfg.name, route_prefix=cfg.route_prefix)
            if not joined:
                _wait_until_answered(cfg)
            log.info("service replicas=%d logs=%s", replicas, _logs())
            _announce(cfg)
            threading.Event().wait()
        except RayServeException as error:
            raise _refused(cfg, error) from error
        except RuntimeError as error:
            known = find_cause(error)
            reason = str(known or error).strip().splitlines()[-1]
            raise BuildError(f"the service did not start: {reason}") from error
        except KeyboardInterrupt:
            log.info("service stopping")
            _end_in_peace()
    return served.build_ids


def _refused(cfg: ServeConfig, error: RayServeException) -> ConfigError:
    """Say what Serve has against an application, which is nearly always another one's route."""
    route = f"route_prefix={cfg.route_prefix!r}"
    taken = _TAKEN.search(str(error))
    if taken is None:
        return ConfigError(f"Serve refuses name={cfg.name!r} {route}: {told(error)}")
    return ConfigError(
        f"{route} is taken by the Serve application {taken[1]!r} of this cluster: choose another, "
        f"such as route_prefix=/{cfg.name}, or stop that application"
    )


@contextmanager
def _application_removed(cfg: ServeConfig) -> Iterator[bool]:
    """Start Serve unless it runs; afterwards stop it, or only our application if it has others.

    Gives whether it ran before.
    """
    status = ray_serve.status()
    joined = bool(status.proxies or status.applications)
    if cfg.name in status.applications:
        raise ConfigError(f"name={cfg.name!r} is already a Serve application of this cluster")
    if joined:
        log.warning("settings ignored keys=host,port reason=Serve runs on this cluster already")
    with nullcontext() if joined else _listening(cfg):
        try:
            with nullcontext() if joined else second_proxy():
                yield joined
        finally:
            if joined or set(ray_serve.status().applications) - {cfg.name}:
                ray_serve.delete(cfg.name)  # Serve goes on for the others
            else:
                ray_serve.shutdown()


@contextmanager
def _listening(cfg: ServeConfig) -> Iterator[None]:
    """Start Serve on the port, which is ours while the block runs."""
    _require_free_port(cfg)
    if through_haproxy() and cfg.host not in _HAPROXY_HOSTS:
        accepted = f"{', '.join(_HAPROXY_HOSTS)}, or any with RAY_SERVE_ENABLE_HA_PROXY=0 set"
        raise ConfigError(f"host={cfg.host!r} is not accepted: expected {accepted}")
    with _claimed(cfg):
        forget_told()
        try:
            ray_serve.start(http_options={"host": cfg.host, "port": cfg.port})
        except RayError as error:
            ray_serve.shutdown()
            raise BuildError(f"Serve did not start: {told(error)}") from error
        yield


class _Sieve(io.TextIOBase):
    """Passes text on, but for what Ray prints when Serve's controller ends while it is told to.

    Ray says there that it would try again, which nobody has to read.
    """

    def __init__(self, out: TextIO) -> None:
        self._out, self._dropped = out, False

    def write(self, text: str) -> int:
        """Write text, unless it is that line or the line feed behind it."""
        dropped = _LAST_LINE in text or (self._dropped and text == "\n")
        self._dropped = _LAST_LINE in text
        return len(text) if dropped else self._out.write(text)

    def flush(self) -> None:
        """Flush what is behind."""
        self._out.flush()


@contextmanager
def _without_the_line_of_the_end() -> Iterator[None]:
    with redirect_stdout(_Sieve(sys.stdout)):
        yield


def _require_free_port(cfg: ServeConfig) -> None:
    """Fail now, in one line, rather than in a proxy's log."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            cfg.host, cfg.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on host={cfg.host} port={cfg.port}: {error}") from error


@contextmanager
def _claimed(cfg: ServeConfig) -> Iterator[None]:
    """Let no other command of this machine start a service on the port meanwhile.

    Serve takes seconds until it listens, and then shares its port with whoever asks for it as well.
    """
    with socket.socket(socket.AF_UNIX) as claim:
        if sys.platform == "linux":  # names that are no files, and free again when their owner ends
            whose = "" if through_haproxy() else cfg.host
            try:
                claim.bind(f"\0raysys-serve-{whose}:{cfg.port}")
            except OSError as error:
                reason = "another raysys serve has it"
                raise ConfigError(f"cannot listen on port={cfg.port}: {reason}") from error
        yield


def _wait_until_answered(cfg: ServeConfig) -> None:
    """Wait until what listens passes requests on: HAProxy learns of replicas a little later."""
    url = f"{_url(cfg)}/v1/health"
    deadline = time.monotonic() + _ANSWERED_S
    while True:
        with suppress(httpx.HTTPError):  # never through a proxy of the environment
            answer = httpx.get(url, timeout=_ANSWERED_S, trust_env=False)
            if answer.status_code == httpx.codes.OK:
                return
        if time.monotonic() > deadline:
            raise BuildError(f"the service did not start: {url} does not answer")
        time.sleep(0.1)


def _announce(cfg: ServeConfig) -> None:
    if cfg.keys is None and cfg.host not in _LOOPBACK:
        log.warning("service open to whoever reaches host=%s: set keys=FILE", cfg.host)
    log.info("service ready url=%s/v1/recommend page=%s/", _url(cfg), _url(cfg))


def _url(cfg: ServeConfig) -> str:
    host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host
    return f"http://{host}:{cfg.port}{cfg.route_prefix.rstrip('/')}"


def _logs() -> str:
    """Return the folder of the replicas' logs on this machine."""
    node = ray._private.worker._global_node
    return "unknown" if node is None else f"{node.get_logs_dir_path()}/serve"


def _end_in_peace() -> None:
    """Let what asks once more to stop wait until what was begun has ended."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the block; a no-op outside the main thread.

    SIGINT needs this too: shells start background commands with it ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, signal.default_int_handler) for number in caught]
    try:
        yield
    finally:
        for number, handler in zip(caught, previous, strict=True):
            signal.signal(number, handler)
