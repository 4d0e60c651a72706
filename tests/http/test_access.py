"""Keys, rates, logs, measures, and what those who run the service may do."""

import asyncio
import json
import logging
import os
import threading
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raysys.errors import ConfigError
from raysys.http.admin import Control
from raysys.http.app import create_app
from raysys.http.follow import Following
from raysys.http.keys import Budget, KeyFile, KeyRing, hash_of, new_secret, with_key
from raysys.http.logs import Logs
from raysys.http.metrics import together
from raysys.http.service import Holder, ServiceOptions
from raysys.search.search import Search
from tests.http.test_app import InProcess
from tests.support.runs import vectors_run

READ, WRITE, ADMIN, SLOW = (f"rs_{name}" for name in ("read", "write", "admin", "slow"))


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    workspace, _ = vectors_run(tmp_path_factory.mktemp("run"))
    return Search.open(workspace)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.yaml"
    content = None
    for name, secret, entry in (
        ("shop", READ, {"scopes": ["read"]}),
        ("feed", WRITE, {"scopes": ["write"]}),
        ("ops", ADMIN, {"scopes": ["admin"]}),
        ("slow", SLOW, {"scopes": ["read"], "per_second": 2}),
    ):
        content = with_key(content, str(path), name, {"sha256": hash_of(secret), **entry})
    path.write_bytes(content)
    return path


def client_of(app, key=None):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.Client(transport=InProcess(app), base_url="http://service", headers=headers)


def status_of(app, path="/v1/status", key=None, method="GET"):
    with client_of(app, key) as http:
        return http.request(method, path).status_code


def test_without_keys_all_may_ask_and_nobody_administrates(search):
    app = create_app(lambda: search)
    assert status_of(app) == 200
    with client_of(app) as http:
        for method, path in (("GET", "replicas"), ("POST", "reload"), ("POST", "rollback")):
            answer = http.request(method, f"/v1/admin/{path}")
            assert answer.status_code == 403
            assert answer.json()["error"]["type"] == "no_keys"


def test_with_keys_each_may_what_its_scopes_say(search, key_file):
    app = create_app(lambda: search, ServiceOptions(keys=KeyRing(str(key_file))))
    with client_of(app) as http:
        answer = http.get("/v1/status")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        body = http.post("/v1/recommend", content=b" " * 1000, headers={"authorization": "Basic x"})
        assert body.json()["error"]["type"] == "unauthorized"
        assert "x-request-id" in answer.headers
    assert status_of(app, key="rs_none") == 401
    assert [status_of(app, key=key) for key in (READ, WRITE, ADMIN)] == [200] * 3
    path = "/v1/admin/replicas"
    assert [status_of(app, path, key) for key in (None, READ, WRITE, ADMIN)] == [401, 403, 403, 200]
    for path in ("/livez", "/readyz", "/v1/health", "/docs", "/openapi.json"):
        assert status_of(app, path) == 200
    assert [status_of(app, "/metrics", key) for key in (None, READ)] == [401, 200]


def test_a_key_has_so_many_requests_a_second(search, key_file):
    app = create_app(lambda: search, ServiceOptions(keys=KeyRing(str(key_file))))
    with client_of(app, SLOW) as http:
        answers = [http.get("/v1/status") for _ in range(4)]
    assert [answer.status_code for answer in answers][:3] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "1"
    assert status_of(app, key=READ) == 200


def test_a_budget_refills_steadily():
    now = [0.0]
    budget = Budget(4, now=lambda: now[0])
    assert [budget.spend() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    now[0] = 0.25
    assert [budget.spend(), budget.spend()] == [0, 0.25]
    now[0] = 100
    assert [budget.spend() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    slow = Budget(0.1, now=lambda: now[0])
    assert [slow.spend(), round(slow.spend(), 6)] == [0, 10]


def test_keys_change_while_the_service_runs(search, key_file, caplog):
    caplog.set_level(logging.INFO, "raysys")
    ring = KeyRing(str(key_file))
    app = create_app(lambda: search, ServiceOptions(keys=ring))
    first = key_file.read_bytes()
    secret = new_secret()
    entry = {"sha256": hash_of(secret), "scopes": ["read"]}
    key_file.write_bytes(with_key(first, str(key_file), "new", entry))
    assert status_of(app, key=secret) == 401
    assert ring.look()
    assert not ring.look()
    assert status_of(app, key=secret) == 200
    for damaged in (b"keys: [", b"keys: [{name: x}]", b"\xff\xfe", b"- a"):
        key_file.write_bytes(damaged)
        assert not ring.look()
        assert not ring.look()
        assert status_of(app, key=secret) == 200
    assert caplog.text.count("keeps the keys that it has") == 1
    key_file.unlink()
    assert not ring.look()
    key_file.write_bytes(first)
    assert ring.look()
    assert status_of(app, key=secret) == 401


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"keys: [", "is no YAML"),
        (b"key: []", "keys: Field required"),
        (b"", "the file"),
        (b"keys: [{name: a, sha256: b, scopes: [read]}]", "keys.0.sha256"),
        (b"keys: [{name: a, sha256: %s, scopes: [all]}]" % (b"a" * 64), "keys.0.scopes.0"),
        (b"keys: [{name: a, sha256: %s, scopes: []}]" % (b"a" * 64), "keys.0.scopes"),
        (b"keys:" + 2 * (b"\n- {name: a, sha256: %s, scopes: [read]}" % (b"a" * 64)), "'a'"),
    ],
)
def test_a_damaged_key_file_names_the_entry(content, words):
    with pytest.raises(ConfigError) as caught:
        KeyFile.parse(content, "k.yaml")
    assert "keys=k.yaml" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logs_name_routes_and_keys_but_no_ids(search, key_file, tmp_path):
    options = ServiceOptions(keys=KeyRing(str(key_file)), logs=Logs(str(tmp_path / "logs")))
    app = create_app(lambda: search, options)
    with client_of(app, ADMIN) as http:
        http.get("/v1/items/42/similar", headers={"x-request-id": "mine"})
        http.get("/secret")
        http.post("/v1/recommend", json={"profile": [{"item_id": "42"}]})
        http.get("/v1/admin/replicas")
    status_of(app, path="/v1/admin/reload", key=READ, method="POST")
    [access] = (tmp_path / "logs").glob("access-*.jsonl")
    [audit] = (tmp_path / "logs").glob("audit-*.jsonl")
    lines = [json.loads(line) for line in access.read_text().splitlines()]
    assert [(line["route"], line["status"], line["key"]) for line in lines] == [
        ("/v1/items/{item_id:id}/similar", 200, "ops"),
        ("unknown", 404, "ops"),
        ("/v1/recommend", 200, "ops"),
        ("/v1/admin/replicas", 200, "ops"),
        ("/v1/admin/reload", 403, "shop"),
    ]
    assert lines[0]["id"] == "mine"
    assert all(line["ms"] > 0 and time.time() - line["time"] < 60 for line in lines)
    text = access.read_text()
    assert not any(word in text for word in ("/42/", '"42"', "secret"))
    audited = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["path"], line["status"]) for line in audited] == [
        ("/v1/admin/replicas", 200),
        ("/v1/admin/reload", 403),
    ]


def test_old_access_logs_of_ended_replicas_go(tmp_path):
    Logs(str(tmp_path))
    [mine] = tmp_path.glob("access-*.jsonl")
    host = mine.name.rpartition("-")[0]
    ended = [tmp_path / f"{host}-{2**22 + num}.jsonl" for num in range(12)]
    for num, path in enumerate(ended):
        path.write_text("{}")
        os.utime(path, (num, num))
    (tmp_path / "audit-x-1.jsonl").write_text("{}")
    Logs(str(tmp_path))
    left = {path.name for path in tmp_path.glob("*.jsonl")}
    assert left == {mine.name, "audit-x-1.jsonl", *(path.name for path in ended[4:])}


def test_a_folder_of_logs_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="logs="):
        Logs(str(tmp_path / "file" / "logs"))


def measures(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_measures_count_requests_stages_and_empty_lists(search):
    app = create_app(lambda: search, name="one")
    with client_of(app) as http:
        for _ in range(3):
            http.post("/v1/recommend", json={"profile": [{"item_id": "42"}]})
        http.post("/v1/recommend", json={"profile": [{"item_id": "42"}], "allow": {"zip": "none"}})
        http.post(
            "/v1/recommend",
            json={"profile": [{"item_id": "42"}], "ranking": "like", "fallback": True},
        )
        http.get("/nowhere")
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = measures(answer.text)
    mine = ("replica", "one")
    route = ("method", "POST"), mine, ("route", "/v1/recommend"), ("status", "200")
    assert found["raysys_request_seconds_count", *route] == 5
    assert found["raysys_empty_answers_total", mine, ("route", "/v1/recommend")] == 1
    assert found["raysys_degraded_answers_total", ("reason", "ranking"), mine] == 1
    assert found["raysys_stage_seconds_count", mine, ("stage", "history")] == 5
    assert found["raysys_items", mine] == 60
    assert found["raysys_running_requests", mine] == 1  # the one that asks
    served = next(key for key in found if key[0] == "raysys_served")
    assert ("index", search.build_id) in served
    unknown = ("method", "any"), mine, ("route", "unknown"), ("status", "404")
    assert found["raysys_request_seconds_count", *unknown] == 1


def test_measures_of_replicas_stand_beside_each_other(search):
    texts = {}
    for name, asked in (("one", 1), ("two", 2)):
        app = create_app(lambda: search, name=name)
        with client_of(app) as http:
            for _ in range(asked):
                http.get("/v1/popular")
        texts[name] = app.state.control.obey("metrics")[1]
    text = together(texts)
    assert text.count("# TYPE raysys_request_seconds histogram") == 1
    found = measures(text)
    for name, asked in (("one", 1), ("two", 2)):
        labels = (
            *(("method", "GET"), ("replica", name)),
            *(("route", "/v1/popular"), ("status", "422")),
        )
        assert found["raysys_request_seconds_count", *labels] == asked


def test_more_than_so_many_at_once_are_told_to_come_again(search):
    begun, end = threading.Event(), threading.Event()

    class Slow:
        """Answers when it is told to."""

        n_items, build_id, changes_id, size_of_scan = 60, "b", None, 10_000

        def similar(self, item_id, **_):
            begun.set()
            assert end.wait(30)
            return []

    app = create_app(Slow, ServiceOptions(max_ongoing=1))
    path = "/v1/items/42/similar"
    first = threading.Thread(target=status_of, args=(app, path))
    first.start()
    assert begun.wait(30)
    with client_of(app) as http:
        busy = http.get(path)
        assert http.get("/livez").status_code == 200
    end.set()
    first.join(30)
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    assert status_of(app, path) == 200


def test_an_answer_that_takes_too_long_is_given_up(search):
    end = threading.Event()

    class Slow:
        """Never answers in time."""

        n_items, build_id, changes_id, size_of_scan = 60, "b", None, 10_000

        def similar(self, item_id, **_):
            end.wait(30)
            return []

    app = create_app(Slow, ServiceOptions(timeout_s=0.05))
    with client_of(app) as http:
        late = http.get("/v1/items/42/similar")
    end.set()
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert late.json()["error"]["type"] == "timeout"


@pytest.fixture
def followed(tmp_path, key_file):
    """A service that follows a run with two indexes; returns its app and their build_ids."""
    workspace, _ = vectors_run(tmp_path / "run")
    first = workspace.current("index").build_id
    holder = Holder(Search.open(workspace))
    following = Following(holder, workspace, every_s=3600)
    app = create_app(
        holder,
        ServiceOptions(keys=KeyRing(str(key_file))),
        following=following,
        workspace=workspace,
    )
    vectors_run(tmp_path / "run", n_items=70, seed=1)
    return app, first, workspace.current("index").build_id, workspace


def test_reload_and_rollback(followed):
    app, first, second, workspace = followed
    with client_of(app, ADMIN) as http:

        def served(answer):
            assert answer.status_code == 200, answer.text
            [replica] = answer.json()["replicas"]
            return replica["build_ids"]["index"]

        assert served(http.get("/v1/admin/replicas")) == first
        assert served(http.post("/v1/admin/reload")) == second
        assert served(http.post("/v1/admin/rollback")) == first
        assert workspace.current("index").build_id == first
        assert served(http.post("/v1/admin/reload")) == first
        none = http.post("/v1/admin/rollback")
        assert (none.status_code, none.json()["error"]["type"]) == (409, "no_rollback")
        vectors_run(workspace.run, n_items=70, seed=1)  # what was done again is current again
        assert served(http.post("/v1/admin/reload")) == second
        wrong = http.post("/v1/admin/rollback", json={"build_id": "nosuch"})
        assert "was not current before" in wrong.json()["error"]["message"]
        assert served(http.post("/v1/admin/rollback", json={"build_id": first})) == first


def test_a_damaged_index_is_not_rolled_back_to(followed):
    app, first, second, workspace = followed
    build = workspace.chain(workspace.open("index", first))["embeddings"]
    vectors = build.path("vectors.npy")
    vectors.write_bytes(bytes(len(vectors.read_bytes())))
    with client_of(app, ADMIN) as http:
        http.post("/v1/admin/reload")
        refused = http.post("/v1/admin/rollback")
        [replica] = http.get("/v1/admin/replicas").json()["replicas"]
    assert refused.status_code == 409
    assert "does not have the hash" in refused.json()["error"]["message"]
    assert replica["build_ids"]["index"] == second == workspace.current("index").build_id


def test_one_index_for_good_is_neither_reloaded_nor_rolled_back(search, key_file):
    app = create_app(lambda: search, ServiceOptions(keys=KeyRing(str(key_file))))
    with client_of(app, ADMIN) as http:
        for path in ("reload", "rollback"):
            answer = http.post(f"/v1/admin/{path}")
            assert (answer.status_code, answer.json()["error"]["type"]) == (409, "not_following")


def test_an_order_reaches_every_replica(search, key_file):
    controls = []

    async def everyone(order):
        return [await asyncio.to_thread(control.obey, order) for control in controls]

    apps = [
        create_app(
            lambda: search,
            ServiceOptions(keys=KeyRing(str(key_file))),
            name=name,
            everyone=everyone,
        )
        for name in ("one", "two")
    ]
    controls += [app.state.control for app in apps]
    assert all(isinstance(control, Control) for control in controls)
    with client_of(apps[0], ADMIN) as http:
        found = http.get("/v1/admin/replicas").json()["replicas"]
        assert [replica["replica"] for replica in found] == ["one", "two"]
        assert 'replica="two"' in http.get("/metrics").text


def test_heads_and_slashes(search):
    app = create_app(lambda: search)
    for path in ("/livez", "/readyz", "/v1/health"):
        assert status_of(app, path, method="HEAD") == 200
    assert status_of(app, "/v1/popular/") == 404  # no redirect, which would name a host
    assert status_of(app, "/redoc") == 404


def test_what_fails_is_counted_by_its_route(search, monkeypatch):
    def fail(query):
        raise RuntimeError("a fault")

    monkeypatch.setattr(search, "recommend", fail)
    app = create_app(lambda: search, name="one")
    with client_of(app) as http:
        assert http.post("/v1/recommend", json={"profile": [{"item_id": "42"}]}).status_code == 500
        found = measures(http.get("/metrics").text)
    labels = ("replica", "one"), ("route", "/v1/recommend"), ("status", "500")
    assert found["raysys_request_seconds_count", ("method", "POST"), *labels] == 1
