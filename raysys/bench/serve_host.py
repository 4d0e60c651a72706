"""A service that a benchmark starts, in a process of its own, and tells what should happen to it.

It reads orders from standard input, one a line, and answers each with a line of JSON:

    redeploy             the same builds in new replicas, as a new version brings them
    kill replica         kill -9 of one replica
    kill proxy           kill -9 of what takes requests in
    kill second proxy    the same of the one beside it
    stop                 end
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from raysys.errors import BuildError
from raysys.search.served import Served
from raysys.store.builds import Workspace

_START_S = 180.0


class Host:
    """The service, from the outside.

    Args:
        settings: keys of `raysys serve`.
        environment: beside that of this process.
    """

    def __init__(self, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        told = f"from raysys.bench.serve_host import main; main({json.dumps(dict(settings))!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.url = f"http://127.0.0.1:{settings['port']}"

    def __enter__(self) -> Self:
        self._answer()
        _wait_for(self.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.tell("stop")
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def tell(self, order: str) -> dict[str, Any]:
        """Give an order and return what became of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise BuildError("the service that was started has ended")


class Alone:
    """A service of one process, without Ray.

    Args:
        run: that is served.
        port: to listen on.
        words: further settings of `raysys serve`.
        cpu: the only CPU that it may use; None: any.
    """

    def __init__(
        self, run: str, *, port: int, words: Sequence[str] = (), cpu: int | None = None
    ) -> None:
        command = [sys.executable, "-m", "raysys.cli", "serve", f"run={run}", f"port={port}"]
        self.process = subprocess.Popen(
            [*command, "local=true", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if cpu is not None:
            os.sched_setaffinity(self.process.pid, {cpu})
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        _wait_for(self.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        self.process.wait(30)

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait_for(url: str) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            if httpx.get(f"{url}/livez", trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > until:
            raise BuildError(f"the service at {url} does not answer")
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def linked(source: str, run: str, kind: str | None = None) -> str:
    """Make a run of the same builds; nothing is written into what is finished, so links do.

    Args:
        source: the run that is there.
        run: that is made.
        kind: the builds that the current one of a kind was made from, and that; None: what is
            served.

    Returns:
        `run`.
    """
    workspace = Workspace(source)
    if kind is None:
        builds = Served.open(workspace, verify=False).builds
    else:
        builds = [*workspace.chain(workspace.current(kind)).values()]
    for build in builds:
        shutil.copytree(f"{source}/{build.place}", f"{run}/{build.place}", copy_function=_link)
        shutil.copy(f"{source}/{build.kind}/current.json", f"{run}/{build.kind}/current.json")
    return run


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def main(settings: str) -> None:
    """Start Ray and the service, and obey."""
    import ray

    from raysys.cluster.connect import connected
    from raysys.cluster.ingress import share_port
    from raysys.cluster.second_proxy import second_proxy
    from raysys.cluster.serve_app import application, checked
    from raysys.cluster.serve_app import serve as ray_serve
    from raysys.cluster.serve_config import ServeConfig
    from raysys.config import RayConfig, load

    share_port()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    cfg = load(ServeConfig, json.loads(settings))
    served = checked(cfg)

    def deployed(version: int) -> None:
        later = dataclasses.replace(cfg, timeout_s=cfg.timeout_s + version)
        replicas = cfg.replicas or 1
        ray_serve.run(application(later, served, replicas=replicas), name=cfg.name)

    with connected(RayConfig(address="local")):
        ray_serve.start(http_options={"host": "127.0.0.1", "port": cfg.port})
        with second_proxy():
            deployed(0)
            _say({"pid": os.getpid()})
            _obey(deployed)
        ray_serve.shutdown()
    ray.shutdown()
    _say({})


def _obey(deployed: Callable[[int], None]) -> None:
    """Carry out orders until the last."""
    n_deployed = 0
    for line in sys.stdin:
        order, answer = line.strip(), {}
        if order == "stop":
            break
        if order == "redeploy":
            n_deployed += 1
            deployed(n_deployed)
        elif order == "kill replica":
            answer = _killed("ServeReplica:")
        elif order == "kill proxy":
            answer = _killed("/haproxy.cfg") or _killed("ProxyActor")
        elif order == "kill second proxy":
            answer = _killed("/second.cfg")
        _say(answer)


def _killed(name: str) -> dict[str, Any]:
    """Kill one process that this one started, whose command holds a name."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended since
            continue
        parents[int(folder.name)] = parent
        names[int(folder.name)] = b" ".join(words).decode(errors="replace")
    for pid, command in names.items():
        ancestor: int | None = pid
        while ancestor is not None and ancestor != os.getpid():
            ancestor = parents.get(ancestor)
        if ancestor is not None and pid != ancestor and name in command:
            os.kill(pid, signal.SIGKILL)
            return {"pid": pid, "name": command[:80]}
    return {}


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
