import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
import ray
from ray.core.generated import ray_client_pb2

from raysys.cluster import connect
from raysys.cluster.connect import connected
from raysys.config import RayConfig
from raysys.errors import ConfigError

LONG = "/tmp/" + "t" * 100


@pytest.fixture
def started(monkeypatch):
    """Record what Ray is started with, and where it would put its files, and start nothing."""
    calls = []

    def init(**settings):
        folders = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")}
        calls.append(SimpleNamespace(settings=settings, folders=folders))

    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(connect, "read_ray_address", lambda: None)
    return calls


@pytest.fixture
def port():
    """Return a port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def dead():
    """Return the address of a cluster that is gone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    return f"127.0.0.1:{number}"


def refusal(cfg):
    with pytest.raises(ConfigError) as caught, connected(cfg):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_dead_cluster_is_one_line_that_names_where_the_address_stood(started, monkeypatch, dead):
    message = refusal(RayConfig(address=dead))
    assert f"ray.address={dead!r} cannot be joined (no connection to" in message
    assert "Connection refused" in message
    assert "ray.address=local" in message
    assert f"ray.address='ray://{dead}'" in refusal(RayConfig(address=f"ray://{dead}"))
    monkeypatch.setenv("RAY_ADDRESS", dead)
    for unsaid in (None, "", "auto"):
        assert f"RAY_ADDRESS={dead!r} cannot be joined" in refusal(RayConfig(address=unsaid))
    assert started == []


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "neither HOST:PORT nor ray://HOST:PORT"),
        ("head", "no HOST:PORT"),
        ("ray://head", "neither HOST:PORT nor ray://HOST:PORT"),
        ("127.0.0.1:none", "no HOST:PORT"),
        ("auto", "`ray start` left no address"),
    ],
)
def test_what_is_no_address_is_one_line(started, address, words):
    assert words in refusal(RayConfig(address=address))


def test_a_port_that_does_not_answer_is_given_up(started, monkeypatch, port):
    monkeypatch.setattr(connect, "_READY_S", 0.5)
    for scheme in ("", "ray://"):
        message = refusal(RayConfig(address=f"{scheme}127.0.0.1:{port}"))
        assert "takes connections, but no Ray cluster answers" in message


@pytest.mark.parametrize("variable", ["", "local", None])
def test_without_an_address_a_private_cluster_is_started(started, monkeypatch, variable):
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with connected(RayConfig(num_cpus=3)):
        pass
    [call] = started
    assert (call.settings["address"], call.settings["num_cpus"]) == ("local", 3)


def test_the_object_store_has_the_size_asked_for(started):
    for cfg in (RayConfig(), RayConfig(object_store_mb=90)):
        with connected(cfg):
            pass
    sizes = [call.settings["object_store_memory"] for call in started]
    assert sizes == [512 << 20, 90 << 20]


def test_the_stale_mark_of_a_dead_cluster_is_left_out_with_a_warning(
    started, monkeypatch, caplog, dead
):
    monkeypatch.setattr(connect, "read_ray_address", lambda: dead)
    with connected(RayConfig()):
        pass
    assert started[0].settings["address"] == "local"
    assert f"ray cluster left out address={dead}" in caplog.text
    assert "ray.address=" in refusal(RayConfig(address="auto"))


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("folder", [LONG, "", "tmp"])
def test_sockets_go_elsewhere_where_a_path_is_too_long(started, monkeypatch, caplog, name, folder):
    monkeypatch.setenv(name, folder)
    with connected(RayConfig(address="local")):
        assert os.environ[name] == folder
    other = "TMPDIR" if name == "RAY_TMPDIR" else "RAY_TMPDIR"
    assert started[0].folders == {name: "/tmp", other: None}
    assert f"{name}={folder}" in caplog.text
    monkeypatch.setattr(connect, "_SHORT_TEMP", "/nowhere")
    assert "set RAY_TMPDIR to an absolute path" in refusal(RayConfig(address="local"))


class Answering(grpc.GenericRpcHandler):
    """Answers every question of a cluster with one code, and keeps what was asked."""

    def __init__(self, code):
        self.code, self.asked = code, []

    def service(self, details):
        def answer(request, context):
            self.asked.append((details.method, request))
            context.abort(self.code, "so it is")

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_asks_for_a_token_says_so(started, scheme):
    handler = Answering(grpc.StatusCode.UNAUTHENTICATED)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        message = refusal(RayConfig(address=f"{scheme}127.0.0.1:{port}"))
    finally:
        server.stop(None)
    assert "cannot be joined (it asks for a token: set RAY_AUTH_MODE=token" in message
    [(method, request)] = handler.asked
    assert method.endswith("/ClusterInfo" if scheme else "/CheckAlive")
    if scheme:  # a ping, which the port answers itself
        kind = ray_client_pb2.ClusterInfoRequest.FromString(request).type
        assert kind == ray_client_pb2.ClusterInfoType.PING


def test_another_version_is_to_be_installed(started, monkeypatch):
    def init(**settings):
        raise RuntimeError("Version mismatch: The cluster was started with: Ray: 2.59.0")

    monkeypatch.setattr(connect, "_unreachable", lambda address: None)
    monkeypatch.setattr(ray, "init", init)
    message = refusal(RayConfig(address="127.0.0.1:6379"))
    assert "Ray: 2.59.0): install its versions here, name another by" in message


def test_a_start_that_fails_is_one_line(started, monkeypatch):
    def init(**settings):
        raise OSError("no space\nleft") from ValueError("on\n/dev/shm")

    monkeypatch.setattr(ray, "init", init)
    message = refusal(RayConfig(address="local"))
    assert "Ray does not start here: no space left on /dev/shm; look at" in message


@pytest.mark.ray
def test_a_cluster_that_answers_is_told_from_another_service(ray_cluster):
    address = ray.get_runtime_context().gcs_address
    assert connect._unreachable(address) is None
    raylet = next(node for node in ray.nodes() if node["Alive"])
    other = f"{raylet['NodeManagerAddress']}:{raylet['NodeManagerPort']}"
    assert connect._unreachable(other) is not None


@pytest.mark.ray
@pytest.mark.slow
def test_a_private_cluster_runs_where_temporary_paths_are_long(tmp_path):
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    script = (
        "import ray; from raysys.config import RayConfig; from raysys.cluster import connect\n"
        "with connect.connected(RayConfig(address='local', num_cpus=1), dashboard=True):\n"
        "    print(ray.get(ray.remote(lambda: 5).remote()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "5\n"
