"""The only place that starts or joins Ray.

A cluster that does not answer is found out here, in seconds: `ray.init` itself waits for a quarter
of an hour. Whatever keeps Ray from starting becomes one ConfigError with what to do about it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import grpc
import ray
import ray.exceptions
from ray._common.utils import get_ray_address_file
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import read_ray_address
from ray.core.generated import ray_client_pb2

from raysys.config import RayConfig
from raysys.errors import ConfigError

log = logging.getLogger(__name__)

_MIB = 1 << 20
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_CONNECT_S = 10.0  # until a machine takes the connection
_READY_S = 20.0  # until the process behind it says that it lives
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_MISMATCH = "ersion mismatch"  # of Ray's errors
_PINGED = "/ray.rpc.RayletDriver/ClusterInfo"  # at the port for Ray clients
_PING = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
_NO_TOKEN = "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's"
_REASON = 300  # characters
_TEMP_FOLDERS = ("RAY_TMPDIR", "TMPDIR")  # where Ray, and the dashboard it starts, put sockets
_SHORT_TEMP = "/tmp"
_TEMP_BYTES = 38  # a socket's path has at most 107, Ray adds a session and a name to the folder


@contextmanager
def connected(cfg: RayConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Run the block on a Ray cluster: joined if there is one, else started and stopped again.

    A process that is connected already keeps its connection, so stages nest.

    Args:
        cfg: how to find the cluster.
        dashboard: start a private cluster with its dashboard, which sweeps need (a scheduler that
            stops trials leaks their placement groups without it).

    Raises:
        ConfigError: the cluster does not answer or refuses, or none can be started.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    joined = _join(cfg)
    if not joined:
        _start(cfg, dashboard=dashboard)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would leave drafts behind
    name = "joined" if joined else "started"
    log.info("ray %s cpus=%g", name, ray.cluster_resources().get("CPU", 0))
    try:
        yield
    finally:
        ray.shutdown()


def _start(cfg: RayConfig, *, dashboard: bool) -> None:
    """Start a private cluster."""
    with _short_temp_folder():
        try:
            ray.init(
                address="local",
                num_cpus=cfg.num_cpus,
                object_store_memory=cfg.object_store_mb * _MIB,
                include_dashboard=dashboard,
                **_QUIET,
            )
        except Exception as error:  # Ray raises many kinds, plain Exception among them
            log.debug("ray.init failed", exc_info=True)
            raise ConfigError(
                f"Ray does not start here: {_reason(error)}; look at ray.object_store_mb, the "
                "temporary folder ($RAY_TMPDIR or $TMPDIR) and the token, or join a cluster by "
                "ray.address="
            ) from error


@contextmanager
def _short_temp_folder() -> Iterator[None]:
    """Let Ray put its sockets elsewhere where the user's temporary folder has too long a path."""
    values = {name: os.environ[name] for name in _TEMP_FOLDERS if name in os.environ}
    unfit = {name: text for name, text in values.items() if not _fits_sockets(text)}
    if unfit and not os.access(_SHORT_TEMP, os.W_OK):
        name, text = next(iter(unfit.items()))
        raise ConfigError(
            f"{name}={text!r} is no folder for Ray's sockets, and {_SHORT_TEMP} cannot be written: "
            f"set RAY_TMPDIR to an absolute path of at most {_TEMP_BYTES} bytes"
        )
    for name, text in unfit.items():
        log.warning("path too long for sockets %s=%s: Ray takes %s", name, text, _SHORT_TEMP)
        os.environ[name] = _SHORT_TEMP
    try:
        yield
    finally:
        os.environ.update(unfit)


def _fits_sockets(folder: str) -> bool:
    return os.path.isabs(folder) and len(os.fsencode(folder)) <= _TEMP_BYTES


def _join(cfg: RayConfig) -> bool:
    """Join the cluster that the settings, $RAY_ADDRESS or `ray start` name.

    Returns:
        False where none is named, or `ray start` left the name of one that is gone. Another job's
        private cluster is not joined: it would vanish with that job.
    """
    key, where = _named(cfg)
    if where == "local":
        return False
    target = read_ray_address() if where == "auto" else where
    if not target and not key:
        return False
    problem = _unreachable(target) if target else "`ray start` left no address"
    if problem == _NO_TOKEN and where == "auto" and "RAY_AUTH_MODE" not in os.environ:
        problem = None  # then ray.init looks for a token of its own accord
    if problem and not key:
        file = get_ray_address_file(None)
        log.warning("ray cluster left out address=%s file=%s reason=%s", target, file, problem)
        return False
    key, target = key or "ray.address", target or where
    if problem:
        raise _not_joined(key, target, problem)
    try:
        ray.init(address=where, **_QUIET)
    except Exception as error:  # Ray raises many kinds, plain Exception among them
        log.debug("ray.init failed", exc_info=True)
        raise _not_joined(key, target, _reason(error)) from error
    return True


def _named(cfg: RayConfig) -> tuple[str, str]:
    """Return (what says it, the address), ("", "auto") where nothing does; empty is unset."""
    named = {"ray.address": cfg.address, "RAY_ADDRESS": os.environ.get("RAY_ADDRESS")}
    given = [(key, text) for key, text in named.items() if text]
    exact = [(key, text) for key, text in given if text != "auto"]
    return (exact or given or [("", "auto")])[0]


def _not_joined(key: str, where: str, reason: str) -> ConfigError:
    mend = "install its versions here" if _MISMATCH in reason else "start that cluster"
    return ConfigError(
        f"{key}={where!r} cannot be joined ({reason}): {mend}, name another by "
        "ray.address=HOST:PORT or ray://HOST:10001, or say ray.address=local"
    )


def _unreachable(address: str) -> str | None:
    """Return why no Ray cluster answers at an address; None: one does.

    Raises:
        ConfigError: it is no address.
    """
    scheme, _, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"//{rest if scheme else canonicalize_bootstrap_address(address)}")
        host, port = parts.hostname, parts.port
    except (ValueError, OSError) as error:
        return f"no HOST:PORT: {error}"
    if scheme not in ("", "ray") or host is None or port is None:
        return "neither HOST:PORT nor ray://HOST:PORT"
    where = parts.netloc
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"no connection to {where}: {error.strerror or error}"
    return _refusal(where, client=scheme == "ray")


def _refusal(where: str, *, client: bool) -> str | None:
    """Ask what listens at HOST:PORT whether it is a Ray cluster; return why not, None: it is.

    Args:
        where: the head of a cluster, or its port for Ray clients.
        client: it is the latter, which knows another question.
    """
    with contextlib.closing(init_grpc_channel(where, [("grpc.enable_http_proxy", 0)])) as channel:
        ask = channel.unary_unary(_PINGED if client else _ALIVE)
        try:
            ask(_PING.SerializeToString() if client else b"", timeout=_READY_S, wait_for_ready=True)
        except ray.exceptions.RayError as error:  # no token where one should be
            return _reason(error)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return _NO_TOKEN
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{where} takes connections, but no Ray cluster answers"
            if code == grpc.StatusCode.UNIMPLEMENTED and not client:
                return f"{where} is not the head of a Ray cluster"
    return None


def _reason(error: BaseException) -> str:
    """Return in one line what an error and its cause say."""
    texts = []
    for one in (error, error.__cause__):
        text, _, trace = str(one or "").strip().partition("Traceback (most recent call last)")
        texts += [" ".join(text.split()), *trace.splitlines()[-1:]]
    reason = " ".join(text for text in texts if text) or type(error).__name__
    return reason if len(reason) <= _REASON else reason[: _REASON - 1] + "…"


def resources_now() -> str:
    """Return the CPUs of the cluster, and how many of them are free, as a log line has them."""
    has, free = ray.cluster_resources(), ray.available_resources()
    return f"cpus={has.get('CPU', 0):g} free={free.get('CPU', 0):g}"


def asked(question: Callable[[], str]) -> str:
    """Return a cluster's answer; while its head is away there is nobody to ask, which is said."""
    try:
        return question()
    except Exception as error:
        return f"the cluster does not say what it has: {type(error).__name__}"
