import asyncio
import json

import httpx
import pytest

from raysys.http import retries
from raysys.http.client import AsyncClient, Client, ServiceError
from tests.support.runs import vectors_run

ANSWER = {"build_id": "b", "ranking": "consume", "unknown_items": [], "items": []}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.0)


def scripted(*steps):
    """A transport that plays `steps` (answers or errors) and records the requests."""
    requests = []
    todo = list(steps)

    def handle(request):
        requests.append(request)
        step = todo.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return Client("http://service", transport=httpx.MockTransport(handle)), requests


def busy():
    return httpx.Response(503, text="busy")


def test_retries_503_and_lost_connections():
    lost = httpx.RemoteProtocolError("closed"), httpx.ConnectError("refused")
    service, requests = scripted(busy(), *lost, httpx.Response(200, json=ANSWER))
    with service:
        answer = service.recommend(user_id="42", k=3, ranking="like")
    assert answer.build_id == "b"
    assert len(requests) == 4
    sent = {"user_id": "42", "k": 3, "ranking": "like"}
    assert [json.loads(request.content) for request in requests] == [sent] * 4


def test_gives_up_with_the_last_answer():
    service, requests = scripted(*[busy() for _ in range(7)])
    with pytest.raises(ServiceError, match="status 503: busy") as caught:
        service.health()
    assert caught.value.status == 503
    assert len(requests) == 7


def test_gives_up_without_an_answer():
    service, _ = scripted(*[httpx.ConnectError("refused") for _ in range(7)])
    with pytest.raises(ServiceError, match=r"GET http://service/v1/health: no answer: refused"):
        service.health()


@pytest.mark.parametrize("step", [httpx.Response(500, text="oops"), httpx.Response(502)])
def test_where_no_replica_answered_it_asks_again(step):
    service, requests = scripted(step, httpx.Response(200, json={"build_id": "b"}))
    assert service.health().build_id == "b"
    assert len(requests) == 2


@pytest.mark.parametrize("step", [httpx.ReadTimeout("slow"), httpx.Response(500, json={"a": 1})])
def test_what_may_fail_again_is_not_retried(step):
    service, requests = scripted(step)
    with pytest.raises(ServiceError):
        service.status()
    assert len(requests) == 1


def test_refusals_carry_type_and_message():
    error = {"error": {"type": "unknown_user", "message": "user_id='x' is not known"}}
    service, _ = scripted(httpx.Response(404, json=error))
    with pytest.raises(ServiceError, match=r"user_id='x' is not known") as caught:
        service.recommend(user_id="x")
    assert (caught.value.status, caught.value.type) == (404, "unknown_user")


def test_bad_requests_are_not_sent():
    service, requests = scripted()
    with pytest.raises(ServiceError, match="ranking") as caught:
        service.recommend(user_id="x", ranking="best")
    assert caught.value.status == 422
    with pytest.raises(ServiceError, match="give user_id, profile or both"):
        service.recommend()
    assert requests == []


def test_answers_of_another_service():
    service, _ = scripted(httpx.Response(200, json={"hello": 1}))
    with pytest.raises(ServiceError, match="unknown format"):
        service.health()


@pytest.mark.parametrize(
    "item_id",
    [
        "a/b",
        "caffè latte",
        "a?b#c%2F",
        "ends/",
        "42",
        "two\nlines",
        ".",
        "..",
        "a/../b",
        "%2E",
        "😀",
    ],
)
def test_ids_survive_the_path(item_id):
    answer = {"build_id": "b", "item_id": item_id, "items": []}
    service, requests = scripted(httpx.Response(200, json=answer))
    assert service.similar(item_id, k=7).item_id == item_id
    assert requests[0].url.path == f"/v1/items/{item_id}/similar"
    assert requests[0].url.params["k"] == "7"


def test_what_no_service_would_take_is_not_sent():
    service, requests = scripted()
    for ask in (
        lambda: service.similar("\ud800"),
        lambda: service.search([[float("nan")]]),
        lambda: service.recommend(profile=[{"item_id": "a", "rating": float("inf")}]),
    ):
        with pytest.raises(ServiceError) as caught:
            ask()
        assert (caught.value.status, caught.value.type) == (422, "invalid_request")
    assert requests == []


def test_a_busy_service_says_when_to_come_again(monkeypatch):
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.1)
    many = httpx.Response(429, headers={"retry-after": "7"}, json={})
    long = httpx.Response(503, headers={"retry-after": "86400"}, json={})
    service, _ = scripted(many, busy(), long, httpx.Response(200, json=ANSWER))
    service.recommend(user_id="42")
    assert 7 <= pauses[0] <= 10.5
    assert 0.2 <= pauses[1] <= 0.3
    assert 30 <= pauses[2] <= 45


def test_what_changes_something_is_not_asked_twice():
    lost = httpx.RemoteProtocolError("closed")
    service, requests = scripted(lost, httpx.Response(200, json={"replicas": []}))
    with pytest.raises(ServiceError, match="no answer: closed"):
        service.rollback()
    assert len(requests) == 1
    never_sent = httpx.ConnectError("refused")
    service, requests = scripted(never_sent, httpx.Response(200, json={"replicas": []}))
    assert service.rollback("b").replicas == []
    assert json.loads(requests[-1].content) == {"build_id": "b", "kind": "index"}


def test_a_key_goes_with_every_request():
    headers = []

    def handle(request):
        headers.append(request.headers.get("authorization"))
        return httpx.Response(200, json=ANSWER)

    for key in ("rs_secret", None):
        transport = httpx.MockTransport(handle)
        Client("http://service", key=key, transport=transport).recommend(profile=[])
    assert headers == ["Bearer rs_secret", None]


@pytest.mark.parametrize(("version", "warned"), [("0.0.1", True), ("99.1", True), (None, False)])
def test_another_version_is_told_once(version, warned, caplog):
    headers = {} if version is None else {"x-raysys-version": version}
    answers = [httpx.Response(200, json=ANSWER, headers=headers) for _ in range(2)]
    service, _ = scripted(*answers)
    for _ in answers:
        service.recommend(profile=[])
    assert caplog.text.count("versions differ") == int(warned)


def test_the_asynchronous_client_asks_the_same():
    sent = []

    def handle(request):
        sent.append((request.method, request.url.raw_path, request.content))
        if len(sent) % 2:  # each is asked again
            raise httpx.ConnectError("refused")
        return httpx.Response(422, json={"error": {"type": "t", "message": "m", "details": []}})

    transport = httpx.MockTransport(handle)
    asked = {
        "recommend": ((), {"user_id": "42", "k": 3}),
        "recommend_all": (([{"profile": []}],), {}),
        "similar": (("a/b",), {"k": 3, "allow": {"x": 1}}),
        "similar_to": ((["a"],), {}),
        "search": (([[1.0]],), {}),
        "popular": ((), {"deny": {"x": 1}}),
        "recent": ((), {}),
        "titles": (("x",), {}),
        "items": ((["a"],), {}),
        "atoms": ((), {"k": 3, "atom": 17}),
        "send": (([{"event_id": "e", "user_id": "u", "item_id": "i"}],), {}),
        "erase": (("u",), {}),
        "evaluation": ((), {}),
        **dict.fromkeys(("scenarios", "health", "status", "replicas", "reload"), ((), {})),
        "rollback": (("b",), {}),
    }
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert {*asked, "close", "local", "open"} == public
    for name, (args, fields) in asked.items():
        with Client("http://service", transport=transport) as client, pytest.raises(ServiceError):
            getattr(client, name)(*args, **fields)
    once = list(sent)
    sent.clear()

    async def ask():
        for name, (args, fields) in asked.items():
            async with AsyncClient("http://service", transport=transport) as client:
                with pytest.raises(ServiceError, match="m"):
                    await getattr(client, name)(*args, **fields)

    asyncio.run(ask())
    assert sent == once


def test_a_run_is_asked_without_a_service(tmp_path):
    workspace, _ = vectors_run(tmp_path)
    with Client.open(str(tmp_path)) as client:
        answer = client.recommend(profile=[{"item_id": "42"}], k=3)
    assert answer.build_id == workspace.current("index").build_id
