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
    told = _told()
    if told is None:
        yield
        return
    second = _Second(told, os.environ[HAPROXY])
    second.start()
    try:
        yield
    finally:
        second.end()


def forget_told() -> None:
    """Forget what an HAProxy of before was told, so that the next one does not begin with it."""
    told = _told()
    if told is not None:
        told.unlink(missing_ok=True)


def _told() -> Path | None:
    """Return where `haproxy.sh` keeps what Serve's HAProxy was told; None: it does not."""
    if not through_haproxy() or HAPROXY not in os.environ or not ray.is_initialized():
        return None
    path = Path(RAY_SERVE_HAPROXY_CONFIG_FILE_LOC)
    return path.parent / str(ray.get_runtime_context().get_node_id()) / f"{path.name}.kept"


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
        self._current: subprocess.Popen[bytes] | None = None
        self._before: list[subprocess.Popen[bytes]] = []  # that end what they have begun
        self._ending = threading.Event()

    def run(self) -> None:
        """Follow until `end` is called. What this thread started is killed when it ends."""
        followed, wait = 0, _LOOK_S
        while not self._ending.wait(wait):
            wait = _LOOK_S
            self._before = [process for process in self._before if process.poll() is None]
            if self._current is not None and self._current.poll() is not None:
                self._current = None
            changed = self._told.stat().st_mtime_ns if self._told.exists() else 0
            if changed and (changed != followed or self._current is None):
                reason = self._start()
                if reason:
                    log.warning("second proxy did not start: %s", reason)
                    wait = _AGAIN_S
                else:
                    followed = changed
        running = [process for process in (*self._before, self._current) if process is not None]
        for process in running:
            process.send_signal(signal.SIGUSR1)  # takes nothing new, and ends what it has begun
        for process in running:
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
        running = list(self._before)
        if self._current is not None:
            command += ["-x", str(self._socket)]
            running.append(self._current)
        if running:
            command += ["-sf", *(str(process.pid) for process in running)]
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(_STARTS_S)
            lines = self._log.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else f"it ended with {started.returncode}"
        self._current, self._before = started, running
        return ""


def _die_with_parent() -> None:
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _second(told: str, socket: Path) -> str:
    """Return the configuration of the second for that of the first."""
    sections = [part for part in _SECTION.split(told) if not part.startswith(_OWN_PORTS)]
    return _SOCKET.sub(lambda found: f'{found[1]}"{socket}"', "".join(sections))
