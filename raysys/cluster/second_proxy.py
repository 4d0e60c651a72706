"""A second HAProxy on the port of the one that Serve starts, so that a kill leaves one of them.

Serve notices within a second that its HAProxy is gone, and needs another to start one anew. The
kernel gives new connections to whoever listens: with two, nobody is refused meanwhile. Both have
the same targets: `haproxy.sh` keeps what Serve tells its own, and the second follows that.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.serve._private.constants import RAY_SERVE_HAPROXY_CONFIG_FILE_LOC

from raysys.cluster.ingress import HAPROXY, through_haproxy

log = logging.getLogger(__name__)

_LOOK_S = 0.05  # between looks at what Serve's HAProxy was told
_STARTS_S = 0.3  # after which one that was started is taken to run
_AGAIN_S = 5.0  # until another try
_END_S = 2.0  # for requests that it passes on when it is told to end
_OWN_PORTS = ("frontend prometheus", "listen stats")  # sections for figures, which Serve's keeps
_SECTION, _SOCKET = re.compile(r"^(?=\S)", re.M), re.compile(r"^(\s*stats socket )\S+", re.M)
_DEATH_SIGNAL = 1  # of prctl
_LIBC = ctypes.CDLL(None)


@contextmanager
def second_proxy() -> Iterator[None]:
    """Keep a second HAProxy beside the one that Serve has on this machine, while the block runs.

    Nothing happens where requests do not come in through HAProxy, or where Ray was started by
    somebody else: nothing is kept there.
    """
    if not through_haproxy() or HAPROXY not in os.environ:
        yield
        return
    told = Path(RAY_SERVE_HAPROXY_CONFIG_FILE_LOC)
    told = told.parent / ray.get_runtime_context().get_node_id() / f"{told.name}.kept"
    second = _Second(told, os.environ[HAPROXY])
    second.start()
    try:
        yield
    finally:
        second.end()


class _Second(threading.Thread):
    """Starts the second HAProxy, and again whenever the first was told something or it has ended.

    Args:
        told: what Serve's HAProxy was told last; it need not be there yet.
        binary: of HAProxy.
    """

    def __init__(self, told: Path, binary: str) -> None:
        super().__init__(name="second-proxy", daemon=True)
        self._told, self._binary = told, binary
        self._config, self._socket, self._log = (
            told.with_name(f"second.{ending}") for ending in ("cfg", "sock", "log")
        )
        self._running: list[subprocess.Popen[bytes]] = []
        self._ending = threading.Event()

    def run(self) -> None:
        """Follow until `end` is called. What this thread started is killed when it ends."""
        followed, wait = 0, _LOOK_S
        while not self._ending.wait(wait):
            wait = _LOOK_S
            self._running = [process for process in self._running if process.poll() is None]
            changed = self._told.stat().st_mtime_ns if self._told.exists() else 0
            if changed and (changed != followed or not self._running):
                followed, reason = changed, self._start()
                if reason:
                    log.warning("second proxy did not start: %s", reason)
                    wait = _AGAIN_S
        for process in self._running:
            process.send_signal(signal.SIGUSR1)  # takes nothing new, and ends what it has begun
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            process.wait()
        for path in (self._config, self._socket, self._log, self._told):
            path.unlink(missing_ok=True)

    def end(self) -> None:
        """Stop HAProxy, requests that it has taken first."""
        self._ending.set()
        self.join()

    def _start(self) -> str:
        """Start one that takes over from those that run; return what kept it from that, or ""."""
        command = [self._binary, "-db", "-f", str(self._config)]
        if self._running:
            command += ["-x", str(self._socket), "-sf", *(str(p.pid) for p in self._running)]
        try:
            self._config.write_text(_second(self._told.read_text(), self._socket))
            with self._log.open("wb") as out:
                started = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    preexec_fn=_die_with_parent,
                )
        except OSError as error:
            return str(error)
        self._running.append(started)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(_STARTS_S)
            lines = self._log.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"it ended with {started.returncode}"
        return ""


def _die_with_parent() -> None:
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _second(told: str, socket: Path) -> str:
    """Return the configuration of the second for that of the first."""
    sections = [part for part in _SECTION.split(told) if not part.startswith(_OWN_PORTS)]
    return _SOCKET.sub(rf"\g<1>{socket}", "".join(sections))
