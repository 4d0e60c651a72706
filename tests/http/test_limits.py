"""Bodies that are too large or too slow, and ids of requests."""

import asyncio
import json

import httpx
import pytest

from raysys.http import limits
from raysys.http.app import create_app
from raysys.http.limits import MAX_BODY_BYTES, Limits
from raysys.http.service import ServiceOptions
from raysys.search.search import Search
from tests.http.test_app import InProcess
from tests.support.runs import vectors_run


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    workspace, _ = vectors_run(tmp_path_factory.mktemp("run"))
    return Search.open(workspace)


@pytest.fixture
def http(search):
    app = create_app(lambda: search)
    with httpx.Client(transport=InProcess(app), base_url="http://service") as client:
        yield client


def error_of(answer, status):
    assert answer.status_code == status
    return answer.json()["error"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(http):
    answer = http.post("/v1/recommend", content=b" " * (MAX_BODY_BYTES + 1))
    assert error_of(answer, 413) == {
        "type": "too_large",
        "message": f"a body may have {MAX_BODY_BYTES} bytes at most",
        "details": [],
    }
    assert answer.headers["connection"] == "close"
    assert http.get("/v1/status").json()["counts"]["error_413"] == 1


def ask(app, receive, headers=()):
    """Return the status, headers and body of what an ASGI app sends."""
    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": list(headers)}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_a_body_of_unknown_size_is_refused_once_too_much_has_come():
    read = []

    async def app(scope, receive, send):
        raise AssertionError

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b" " * 10, "more_body": True}

    layer = Limits(app, counted=print, max_body_bytes=25)
    assert ask(layer, receive)[0] == 413
    assert len(read) == 3


def test_a_body_that_stops_coming_is_refused_after_a_while():
    counted, read = [], []

    async def app(scope, receive, send):
        raise AssertionError

    async def receive():
        if read:
            await asyncio.sleep(60)
        read.append(1)
        return {"type": "http.request", "body": b"{", "more_body": True}

    layer = Limits(app, counted=counted.append, body_timeout_s=0.05)
    status, headers, body = ask(layer, receive)
    assert (status, counted) == (408, ["error_408"])
    assert headers[b"connection"] == b"close"
    assert json.loads(body)["error"]["type"] == "slow_request"


def test_a_body_in_parts_comes_whole():
    parts = [b'{"a', b'": ', b"1}"]

    async def app(scope, receive, send):
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    assert ask(Limits(app, counted=print), receive)[2] == b'{"a": 1}'


@pytest.mark.parametrize("given", ["abc-1:2", "x" * 128])
def test_an_answer_carries_the_id_of_its_request(http, given):
    answer = http.get("/v1/health", headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b'])
def test_an_id_that_could_harm_a_log_is_replaced(http, given):
    answer = http.get("/v1/nothing", headers={"X-Request-ID": given})
    assert answer.status_code == 404
    assert len(answer.headers["x-request-id"]) == 32


def test_what_is_around_may_put_the_ids_there(search, monkeypatch):
    app = create_app(lambda: search, ServiceOptions(request_ids=False))
    with httpx.Client(transport=InProcess(app), base_url="http://service") as client:
        assert "x-request-id" not in client.get("/v1/health").headers
        monkeypatch.setattr(Search, "recommend", lambda *_: 1 / 0)
        answer = client.post("/v1/recommend", json={"profile": []})
        assert answer.status_code == 500
        assert "x-request-id" not in answer.headers


def test_a_fault_carries_the_id_too_and_logs_it(http, search, monkeypatch, caplog):
    monkeypatch.setattr(Search, "recommend", lambda *_: 1 / 0)
    body = {"profile": [{"item_id": "item-5"}]}
    answer = http.post("/v1/recommend", json=body, headers={"X-Request-ID": "mine"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine"
    assert "id=mine" in caplog.text


def test_a_method_that_a_path_has_not_names_those_it_has(http):
    answer = http.delete("/v1/health")
    assert error_of(answer, 405)["type"] == "http"
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b"{", b'{"profile": [}', b"\x00"])
def test_a_body_that_is_no_json_is_a_422(http, body):
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/recommend", content=body, headers=headers)
    assert error_of(answer, 422)["type"] == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        {"profile": [], "allow": {"x": [None] * 20_000}},
        {"profile": [], "allow": {str(n): 1 for n in range(20_000)}},
        {"profile": [{"x": 1}] * 9_000},
        {"profile": [], **{str(n): 1 for n in range(20_000)}},
    ],
)
def test_an_answer_names_few_of_many_faults(http, body):
    answer = http.post("/v1/recommend", json=body)
    assert 1 <= len(error_of(answer, 422)["details"]) <= 20


def test_the_schema_names_every_status(http):
    schema = http.get("/openapi.json").json()
    for path in schema["paths"].values():
        for operation in path.values():
            named = {200, 401, 403, 404, 405, 408, 413, 422, 429, 500, 503}
            assert set(map(int, operation["responses"])) - {409} == named


def test_the_layer_leaves_other_protocols_alone():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(limits.Limits(app, counted=print)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_a_client_that_has_gone_asks_for_nothing():
    asked = []

    async def app(scope, receive, send):
        asked.append(await receive())

    messages = iter([{"type": "http.request", "body": b'{"bui', "more_body": True}])

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    async def send(message):
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/admin/rollback", "headers": []}
    asyncio.run(Limits(app, counted=lambda _: None)(scope, receive, send))
    assert asked == []
