import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import click
import pytest
from ray.serve.exceptions import RayServeException

from raysys.cluster.serve_app import _opened, app_of, build, checked, replicas_of
from raysys.cluster.serve_config import ServeConfig
from raysys.commands import serve as command
from raysys.commands.gc import GcConfig, gc
from raysys.commands.update import UpdateConfig, update
from raysys.config import load
from raysys.errors import BuildError, ConfigError, CorruptBuildError
from raysys.http.client import Client, ServiceError
from raysys.http.keys import hash_of, with_key
from raysys.store.builds import Workspace
from raysys.store.uses import uses
from tests.http.test_app import InProcess
from tests.support.runs import ITEM_IDS, item_id, vectors_run


@pytest.fixture
def run(tmp_path):
    vectors_run(tmp_path)
    return tmp_path


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"run": "{run}", "replica": "2"}, "unknown key 'replica'; did you mean 'replicas'"),
        ({"run": "{run}", "replicas": "0"}, "replicas=0"),
        ({"run": "{run}/none"}, "holds no index build yet: index writes it"),
        ({}, "run=''"),
    ],
)
def test_bad_settings_are_one_line(run, args, words):
    filled = {key: value.format(run=run) for key, value in args.items()}
    with pytest.raises(click.ClickException) as caught:
        build(filled)
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_a_damaged_file_is_named(run):
    [path] = run.glob("embeddings/*/vectors.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(click.ClickException) as caught:
        build({"run": str(run)})
    assert f"{path} does not have the hash" in caught.value.message


def test_build_describes_one_deployment(run, caplog):
    app = build({"run": str(run), "replicas": "3", "port": "9"})
    deployment = app._bound_deployment
    assert deployment.name == "search"
    assert deployment.num_replicas == 3
    cfg, _ = deployment.init_args
    assert cfg.run == str(run)
    assert "setting ignored key=port" in caplog.text


def test_build_takes_what_a_serve_config_file_typed(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    app = build({"run": run.name, "replicas": 2, "cpus": 0.5, "verify": False, "build_id": None})
    deployment = app._bound_deployment
    cfg, _ = deployment.init_args
    assert (deployment.num_replicas, cfg.run, cfg.verify) == (2, str(run), False)


def test_two_replicas_where_a_cpu_stays_free(run):
    def begun(there, **given):
        return replicas_of(ServeConfig(run=str(run), **given), there)

    assert [begun(there) for there in (0, 1, 2, 3, 64)] == [1, 1, 1, 2, 2]
    assert begun(2, cpus=0.5) == 2
    assert begun(2, replicas=5) == 5
    assert begun(64, max_replicas=1) == 1


def test_replicas_follow_the_requests(run):
    app = build({"run": str(run), "replicas": "1", "max_replicas": "4"})
    scaling = app._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    with pytest.raises(click.ClickException, match="max_replicas=1 is not accepted: expected 2"):
        build({"run": str(run), "replicas": "2", "max_replicas": "1"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"scenarios.home.rank": "like"}, "scenarios.home.rank"),
        ({"scenarios.home.k": "0"}, "scenarios.home.k='0' is not accepted"),
        ({"scenarios.home": "like"}, "scenarios.home='like'"),
        ({"keys": "{run}/none.yaml"}, "none.yaml is no file"),
        ({"timeout_s": "0"}, "timeout_s=0"),
    ],
)
def test_presets_and_keys_are_checked_before_anything_starts(run, words, message):
    with pytest.raises(click.ClickException) as caught:
        build({"run": str(run)} | {key: value.format(run=run) for key, value in words.items()})
    assert message in caught.value.message


def test_an_app_has_the_keys_logs_presets_and_limits_of_its_settings(run, tmp_path):
    keys = tmp_path / "keys.yaml"
    entry = {"sha256": hash_of("rs_x"), "scopes": ["read"]}
    keys.write_bytes(with_key(None, str(keys), "shop", entry))
    words = [f"keys={keys}", f"logs={tmp_path}/logs", "scenarios={home: {k: 3}}", "timeout_s=4"]
    words += ["max_ongoing_requests=5", "max_queued_requests=6"]
    cfg = load(ServeConfig, [f"run={run}", "follow_s=0", *words])
    options = cfg.options(request_ids=True)
    assert options.keys.find("rs_x").name == "shop"
    assert options.scenarios["home"].k == 3
    assert (options.timeout_s, options.max_ongoing) == (4, 11)
    loose = load(ServeConfig, [f"run={run}", "max_queued_requests=-1"])
    assert loose.options(request_ids=True).max_ongoing is None
    with Client("http://service", key="rs_x", transport=InProcess(app_of(cfg))) as client:
        assert len(client.recommend(profile=[{"item_id": "42"}], scenario="home").items) == 3
    assert len(list((tmp_path / "logs").glob("access-*"))) == 1


def test_an_app_takes_events_as_its_settings_say(run):
    old = {"user_id": "new", "item_id": "42", "timestamp": 1_600_000_000}
    words = [f"run={run}", "follow_s=0"]
    for clock, known in (("machine", False), ("events", True)):
        app = app_of(load(ServeConfig, [*words, f"events.clock={clock}", "events.ttl_days=1"]))
        with Client("http://service", transport=InProcess(app), retries=0) as client:
            client.send([old | {"event_id": clock}])
            if known:
                assert client.recommend(user_id="new").items
                continue
            with pytest.raises(ServiceError, match="new"):
                client.recommend(user_id="new")
    words += ["events.kept=1", "events.clock=events"]
    with Client("http://service", transport=InProcess(app_of(load(ServeConfig, words)))) as client:
        client.send([old | {"user_id": name} for name in ("first", "second")])
        assert client.recommend(user_id="second").degraded is None
        with pytest.raises(ServiceError, match="first"):
            client.recommend(user_id="first")
    app = app_of(load(ServeConfig, [*words, "events.take=false"]))
    with Client("http://service", transport=InProcess(app)) as client:
        with pytest.raises(ServiceError, match="takes no events"):
            client.send([old])
        with pytest.raises(ServiceError, match="second"):
            client.recommend(user_id="second")


def test_an_app_runs_the_experiment_of_its_settings(run, tmp_path):
    [index] = run.glob("index/*/manifest.json")
    arms = f"{{a: {{weight: 3}}, b: {{build_id: {index.parent.name}, settings: {{k: 2}}}}}}"
    words = [f"run={run}", "follow_s=0", "experiment.name=first", f"experiment.arms={arms}"]
    app = app_of(load(ServeConfig, [*words, "experiment.impressions=true"]))
    with Client("http://service", transport=InProcess(app)) as client:
        state = client.status().experiment
        assert {arm.arm: arm.share for arm in state.arms} == {"a": 0.75, "b": 0.25}
        first, again = (
            [client.recommend(user_id=str(n), profile=[{"item_id": "42"}], fallback=True, k=5)]
            for n in (1, 1)
        )
        assert first == again
        answers = [
            client.recommend(user_id=str(n), profile=[{"item_id": "42"}], fallback=True, k=5)
            for n in range(40)
        ]
        assert {(answer.arm, len(answer.items)) for answer in answers} == {("a", 5), ("b", 2)}
    app = app_of(load(ServeConfig, [*words, "experiment.salt=another"]))
    with Client("http://service", transport=InProcess(app)) as client:
        arms = [
            client.recommend(user_id=str(n), profile=[{"item_id": "42"}], fallback=True).arm
            for n in range(40)
        ]
    assert arms != [answer.arm for answer in answers]
    deadline = time.monotonic() + 5
    while not list((run / "journal" / "impressions").glob("*")):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment.arms={a: {}, b: {}}"], "experiment.name"),
        (["experiment.name=x", "experiment.arms={a: {}}"], "two arms or more"),
        (["experiment.name=x", "experiment.arms={a: {}, b: {weight: 0}}"], "arms.b.weight='0'"),
        (
            ["experiment.name=x", "experiment.arms={a: {}, b: {settings: {k: 0}}}"],
            "b.settings.k='0'",
        ),
        (["experiment.impressions=true"], "experiment.name"),
        (
            [
                *("experiment.name=x", "experiment.arms={a: {}, b: {}}"),
                *("experiment.impressions=true", "events.take=false"),
            ],
            "experiment.impressions",
        ),
        (["experiment.name=x", "experiment.arms={a: {}, b: {wieght: 1}}"], "another key: weight"),
    ],
)
def test_settings_of_experiments_are_checked(words, message):
    with pytest.raises(ConfigError, match=message):
        load(ServeConfig, words)


@pytest.mark.parametrize("wrong", ["ttl_days=0", "kept=0", "clock=sun", "colour=1"])
def test_settings_of_events_are_checked(wrong):
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        load(ServeConfig, [f"events.{wrong}"])


@pytest.mark.parametrize(
    "settings", ["{ranking: like}", "{allow: {nosuch: 1}}", "{k: 100000}", "{deny: {nosuch: 1}}"]
)
def test_an_arm_that_its_index_cannot_answer_is_refused_at_the_start(run, settings):
    arms = f"experiment.arms={{a: {{}}, b: {{settings: {settings}}}}}"
    cfg = load(ServeConfig, [f"run={run}", "follow_s=0", "experiment.name=x", arms])
    with pytest.raises(ConfigError, match=r"experiment\.arms\.b does not fit: "):
        app_of(cfg)
    arms = "experiment.arms={a: {}, b: {build_id: nosuch}}"
    with pytest.raises(BuildError, match=r"experiment\.arms\.b: .*nosuch"):
        checked(load(ServeConfig, [f"run={run}", "experiment.name=x", arms]))


def test_presets_that_do_not_fit_the_build_are_named(run, caplog):
    words = "scenarios={a: {ranking: like}, b: {deny: {nosuch: 1}}, c: {deny: {zip: 1}}}"
    app_of(load(ServeConfig, [f"run={run}", "follow_s=0", words]))
    assert "scenario=a does not fit" in caplog.text
    assert "scenario=b does not fit" in caplog.text
    assert "items have no attribute 'nosuch'" in caplog.text
    assert "scenario=c" not in caplog.text


@pytest.mark.parametrize("prefix", ["", "v2", "/v2/"])
def test_route_prefix_must_be_a_path(prefix):
    with pytest.raises(ConfigError, match="route_prefix"):
        ServeConfig(route_prefix=prefix)


def test_settings_reach_the_deployment(run):
    words = {"cpus": "0.5", "max_ongoing_requests": "7", "max_queued_requests": "9"}
    [index] = run.glob("index/*/manifest.json")
    app = build({"run": str(run), "build_id": index.parent.name, **words})
    deployment = app._bound_deployment
    assert deployment.ray_actor_options["num_cpus"] == 0.5
    assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (7, 9)
    assert deployment.init_args[1] == index.parent.name
    assert deployment.backpressure_config.retry_after_s == 1
    with pytest.raises(click.ClickException, match="nosuch"):
        build({"run": str(run), "build_id": "nosuch"})


def test_only_the_current_index_is_followed(run):
    [index] = run.glob("index/*/manifest.json")
    told = [{}, {"follow_s": "0"}, {"build_id": index.parent.name}]
    found = [build({"run": str(run), "follow_s": "3", **words}) for words in told]
    assert [app._bound_deployment.init_args[0].following_s for app in found] == [3, 0, 0]
    with pytest.raises(click.ClickException, match="follow_s=-1"):
        build({"run": str(run), "follow_s": "-1"})


def test_a_replica_that_starts_anew_opens_what_is_current(run, caplog):
    workspace = Workspace(str(run))
    first = workspace.current("index").build_id
    vectors_run(run, n_items=70, seed=1)
    now = workspace.current("index").build_id
    assert now != first
    assert _opened(workspace, first, verify=True, current=True).build_id == now
    with pytest.raises(BuildError, match="holds no index build gone"):
        _opened(workspace, "gone", verify=True, current=False)
    (run / "index" / "current.json").unlink()
    assert _opened(workspace, now, verify=True, current=True).build_id == now
    assert "service cannot start with what is current" in caplog.text
    path = workspace.current("codes").path("scale.npy")
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(CorruptBuildError):
        _opened(workspace, now, verify=True, current=True)


def test_a_replica_starts_with_what_was_served_before_a_damaged_build(run, caplog):
    workspace = Workspace(str(run))
    first = workspace.current("index").build_id
    update(UpdateConfig(run=str(run), delete=["item-7"]))
    good = workspace.current("changes").build_id
    update(UpdateConfig(run=str(run), delete=["item-8"]))
    changes = workspace.current("changes").path("vectors.npy")
    changes.write_bytes(b"x" * len(changes.read_bytes()))
    search = _opened(workspace, first, verify=True, current=True)
    assert (search.build_id, search.changes_id) == (first, good)
    assert "does not have the hash" in caplog.text
    vectors_run(run, n_items=70, seed=1)
    [scale] = [workspace.current("codes").path("scale.npy")]
    scale.write_bytes(bytes(len(scale.read_bytes())))
    search = _opened(workspace, "gone", verify=True, current=True)
    assert (search.build_id, search.changes_id) == (first, good)
    with pytest.raises(CorruptBuildError):
        _opened(workspace, None, verify=True, current=True)


def test_a_host_that_haproxy_does_not_ask_is_one_line(run, port, monkeypatch):
    fake = SimpleNamespace(status=lambda: SimpleNamespace(proxies={}, applications={}))
    monkeypatch.setattr(command, "ray_serve", fake)
    monkeypatch.setattr(command, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(command, "through_haproxy", lambda: True)
    words = [f"run={run}", "host=127.0.0.2", f"port={port}"]
    with pytest.raises(ConfigError, match="RAY_SERVE_ENABLE_HA_PROXY=0"):
        command.serve(load(ServeConfig, words))


def test_two_commands_that_start_at_once_do_not_share_a_port(run, port, monkeypatch):
    with command._claimed(load(ServeConfig, [f"run={run}", f"port={port}"])):
        fake = SimpleNamespace(status=lambda: SimpleNamespace(proxies={}, applications={}))
        monkeypatch.setattr(command, "ray_serve", fake)
        monkeypatch.setattr(command, "connected", lambda _: contextlib.nullcontext())
        with pytest.raises(ConfigError, match=f"port={port}: another raysys serve has it"):
            command.serve(load(ServeConfig, [f"run={run}", f"port={port}"]))
        with command._claimed(load(ServeConfig, [f"run={run}", f"port={port + 1}"])):
            pass


def test_settings_reach_serve(run, port, monkeypatch):
    asked = {}

    def stop(*_):
        raise KeyboardInterrupt

    fake = SimpleNamespace(
        status=lambda: SimpleNamespace(proxies={}, applications={}),
        start=lambda http_options: asked.update(http_options),
        run=lambda app, **how: asked.update(how),
        shutdown=lambda: None,
    )
    monkeypatch.setattr(command, "ray_serve", fake)
    monkeypatch.setattr(command, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(command.ray, "cluster_resources", lambda: {"CPU": 9})
    monkeypatch.setattr(command, "_wait_until_answered", stop)
    words = [f"run={run}", "name=mine", "route_prefix=/v2", "host=localhost", f"port={port}"]
    command.serve(load(ServeConfig, words))
    assert asked == {"name": "mine", "route_prefix": "/v2", "host": "localhost", "port": port}


def wait_until_ready(client, process, *, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        try:
            return client.health()
        except ServiceError:
            time.sleep(0.5)
    raise AssertionError("the service did not come up")


def start(run, port, *settings):
    words = ["serve", f"run={run}", f"port={port}", *settings]
    return subprocess.Popen(
        [sys.executable, "-m", "raysys.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_service_until_told_to_stop(process, port, told):
    """Ask the service everything, send it a signal, and check that it ends well."""
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            build_id = wait_until_ready(client, process).build_id
            answer = client.recommend(profile=[{"item_id": 42}], k=4)
            assert (answer.build_id, len(answer.items)) == (build_id, 4)
            for num in ITEM_IDS:
                assert client.similar(item_id(num), k=2).item_id == item_id(num)
            with pytest.raises(ServiceError, match="'7'"):
                client.recommend(user_id="7")
            assert client.status().n_items == 60
        process.send_signal(told)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    record = json.loads(stdout)
    assert (record["job"], record["build_ids"]["index"]) == ("serve", build_id)


@pytest.mark.slow
def test_serving_without_ray(run, port):
    check_service_until_told_to_stop(start(run, port, "local=true"), port, signal.SIGINT)


@pytest.mark.ray
@pytest.mark.slow
def test_serving_on_a_cluster_that_is_there(run, port, ray_cluster):
    import ray
    from ray import serve

    address = ray.get_runtime_context().gcs_address
    process = start(run, port, f"ray.address={address}")
    check_service_until_told_to_stop(process, port, signal.SIGTERM)
    assert ray.cluster_resources()["CPU"] == 2  # ours goes on
    assert serve.status().applications == {}


@pytest.mark.ray
@pytest.mark.slow
def test_a_route_that_another_application_has_is_one_line(run, port, ray_cluster):
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Other:
        pass

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(Other.bind(), name="other", route_prefix="/")
        with pytest.raises(ConfigError) as caught:
            command.serve(load(ServeConfig, [f"run={run}", f"port={port}"]))
        assert set(serve.status().applications) == {"other"}
    finally:
        serve.shutdown()
    assert str(caught.value) == (
        "route_prefix='/' is taken by the Serve application 'other' of this cluster: choose "
        "another, such as route_prefix=/raysys, or stop that application"
    )


def test_what_serve_refuses_is_one_line(run, port, monkeypatch):
    def refuse(*_, **__):
        raise RayServeException("some\nreason")

    gone = []
    statuses = iter([{}, {"other": None}])
    fake = SimpleNamespace(
        status=lambda: SimpleNamespace(proxies={}, applications=next(statuses)),
        start=lambda http_options: None,
        run=refuse,
        delete=gone.append,
    )
    monkeypatch.setattr(command, "ray_serve", fake)
    monkeypatch.setattr(command, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(command.ray, "cluster_resources", lambda: {"CPU": 9})
    with pytest.raises(ConfigError, match=r"^Serve refuses name='raysys' .* some reason$"):
        command.serve(load(ServeConfig, [f"run={run}", f"port={port}"]))
    assert gone == ["raysys"]  # and Serve goes on for the application that came meanwhile


@pytest.mark.slow
def test_a_taken_port_is_one_line(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(run, taken.getsockname()[1], "local=true")
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Address already in use" in stderr.splitlines()[-1]


def test_what_is_served_is_not_collected_until_something_else_is(run):
    """A service says in the run which builds it opened; the way back stays open as asked."""
    workspace = Workspace(str(run))
    first = workspace.chain(workspace.current("index"))
    app = app_of(load(ServeConfig, [f"run={run}", "follow_s=60", "events.take=false"]))
    [used] = uses(workspace.storage)
    assert (used.what, set(used.builds)) == ("serve", {b.place for b in first.values()})
    vectors_run(run, n_items=70, seed=1)
    cfg = load(GcConfig, [f"run={run}", "keep=0", "older_days=0", "dry_run=false"])
    gc(cfg)
    assert all(run.joinpath(b.place, "manifest.json").exists() for b in first.values())
    app.state.control.obey("look")
    [used] = uses(workspace.storage)
    assert first["index"].place not in used.builds
    gc(cfg)
    assert not run.joinpath(first["index"].place).exists()
    with Client("http://service", transport=InProcess(app)) as client:
        assert client.similar("item-5").items
