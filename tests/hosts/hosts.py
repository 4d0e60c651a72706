"""Hosts on one machine: each has its own network, processes, /tmp, HOME, hosts file and name.

    with Hosts("abc") as hosts:                    # a is the head of a Ray cluster
        hosts.raysys("b", "prepare", f"run={hosts.bucket}/run", "source=...")
        hosts.lose("b")                            # a power cut: no packet says goodbye
        hosts.start("b")

They share the checkout, read-only as an image would be, and an S3 server; nothing else. The hosts
file is Debian's: the own name is 127.0.1.1. Needs root and `ip` (iproute2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NET = "10.77.0"
SERVER, S3_PORT = f"{NET}.254", 5555
BRIDGE = "raysys0"
HEAD, JOBS = f"{NET}.1:6379", f"http://{NET}.1:8265"
PATIENCE_S = 600.0
_BOOT = """
set -e
mount --make-rprivate /
case {root} in /tmp/*) place={own}{root};; *) place={root};; esac
mkdir -p "$place" {own}/tmp/home
mount --bind {root} "$place"
mount -o remount,bind,ro "$place"
printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > {own}/hosts
mount --bind {own}/hosts /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount --rbind {own}/tmp /tmp
hostname {name}
while sleep 2; do :; done
"""  # the last line is what reaps orphans
_AGAIN = 'while :; do "$0" "$@"; sleep 1; done'  # as a service manager keeps Ray on its host


def missing() -> str:
    """Return what keeps hosts from being made here; empty: nothing."""
    if os.geteuid() != 0:
        return "hosts are network namespaces: needs root"
    tools = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    return f"hosts need {', '.join(tools)}" if tools else ""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """Return the condition's first true value.

    Raises:
        TimeoutError: there is none; it names what was waited for.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError(what)


@dataclasses.dataclass
class _Host:
    address: str
    boot: subprocess.Popen[bytes]
    init: int  # ends with all that runs there
    begun: list[subprocess.Popen[Any]] = dataclasses.field(default_factory=list)


class Hosts:
    """Hosts by name, one letter each; the first is the head of their Ray cluster.

    Attributes:
        bucket: where runs may lie, `s3://...`.
    """

    bucket = "s3://raysys"

    def __init__(self, names: str, *, cpus: int = 1, cores: Sequence[int] = ()) -> None:
        """Describe hosts.

        Args:
            names: of all.
            cpus: that each tells Ray.
            cores: the n-th host runs on the n-th of them, the S3 server on the last; none: all
                run anywhere.
        """
        self._names, self._cpus, self._cores = names, cpus, list(cores)
        self._hosts: dict[str, _Host] = {}
        self._count = 0
        self._jobs: list[Job] = []
        self._own = Path(tempfile.mkdtemp(prefix="hosts-"))
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Hosts:
        with contextlib.ExitStack() as ends:
            ends.callback(shutil.rmtree, self._own, ignore_errors=True)
            self._bridge(ends)
            self._store(ends)
            ends.callback(lambda: [self.lose(name) for name in list(self._hosts)])
            for name in self._names:
                self.boot(name)
            self.join(*self._names)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    # hosts

    def start(self, name: str) -> None:
        """Boot a host and let it join the cluster."""
        self.boot(name)
        self.join(name)

    def boot(self, name: str) -> None:
        """Start a host without Ray; its /tmp is empty."""
        number = self._names.index(name) + 1
        net, outer, address = f"raysys-{name}", f"rs-{name}", f"{NET}.{number}"
        _do(f"ip netns add {net}")
        _do(f"ip link add {outer} type veth peer name eth0 netns {net}")
        _do(f"ip link set {outer} master {BRIDGE} up")
        for words in ("link set lo up", "link set eth0 up", f"addr add {address}/24 dev eth0"):
            _do(f"ip -n {net} {words}")
        own = self._own / name
        shutil.rmtree(own / "tmp", ignore_errors=True)
        script = _BOOT.format(own=own, root=ROOT, name=name)
        words = ["ip", "netns", "exec", net, "unshare", "--mount", "--uts", "--ipc", "--pid"]
        words += ["--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
        line, env = [*self._on_core(number - 1), *words], self._env()
        with (self._own / f"{name}.log").open("ab") as log:
            boot = subprocess.Popen(line, env=env, stdout=log, stderr=log)
        init = wait_until(lambda: _booted(boot.pid, name), f"host {name}")
        self._hosts[name] = _Host(address, boot, init)

    def join(self, *names: str) -> None:
        """Start Ray on hosts, and wait until the cluster has them."""
        before = self._nodes()
        for name in names:
            words = ["ray", "start", "--block", f"--node-ip-address={self._hosts[name].address}"]
            words += [f"--num-cpus={self._cpus}", "--object-store-memory=200000000"]
            words += ["--resources", json.dumps({name: 1})]
            if name == self._names[0]:
                words += ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
            else:
                words += [f"--address={HEAD}"]
            with (self._own / f"{name}.log").open("ab") as log:
                self.begin(name, "sh", "-c", _AGAIN, *_python(words), stdout=log, stderr=log)
            if name == self._names[0]:
                wait_until(self.alive, f"ray on {name}")
        new = lambda: {name for name, _ in self._nodes() - before}  # noqa: E731
        wait_until(lambda: set(names) <= new(), f"ray on {', '.join(names)}")

    def lose(self, name: str) -> None:
        """End a host as a power cut would: what others had open there stays open."""
        host = self._hosts.pop(name)
        self.cut(name)
        with contextlib.suppress(OSError):
            os.kill(host.init, signal.SIGKILL)
        for process in (host.boot, *host.begun):
            process.wait()
        _do(f"ip netns del raysys-{name}")
        _do(f"ip link del rs-{name}", fails=True)

    def repair(self) -> None:
        """End the jobs that run, and start the hosts that are lost."""
        for job in self._jobs:
            if job.host in self._hosts and job.process.poll() is None:
                job.stop()
        self._jobs.clear()
        for name in self._names:
            if name in self._hosts:
                self.mend(name)
            else:
                self.start(name)

    def cut(self, name: str) -> None:
        """Let no packet of a host arrive anywhere, nor any at it."""
        _do(f"ip link set rs-{name} nomaster", fails=True)

    def mend(self, name: str) -> None:
        """Undo `cut`."""
        _do(f"ip link set rs-{name} master {BRIDGE}")

    def drain(self, name: str, *, seconds: int) -> None:
        """Give notice that a host will be taken away in so many seconds."""
        node = next(node for host, node in self._nodes() if host == name)
        words = ["ray", "drain-node", "--address", HEAD, "--node-id", node]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        done = self.run(name, *words, "--deadline-remaining-seconds", str(seconds))
        assert done.returncode == 0, done.stderr

    def alive(self) -> set[str]:
        """Return the hosts that the cluster holds for alive."""
        return {name for name, _ in self._nodes()}

    def _nodes(self) -> set[tuple[str, str]]:
        """Return (host, Ray's id of it) of those; one that was started again may be there twice."""
        try:
            with urllib.request.urlopen(f"{JOBS}/api/v0/nodes?limit=100", timeout=20) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except (OSError, ValueError):
            return set()
        names = {f"{NET}.{n}": name for n, name in enumerate(self._names, start=1)}
        alive = [node for node in nodes if node["state"] == "ALIVE"]
        return {(names[node["node_ip"]], node["node_id"]) for node in alive}

    # what runs on them

    def begin(self, name: str, *words: str, **how: Any) -> subprocess.Popen[Any]:
        """Start a command on a host, in the checkout."""
        begun = subprocess.Popen(self._words(name, words), env=self._env(), cwd=ROOT, **how)
        self._hosts[name].begun.append(begun)
        return begun

    def run(self, name: str, *words: str, timeout: float = PATIENCE_S) -> Any:
        """Run a command on a host and return what `subprocess.run` does."""
        line, how = self._words(name, words), {"capture_output": True, "text": True}
        return subprocess.run(line, env=self._env(), cwd=ROOT, timeout=timeout, **how)

    def raysys(self, name: str, *words: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Run a command of raysys on a host and return its line of JSON."""
        done = self.run(name, "python", "-m", "raysys.cli", *words, timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def job(self, name: str, *words: str) -> Job:
        """Begin a command of raysys on a host, to be watched."""
        self._count += 1
        self._jobs.append(Job(self, name, words, self._own / f"job-{self._count}"))
        return self._jobs[-1]

    def kill(self, name: str, pattern: str) -> int:
        """Kill the processes of a host whose command line matches; return how many."""
        own = self.run(name, "pgrep", "-f", pattern).stdout.split()
        return sum(self.run(name, "kill", "-9", pid).returncode == 0 for pid in own)

    def _words(self, name: str, words: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--target={self._hosts[name].init}", "--all", f"--wd={ROOT}"]
        return [*self._on_core(self._names.index(name)), *enter, *_python(words)]

    def _on_core(self, place: int) -> list[str]:
        return ["taskset", "-c", str(self._cores[place])] if self._cores else []

    def _env(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/tmp/home",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_raylet_start_wait_time_s": "240",  # of a slow machine
            "RAY_worker_niceness": "0",  # else whatever else runs here comes first
            "AWS_ENDPOINT_URL": f"http://{SERVER}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    # what they share

    def _bridge(self, ends: contextlib.ExitStack) -> None:
        _do(f"ip link add {BRIDGE} type bridge")
        ends.callback(_do, f"ip link del {BRIDGE}")
        _do(f"ip addr add {SERVER}/24 dev {BRIDGE}")
        _do(f"ip link set {BRIDGE} up")

    def _store(self, ends: contextlib.ExitStack) -> None:
        words = [sys.executable, "-m", "moto.server", "-H", SERVER, "-p", str(S3_PORT)]
        with (self._own / "s3.log").open("ab") as log:
            server = subprocess.Popen([*self._on_core(-1), *words], stdout=log, stderr=log)
        self._server = server.pid
        ends.callback(server.wait)
        ends.callback(server.kill)
        wait_until(lambda: _answers(SERVER, S3_PORT), "the S3 server")
        self.s3("create_bucket", Bucket="raysys")

    def s3(self, call: str, **arguments: Any) -> Any:
        """Ask the S3 server from outside the hosts; `call` is a method of boto3's client."""
        import boto3

        where = {"endpoint_url": f"http://{SERVER}:{S3_PORT}", "region_name": "us-east-1"}
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        return getattr(boto3.client("s3", **where, **keys), call)(**arguments)

    def store_seconds(self) -> float:
        """Return the processor time that the S3 server has taken."""
        fields = Path(f"/proc/{self._server}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def upload_world(self, name: str, **settings: int) -> str:
        """Simulate a log, put it on S3 and return its URI."""
        run = f"/tmp/{name}"
        words = [f"{key}={value}" for key, value in settings.items()]
        # /tmp is the host's own: tasks stay there, and what is taken out goes through its root
        self.raysys("a", "simulate", f"run={run}", *words, "ray.address=local")
        folder = Path(f"/proc/{self._hosts[self._names[0]].init}/root{run}/world/interactions")
        for part in sorted(folder.glob("*.parquet")):
            body = part.read_bytes()
            self.s3("put_object", Bucket="raysys", Key=f"logs/{name}/{part.name}", Body=body)
        return f"{self.bucket}/logs/{name}/"


class Job:
    """A command of raysys that runs on a host; what it says can be waited for."""

    def __init__(self, hosts: Hosts, host: str, words: Sequence[str], place: Path) -> None:
        self.host, self._hosts = host, hosts
        self._out, self._log = place.with_suffix(".out"), place.with_suffix(".log")
        line = ("python", "-m", "raysys.cli", *words)
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = hosts.begin(host, *line, stdout=out, stderr=log)

    def said(self) -> str:
        """Return its log so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str, *, times: int = 1) -> tuple[re.Match[str], float]:
        """Return the n-th match in its log, and the seconds until it came.

        Raises:
            AssertionError: it ended before.
            TimeoutError: it did not say that.
        """

        def found() -> re.Match[str] | None:
            matches = list(re.finditer(pattern, self.said()))
            if len(matches) < times:
                assert self.process.poll() is None, self.said()[-3000:]
                return None
            return matches[times - 1]

        began = time.monotonic()
        try:
            return wait_until(found, pattern), time.monotonic() - began
        except TimeoutError as error:
            raise TimeoutError(f"{pattern}: {self.said()[-3000:]}") from error

    def stop(self) -> None:
        """End it as its user would."""
        self._hosts.run(self.host, "pkill", "-TERM", "-f", "raysys.cli")
        self.process.wait(timeout=PATIENCE_S)

    def result(self) -> dict[str, Any]:
        """Wait for its end and return its line of JSON."""
        status = self.process.wait(timeout=PATIENCE_S)
        assert status == 0, self.said()[-3000:]
        result: dict[str, Any] = json.loads(self._out.read_text().splitlines()[-1])
        return result


def _python(words: Sequence[str]) -> list[str]:
    """Return a command line with this environment's `python` and `ray`."""
    first = {"python": [sys.executable], "ray": [sys.executable, "-m", "ray.scripts.scripts"]}
    return [*first.get(words[0], [words[0]]), *words[1:]]


def _do(line: str, *, fails: bool = False) -> None:
    done = subprocess.run(line.split(), capture_output=True, text=True)
    if done.returncode and not fails:
        raise RuntimeError(f"{line}: {done.stderr.strip()}")


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _booted(boot: int, name: str) -> int:
    """Return the first process inside a host whose file systems are in place, 0: not yet."""
    for path in Path(f"/proc/{boot}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            ask = ["nsenter", f"--target={child}", "--uts", "hostname"]
            done = subprocess.run(ask, capture_output=True, text=True)
            if done.stdout.strip() == name:
                return child
    return 0
